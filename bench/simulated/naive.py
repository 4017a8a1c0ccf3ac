"""The rules that others go by, to see what they would have made of the same memory.

Each looks at plain resident memory, the two of growth every five minutes and from the beginning.
"""

from __future__ import annotations

from tidegate.core.settings import MIB

HOUR_S = 3600.0
SAMPLE_S = 300.0
WINDOW = 48
RISES = 5
SLOPE_BYTES_PER_H = MIB
LIMIT_SHARE = 0.8
LIMIT_EVERY_S = 60.0


class FiveRises:
    """Five samples in a row, each above the one before."""

    name = "five rises"

    def __init__(self) -> None:
        self._last: int | None = None
        self._rises = 0

    def sees(self, rss_bytes: int) -> bool:
        """Tell whether that is an alarm."""
        rose = self._last is not None and rss_bytes > self._last
        self._last = rss_bytes
        self._rises = self._rises + 1 if rose else 0
        if self._rises < RISES:
            return False
        self._rises = 0
        return True


class PlainSlope:
    """Least squares over four hours say more than 1 MiB/h. An alarm when it begins to."""

    name = "plain slope"

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._alarmed = False

    def sees(self, rss_bytes: int) -> bool:
        """Tell whether that is an alarm."""
        self._samples = [*self._samples, rss_bytes][-WINDOW:]
        former, self._alarmed = self._alarmed, False
        if len(self._samples) == WINDOW:
            middle = (WINDOW - 1) / 2
            over = sum((n - middle) * value for n, value in enumerate(self._samples))
            under = sum((n - middle) ** 2 for n in range(WINDOW))
            self._alarmed = over / under * HOUR_S / SAMPLE_S > SLOPE_BYTES_PER_H
        return self._alarmed and not former
