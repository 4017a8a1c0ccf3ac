"""What waits to be written into a store: bounded, in order, each with its size and its age."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

BATCH_BYTES = 512 * 1024
_SPARE_BYTES = 512 * 1024  # for what was made smaller
T = TypeVar("T")


class StoreQueue(Generic[T]):
    """The items. It knows no lock: the thread's guards all that changes it."""

    def __init__(self, smaller: Callable[[T], tuple[T, int]] | None = None) -> None:
        """`smaller` makes of an item one that may find room where it did not, with its size."""
        self.waiting_bytes = 0
        self.dropped_bytes = 0
        self._smaller = smaller
        self._items: deque[tuple[T, int, float]] = deque()

    def __repr__(self) -> str:
        return f"<StoreQueue {len(self)} of {self.waiting_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._items)

    def put(self, items: Sequence[tuple[T, int]], most_bytes: int) -> None:
        """Add items, each with its size; what is beyond `most_bytes` is dropped and counted.

        Where an item can be made smaller, that finds a little room yet.
        """
        now_s = time.monotonic()
        for item, size in items:
            room_bytes = most_bytes - self.waiting_bytes
            kept, kept_bytes = item, size
            if size > room_bytes and self._smaller is not None:
                kept, kept_bytes = self._smaller(item)
                room_bytes += _SPARE_BYTES
            if kept_bytes > room_bytes:
                self.dropped_bytes += size
                continue
            self.dropped_bytes += size - kept_bytes
            self._items.append((kept, kept_bytes, now_s))
            self.waiting_bytes += kept_bytes

    def since_s(self, now_s: float) -> float:
        """When the first of them came (monotonic); `now_s` where there is none."""
        try:
            return self._items[0][2]
        except IndexError:
            return now_s

    def first(self) -> tuple[list[T], int]:
        """Give as many of the first ones as make a batch, and their size; they stay."""
        batch: list[T] = []
        size = 0
        for item, item_bytes, _ in self._items:
            if batch and size + item_bytes > BATCH_BYTES:
                break
            batch.append(item)
            size += item_bytes
        return batch, size

    def take(self, count: int, *, dropped: bool) -> int:
        """Take so many out, which are written or given up; their size."""
        size = sum(self._items.popleft()[1] for _ in range(count))
        self.waiting_bytes -= size
        if dropped:
            self.dropped_bytes += size
        return size
