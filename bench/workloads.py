"""The workloads: what is asked of each contender. README.md has them as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from measures import measure_connections, measure_crowd, measure_memory, measure_pace, measure_paced
from rounds import Cores, Round
from tools import Load


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload. `measure` plays one round of it on a fresh contender."""

    name: str
    what: str
    measure: Callable[[str, Cores], Round]
    has_direct: bool = True  # it says something where there is no gateway
    is_steady: bool = False  # a third of the rounds is enough


def workloads(window_s: float) -> dict[str, Workload]:
    """Return every workload, with a window of `window_s` (twice that if paced)."""
    window_ms = int(window_s * 1000)

    def busy(name: str, what: str, model: str, slots: int) -> Workload:
        load = Load(model=model, slots=slots, warm_ms=500, window_ms=window_ms)
        return Workload(name, what, partial(measure_pace, name, load))

    rows = [
        busy("W1", "32 at a time, 20 chunks, a write for each", "each-20", 32),
        busy("W1b", "32 at a time, 20 chunks in one write", "once-20", 32),
        busy("W2", "8 at a time, 2,000 chunks", "each-2000", 8),
        Workload(
            "W3",
            "500 streams, 20 chunks a second each",
            partial(measure_paced, 2 * window_ms),
        ),
        busy("W4", "32 at a time, a small answer in one piece", "json", 32),
        Workload(
            "C",
            "W4 with a new connection for each request",
            partial(measure_connections, window_ms),
            has_direct=False,
        ),
        Workload("K", "1,000 connections at once, a small answer each", measure_crowd),
        Workload(
            "M",
            "MiB idle (parent and worker), 1,000 idle streams, after 2,000 streams of 300 KB",
            measure_memory,
            has_direct=False,
            is_steady=True,
        ),
    ]
    return {row.name: row for row in rows}
