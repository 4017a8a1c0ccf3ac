"""The last two hours of memory, for the bundles: one entry for each ten seconds.

Packed, because 720 objects of five numbers would cost the watchdog four times as much as the 52 KiB
that they are. Of each ten seconds the sample with the highest use stays.
"""

from __future__ import annotations

from collections import deque
from struct import Struct

EVERY_S = 10.0
KEPT = 720  # two hours
COLUMNS = ("at", "used_bytes", "worker_rss_bytes", "ledger_bytes", "level")
_ENTRY = Struct("<dQQQB")  # of those


class Samples:
    """The newest samples. `rows` gives them oldest first, in the order of COLUMNS."""

    def __init__(self) -> None:
        self._entries: deque[bytes] = deque(maxlen=KEPT)
        self._next_s = float("-inf")  # when the next one begins

    def __repr__(self) -> str:
        return f"<Samples {len(self)} of {KEPT}>"

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self,
        now_s: float,
        at: float,
        *,
        used_bytes: int,
        worker_rss_bytes: int,
        ledger_bytes: int,
        level: int,
    ) -> None:
        """Add a sample. `now_s` is monotonic, `at` Unix seconds."""
        if now_s >= self._next_s or now_s < self._next_s - EVERY_S:
            self._next_s = now_s + EVERY_S
        elif used_bytes <= _ENTRY.unpack(self._entries[-1])[1]:
            return
        else:
            self._entries.pop()
        entry = _ENTRY.pack(round(at, 1), used_bytes, worker_rss_bytes, ledger_bytes, level)
        self._entries.append(entry)

    def rows(self) -> list[tuple[float, int, int, int, int]]:
        """List every entry, oldest first."""
        return [_ENTRY.unpack(entry) for entry in self._entries]
