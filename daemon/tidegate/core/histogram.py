"""Durations counted by size, as Prometheus shows them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

# A chunk passes in tens of microseconds; a stalled loop shows in tens of milliseconds.
RELAY_BOUNDS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 1)
# From a model that is loaded (tenths) to a cold load from a slow disk (minutes).
FIRST_OUTPUT_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Histogram:
    """Counts durations by size; observing one touches two numbers and makes no object."""

    __slots__ = ("_bounds_s", "_counts", "_sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        """Count by `bounds_s`: the buckets' inclusive upper ends in seconds, ascending."""
        if not bounds_s or list(bounds_s) != sorted(set(bounds_s)):
            raise ValueError("the bounds of a histogram ascend")
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self._counts)

    @property
    def sum_s(self) -> float:
        """All of them together, in seconds."""
        return self._sum_s

    def buckets(self) -> list[tuple[str, float]]:
        """Give each upper end as Prometheus writes it, and how many durations were no longer."""
        ends = [*(repr(float(bound)) for bound in self._bounds_s), "+Inf"]
        return [(end, float(n)) for end, n in zip(ends, accumulate(self._counts), strict=True)]

    def __repr__(self) -> str:
        return f"<Histogram count={self.count} sum={self._sum_s:.6f}s>"
