"""What a reclaim step takes, and from which runs: planned from plain facts, done elsewhere.

The watchdog says which steps are due. Within a step, and from one step to the next, it is value
that decides: what is not wanted any more goes before what may still be wanted, a finished
answer before one that is still being made, and a reader who reads is never harmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from tidegate.core.memory.steps import ReclaimStep


class Eviction(Enum):
    """What happens to a victim."""

    RELEASE = "release"  # it ends if it has not, its readers are told why, its bytes go
    SHRINK = "shrink"  # it loses the events that its readers have had, and goes on


class Candidate(NamedTuple):
    """What eviction has to know of a run. Times are monotonic."""

    id: str
    is_over: bool
    delivered: bool  # its creator has had all of it
    readers: int
    stalled_s: float  # how long even its liveliest reader has read nothing; 0 without readers
    ended_s: float | None
    abandoned_s: float | None  # since when a live one has had no readers
    keep_running: bool  # asked to go on without readers
    stuck_s: float  # from when on the sweep's net would take it, whatever its state
    held_bytes: int  # what its release frees; what is outbound goes with its connections
    window_bytes: int
    needed_bytes: int  # of the window: what readers have not had


class Victim(NamedTuple):
    """Which run loses what, and the words for it."""

    id: str
    act: Eviction
    kind: str  # the metrics' label
    reason: str
    promised_bytes: int
    keep_bytes: int = 0  # of the window, when it shrinks


Value = tuple[float, ...]  # less goes first
_Judged = tuple[Value, Victim] | None


def plan(
    step: ReclaimStep,
    candidates: Iterable[Candidate],
    now_s: float,
    stale_after_s: float,
    most: int,
) -> list[Victim]:
    """Choose the victims of a step, the least valuable first, at most `most`."""
    judge = _JUDGES.get(step)
    if judge is None:
        return []
    found: list[tuple[Value, int, Victim]] = []
    for candidate in candidates:
        judged = judge(candidate, now_s, stale_after_s)
        if judged is not None:
            found.append((judged[0], len(found), judged[1]))
    return [victim for _, _, victim in sorted(found)[:most]]


def _kept(run: Candidate, now_s: float, stale_after_s: float) -> _Judged:
    if run.is_over:
        return _finished(run, now_s, stale_after_s)
    if run.keep_running or run.readers or run.abandoned_s is None:
        return None
    words = f"abandoned {now_s - run.abandoned_s:.0f} s ago"
    return (1.0, run.abandoned_s), _released(run, "abandoned", words)


def _stale(run: Candidate, now_s: float, stale_after_s: float) -> _Judged:
    if run.is_over:
        if run.readers or run.ended_s is None or now_s - run.ended_s < stale_after_s:
            return None
        age_s = now_s - run.ended_s
        return _finished_value(run), _released(run, "finished", f"finished {age_s:.0f} s ago")
    if now_s >= run.stuck_s:
        return (2.0, run.stuck_s), _released(run, "stuck", "stuck past its time limit")
    alone_s = 0.0 if run.abandoned_s is None else now_s - run.abandoned_s
    if run.keep_running or run.readers or alone_s < stale_after_s or run.abandoned_s is None:
        return None
    return (1.0, run.abandoned_s), _released(run, "abandoned", f"abandoned {alone_s:.0f} s ago")


def _stalled(run: Candidate, now_s: float, stale_after_s: float) -> _Judged:
    if not run.readers or not run.stalled_s or run.stalled_s < stale_after_s:
        return None
    words = f"its readers have read nothing for {run.stalled_s:.0f} s"
    return (not run.is_over, -run.stalled_s), _released(run, "stalled", words)


def _finished(run: Candidate, now_s: float, stale_after_s: float) -> _Judged:
    if not run.is_over or run.readers:
        return None
    return _finished_value(run), _released(run, "finished", "finished, and memory is short")


def _background(run: Candidate, now_s: float, stale_after_s: float) -> _Judged:
    if run.is_over or run.readers or not run.keep_running:
        return None
    words = "it has no readers, and memory is short"
    return (-run.held_bytes,), _released(run, "background", words)


def _windows(run: Candidate, now_s: float, stale_after_s: float) -> _Judged:
    spare_bytes = run.window_bytes - run.needed_bytes
    if run.is_over or spare_bytes <= 0:
        return None
    return (-spare_bytes,), Victim(
        run.id, Eviction.SHRINK, "window", "memory is short", spare_bytes, run.needed_bytes
    )


def _finished_value(run: Candidate) -> Value:
    """Value a finished run: what its creator has had goes first, then the oldest."""
    return (0.0, not run.delivered, run.ended_s or 0.0)


def _released(run: Candidate, kind: str, words: str) -> Victim:
    return Victim(run.id, Eviction.RELEASE, kind, f"swept: {words}", run.held_bytes)


_JUDGES: dict[ReclaimStep, Callable[[Candidate, float, float], _Judged]] = {
    ReclaimStep.KEPT: _kept,
    ReclaimStep.STALE: _stale,
    ReclaimStep.STALLED: _stalled,
    ReclaimStep.FINISHED: _finished,
    ReclaimStep.BACKGROUND: _background,
    ReclaimStep.WINDOWS: _windows,
}
