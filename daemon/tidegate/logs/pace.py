"""Says when a growing total is logged: the first few times at once, then once a minute.

What comes steadily is logged as sums, so that hours of it cost sixty lines each and no figure is
missing; what came in a burst is logged as soon as it seems to be over.
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
        self._logged = 0
        self._logged_s = _LONG_AGO_S
        self._grew_s = _LONG_AGO_S

    def __repr__(self) -> str:
        return f"<Pace logged={self._logged}>"

    def grew(self, now_s: float) -> None:
        """Note that something was added to the total."""
        if now_s - self._grew_s >= EVERY_S:
            self._logged = 0
        self._grew_s = now_s

    def logged(self, now_s: float) -> None:
        """Note that the total was logged, and begins again at none."""
        self._logged += 1
        self._logged_s = now_s

    @property
    def due_s(self) -> float:
        """Return from when on it may be logged, if it does not grow before."""
        if self._logged < FEW:
            return self._logged_s + LEAST_S
        return min(self._logged_s + EVERY_S, max(self._logged_s + LEAST_S, self._grew_s + QUIET_S))
