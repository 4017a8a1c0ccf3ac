"""A heap of deadlines: what it costs to look depends on what is due, not on how many there are.

Each key has one deadline at most. Moving or dropping one leaves its old place in the heap stale;
stale places are skipped when they come up and are swept out when they outnumber the live ones.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)

_COMPACT_ABOVE = 64  # below this many places a compaction is not worth its while


class Watched(Hashable, Protocol):
    """An object with clocks: a relay, a subscriber, a WebSocket."""

    def check(self, now_s: float) -> float | None:
        """Look at them; returns when to look again, None when there is nothing to see."""


class Deadlines(Generic[K]):
    """Holds when each key is due, in seconds on whatever clock the caller uses."""

    __slots__ = ("_due", "_heap", "_order")

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int, K]] = {}  # the one place of each that is not stale
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0  # breaks ties, so that keys are never compared

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, due_s: float) -> None:
        """Set or move the deadline of `key`."""
        current = self._due.get(key)
        if current is None or current[0] != due_s:
            self._place(key, due_s)

    def set_earlier(self, key: K, due_s: float) -> bool:
        """Set the deadline unless there is an earlier one; returns whether it was set."""
        current = self._due.get(key)
        if current is not None and current[0] <= due_s:
            return False
        self._place(key, due_s)
        return True

    def _place(self, key: K, due_s: float) -> None:
        self._order += 1
        place = self._due[key] = (due_s, self._order, key)
        heappush(self._heap, place)
        self._compact()

    def drop(self, key: K) -> None:
        """Drop the deadline of `key`, if it has one."""
        if self._due.pop(key, None) is not None:
            self._compact()

    def next_s(self) -> float | None:
        """Find the earliest deadline."""
        while self._heap and self._is_stale(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now_s: float, most: int = 1_000_000) -> list[K]:
        """Remove and return what is due, earliest first, at most `most` keys."""
        due: list[K] = []
        while len(due) < most and (first_s := self.next_s()) is not None and first_s <= now_s:
            key = heappop(self._heap)[2]
            del self._due[key]
            due.append(key)
        return due

    def _is_stale(self, place: tuple[float, int, K]) -> bool:
        return self._due.get(place[2]) is not place

    def _compact(self) -> None:
        if len(self._heap) > _COMPACT_ABOVE and len(self._heap) > 2 * len(self._due):
            self._heap = list(self._due.values())
            heapify(self._heap)
