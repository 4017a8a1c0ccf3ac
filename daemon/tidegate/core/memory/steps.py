"""The ways to reclaim memory, which the watchdog orders and a worker carries out."""

from __future__ import annotations

from enum import Enum


class ReclaimStep(Enum):
    """A way to reclaim memory. `core.memory.policy` has the order."""

    TRIM = "tidy"  # caches, idle connections, a trim of the heap: no run loses anything
    KEPT = "kept"  # what no reader wants just now, until the ledger is half full
    STALE = "stale"  # abandoned, finished and not being read, or stuck, for long enough
    STALLED = "stalled"  # runs whose every reader has read nothing for long enough
    FINISHED = "finished"  # every finished run without readers
    BACKGROUND = "background"  # runs that go on without readers
    WINDOWS = "windows"  # of each live run what its readers have had
