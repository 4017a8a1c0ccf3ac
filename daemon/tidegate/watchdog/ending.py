"""When a watchdog's work is over, and why."""

from __future__ import annotations

import logging
import os
import time

UNREAPABLE_S = 5.0  # a process that SIGKILL cannot end hangs in the kernel; we go without it
_log = logging.getLogger(__name__)


class Ending:
    """Keep the exit code and its reason; 0 until something fails."""

    def __init__(self) -> None:
        self.exit_code = os.EX_OK
        self._why: str | None = None
        self._over_at_s: float | None = None

    def __repr__(self) -> str:
        return f"<Ending {self.text!r} over_at_s={self._over_at_s}>"

    def fail(self, why: str, exit_code: int = os.EX_TEMPFAIL) -> None:
        """Note why it cannot go on, and with which exit code that ends."""
        self._why, self.exit_code = why, exit_code

    def give_up(self, why: str) -> None:
        """Fail after it has begun, and log that at once."""
        _log.critical("giving up: %s", why)
        self.fail(why)

    def fail_at_once(self, why: str, exit_code: int) -> None:
        """Fail before anything has begun."""
        self.fail(why, exit_code)
        self.over()

    def over(self) -> None:
        """Note that nothing is left to be done but to reap what has ended."""
        self._over_at_s = time.monotonic()

    def is_over(self, *, is_reaped: bool) -> bool:
        """Tell whether it is over; `is_reaped`: no process of a worker is left."""
        if self._over_at_s is None:
            return False
        return is_reaped or time.monotonic() > self._over_at_s + UNREAPABLE_S

    @property
    def text(self) -> str:
        """Say why it ended, for the service manager."""
        return "stopped" if self.exit_code == os.EX_OK else f"failed: {self._why}"
