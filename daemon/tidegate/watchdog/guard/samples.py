"""The last two hours of memory, for bundles and the page: one entry for each ten seconds.

Packed, because 720 objects of six numbers would cost the watchdog four times as much as the 58 KiB
that they are. Of each ten seconds the sample with the highest use stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from struct import Struct, error

from tidegate.core.protocol.news import MemoryPoint

EVERY_S = 10.0
KEPT = 720  # two hours
COLUMNS = (
    "at",
    "used_bytes",
    "worker_rss_bytes",
    "ledger_bytes",
    "level",
    "unexplained_bytes",
)
_ENTRY = Struct("<dQQQBQ")  # of those
_Row = tuple[float, int, int, int, int, int]


class Samples:
    """The newest samples. `rows` gives them oldest first, in the order of COLUMNS."""

    def __init__(self, rows: Iterable[Sequence[float]] = ()) -> None:
        """Begin with the `rows` of a former program; what is no row of ours is left out."""
        self._entries: deque[bytes] = deque(maxlen=KEPT)
        self._next_s = float("-inf")  # when the next one begins
        for at, *counts in (row for row in rows if len(row) == len(COLUMNS)):
            try:
                self._entries.append(_ENTRY.pack(at, *map(int, counts)))
            except error:
                continue

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
        unexplained_bytes: int,
    ) -> None:
        """Add a sample. `now_s` is monotonic, `at` Unix seconds."""
        if now_s >= self._next_s or now_s < self._next_s - EVERY_S:
            self._next_s = now_s + EVERY_S
        elif used_bytes <= _ENTRY.unpack(self._entries[-1])[1]:
            return
        else:
            self._entries.pop()
        self._entries.append(
            _ENTRY.pack(
                round(at, 1),
                used_bytes,
                worker_rss_bytes,
                ledger_bytes,
                level,
                unexplained_bytes,
            )
        )

    def rows(self) -> list[_Row]:
        """List every entry, oldest first."""
        return [_ENTRY.unpack(entry) for entry in self._entries]

    def points(self, since: float) -> list[MemoryPoint]:
        """List what a page draws of the entries that are newer than `since`, oldest first.

        The last one still changes and is left out, unless there is no other.
        """
        newer: list[MemoryPoint] = []
        for entry in islice(reversed(self._entries), len(self._entries) > 1, None):
            at, used, _, ledger, _, unexplained = _ENTRY.unpack(entry)
            if at <= since:
                break
            newer.append(MemoryPoint(at, used, ledger, unexplained))
        return newer[::-1]
