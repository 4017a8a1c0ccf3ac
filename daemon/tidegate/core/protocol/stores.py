"""How the journal and the history are, as a worker tells it and `tidegate status` shows it."""

from __future__ import annotations

from msgspec import Struct


class StoreState(Struct, frozen=True, kw_only=True):
    """One store. Sizes are bytes, times Unix seconds."""

    keep: str  # "answers", "ends" or "off"; of the history "rows" or "off"
    place: str  # "memory" or "disk"
    bytes: int = 0  # what its files take
    runs: int = 0
    oldest: float | None = None
    paused: str | None = None  # why nothing is written just now
    lag_s: float = 0.0  # how long the oldest of what is yet to be written has been waiting
    waiting_bytes: int = 0
    writes: int = 0  # batches, since the start
    written_bytes: int = 0  # of what was asked to be kept, since the start
    dropped_bytes: int = 0  # what could not be written, since the start
    set_aside: str | None = None  # the damaged file that was put aside last
