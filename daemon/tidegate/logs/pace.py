"""Says when a growing total is logged: the first few times at once, then once a minute.

What comes steadily is told as sums, so that hours of it cost sixty lines each and no figure is
missing; what came in a burst is told as soon as it seems to be over.
"""

from __future__ import annotations

FEW = 5
LEAST_S = 1.0  # between two lines
EVERY_S = 60.0
QUIET_S = 5.0  # without anything new it is over, for now
_LONG_AGO_S = float("-inf")


class Pace:
    """Times the log lines of one total. Times are monotonic."""

    def __init__(self) -> None:
        self._told = 0
        self._told_s = _LONG_AGO_S
        self._grew_s = _LONG_AGO_S

    def __repr__(self) -> str:
        return f"<Pace told={self._told}>"

    def grew(self, now_s: float) -> None:
        """Note that something was added to the total."""
        if now_s - self._grew_s >= EVERY_S:
            self._told = 0
        self._grew_s = now_s

    def told(self, now_s: float) -> None:
        """Note that the total was logged, and begins again at none."""
        self._told += 1
        self._told_s = now_s

    @property
    def due_s(self) -> float:
        """Return from when on it may be logged, if it does not grow before."""
        if self._told < FEW:
            return self._told_s + LEAST_S
        return min(self._told_s + EVERY_S, max(self._told_s + LEAST_S, self._grew_s + QUIET_S))
