"""Has anything grown? Decided from figures alone, so that it can be tried on recorded ones.

A worker's memory moves by megabytes with what it has just relayed. Two things are compared that
do not: the *minima* of (resident - ledger) in windows, of which each quarter gives the median; and
*rests*, moments without load, when everything that belongs to runs must be gone.

What was tried instead: windows of 6 s (the heap is trimmed less often: the medians of a healthy
worker's quarters differed by 7 MiB, with windows of 23 s by 1 MiB), resident memory at rest (47 to
67 MiB, for the last trim may have come before the last burst), means (one burst moves them).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from statistics import median

KIB = 1024
MIB = 1024 * KIB
QUARTERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at everything. None: it did not answer, for we had stopped or killed it."""

    at_s: float  # since the soak began
    quarter: int | None  # 0 to 3 while it is measured under load, else None
    generation: int | None
    worker_rss_bytes: int | None  # with `ledger_bytes` from one and the same callback
    ledger_bytes: int | None
    worker_descriptors: int | None
    worker_threads: int | None
    connections: int | None
    watchdog_rss_bytes: int | None
    watchdog_descriptors: int | None
    workers: int
    active: int
    finished: int
    level: int
    recycles: int
    restarts: int
    tick_delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What is held while there is no request. None: it could not be asked."""

    at_s: float
    what: str
    generation: int
    worker_rss_bytes: int
    ledger_bytes: int
    active: int
    finished: int
    descriptors: int
    threads: int
    tasks: int | None
    watchdog_rss_bytes: int
    watchdog_descriptors: int
    quiet_after_s: float  # how long it took until nothing moved
    oddity: str | None = None  # what was still held when waiting was given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What may be added between the first value and the last."""

    share: float
    plus: int

    def allows(self, first: float, last: float) -> bool:
        """Tell whether `last` is still no growth."""
        return last <= self.limit(first)

    def limit(self, first: float) -> float:
        """Return the largest last value that is no growth."""
        return first * (1 + self.share) + self.plus


# The noise is what the same, healthy build shows from run to run; README.md here has the figures.
RESIDENT = Tolerance(share=0.05, plus=2 * MIB)
# Load is random, so the ledger under load is too: this only catches runs that pile up.
LEDGER_UNDER_LOAD = Tolerance(share=0.50, plus=8 * MIB)
# The watchdog keeps bounded histories, and CPython up to 2,000 free tuples of each length; both
# fill in the first hours.
WATCHDOG = Tolerance(share=0.05, plus=MIB)
DESCRIPTORS = Tolerance(share=0.0, plus=8)  # idle upstream connections come and go
TASKS = Tolerance(share=0.0, plus=2)  # a probe of an upstream may be under way
THREADS = Tolerance(share=0.0, plus=4)  # of the loop's executor, which starts them when needed
NOTHING = Tolerance(share=0.0, plus=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One thing that was looked at, over time."""

    what: str
    values: tuple[float, ...]
    limit: float
    unit: str
    why_not: str | None = None  # it could not be judged, which is a failure too

    @property
    def is_good(self) -> bool:
        """Tell whether it has not grown."""
        return self.why_not is None and bool(self.values) and self.values[-1] <= self.limit


def judge(samples: list[Sample], rests: list[Rest], window_s: float) -> list[Verdict]:
    """Judge everything that must not grow. `rests` are of one generation."""
    measured = [sample for sample in samples if sample.quarter is not None]
    return [
        _grown(
            "resident memory of the worker without the ledger, under load",
            _quarters(
                [(s.at_s, s.quarter, _less(s.worker_rss_bytes, s.ledger_bytes)) for s in measured],
                window_s,
            ),
            RESIDENT,
        ),
        _grown(
            "ledger, under load",
            _quarters([(s.at_s, s.quarter, s.ledger_bytes) for s in measured], window_s),
            LEDGER_UNDER_LOAD,
        ),
        _none_of("ledger, at rest", _of(rests, "ledger_bytes"), "MiB"),
        _none_of("active runs, at rest", _of(rests, "active"), ""),
        _grown("descriptors of the worker, at rest", _of(rests, "descriptors"), DESCRIPTORS, ""),
        _grown("threads of the worker, at rest", _of(rests, "threads"), THREADS, ""),
        _grown("tasks of the worker, at rest", _of(rests, "tasks"), TASKS, ""),
        _grown(
            "resident memory of the watchdog",
            _quarters([(s.at_s, s.quarter, s.watchdog_rss_bytes) for s in measured], window_s),
            WATCHDOG,
        ),
        _grown(
            "descriptors of the watchdog, at rest",
            _of(rests, "watchdog_descriptors"),
            DESCRIPTORS,
            "",
        ),
        _same_worker(measured),
    ]


def judge_end(before: Rest, after: Rest) -> list[Verdict]:
    """Judge whether the end, after workers came and went, holds no more than the start.

    They are different workers, so their memory is not compared; the watchdog is the same one.
    """
    return [
        _none_of("ledger, at the end", (after.ledger_bytes,), "MiB"),
        _none_of("active runs, at the end", (after.active,), ""),
        _grown("descriptors, at the end", (before.descriptors, after.descriptors), DESCRIPTORS, ""),
        _grown("tasks, at the end", _present((before.tasks, after.tasks)), TASKS, ""),
        _grown(
            "descriptors of the watchdog, at the end",
            (before.watchdog_descriptors, after.watchdog_descriptors),
            DESCRIPTORS,
            "",
        ),
        _grown(
            "resident memory of the watchdog, at the end",
            (before.watchdog_rss_bytes, after.watchdog_rss_bytes),
            WATCHDOG,
        ),
    ]


def minima(points: list[tuple[float, float]], window_s: float) -> list[float]:
    """Return the least value of each window; the first one begins with the first point."""
    began_s = points[0][0]
    windows = groupby(points, key=lambda point: (point[0] - began_s) // window_s)
    return [min(value for _, value in window) for _, window in windows]


def _quarters(
    points: list[tuple[float, int | None, int | None]], window_s: float
) -> tuple[float, ...]:
    """Return each quarter's median of its windows' minima; () if one of them has no values."""
    found = []
    for quarter in range(QUARTERS):
        of_it = [(at_s, float(v)) for at_s, q, v in points if q == quarter and v is not None]
        if not of_it:
            return ()
        found.append(float(median(minima(of_it, window_s))))
    return tuple(found)


def _grown(
    what: str, values: tuple[float, ...], tolerance: Tolerance, unit: str = "MiB"
) -> Verdict:
    if len(values) < 2:
        return Verdict(what=what, values=values, limit=0.0, unit=unit, why_not="not measured")
    limit = tolerance.limit(values[0])
    return Verdict(what=what, values=values, limit=limit, unit=unit)


def _none_of(what: str, values: tuple[float, ...], unit: str) -> Verdict:
    """Require 0 each time, not only the last."""
    if not values:
        return Verdict(what=what, values=values, limit=0.0, unit=unit, why_not="not measured")
    why_not = "it was not 0 each time" if any(values) else None
    return Verdict(what=what, values=values, limit=0.0, unit=unit, why_not=why_not)


def _same_worker(measured: list[Sample]) -> Verdict:
    """Require that one and the same worker lived through the quarters: else none is comparable."""
    numbers = sorted({s.generation for s in measured if s.generation is not None})
    lost = f"worker {numbers[0]} did not live through it" if len(numbers) > 1 else None
    return Verdict(
        what="workers while one was measured",
        values=(float(len(numbers)),),
        limit=1.0,
        unit="",
        why_not=lost,
    )


def _of(rests: list[Rest], name: str) -> tuple[float, ...]:
    return _present(tuple(getattr(rest, name) for rest in rests))


def _present(values: tuple[float | None, ...]) -> tuple[float, ...]:
    """Return all of them, or none if one is missing."""
    return tuple(value for value in values if value is not None) if None not in values else ()


def _less(resident: int | None, ledger: int | None) -> int | None:
    return None if resident is None or ledger is None else resident - ledger
