"""The pause of a store that failed: how long it is, why, and what it cost."""

from __future__ import annotations

import logging
import time

PAUSE_S = 60.0
_log = logging.getLogger(__name__)


class StorePause:
    """Whether a store is paused. Written by one thread, read by others."""

    def __init__(self, name: str) -> None:
        self.why: str | None = None  # until it is known that all is well again
        self.is_of_hang = False
        self.over_s = 0.0  # monotonic
        self._name = name
        self._dropped_bytes = 0  # before it

    def __repr__(self) -> str:
        return f"<StorePause {self._name} why={self.why!r}>"

    def lasts(self, now_s: float) -> bool:
        """Tell whether the store is to be left alone; `now_s` is monotonic."""
        return now_s < self.over_s

    def begin(self, why: str, dropped_bytes: int, *, is_of_hang: bool = False) -> bool:
        """Begin a pause; False if there is one already, which gets no longer.

        `dropped_bytes` is what was lost until now.
        """
        now_s = time.monotonic()
        is_new = not self.lasts(now_s)
        if self.why is None:
            self._dropped_bytes = dropped_bytes
            _log.error("the %s is paused, and tried again each %g s: %s", self._name, PAUSE_S, why)
        self.is_of_hang = is_of_hang or (self.is_of_hang and not is_new)
        self.why = why
        if is_new:
            self.over_s = now_s + PAUSE_S
        return is_new

    def end(self, dropped_bytes: int) -> None:
        """End it, if there is one: the store was used, and all was well."""
        if self.why is None:
            return
        lost = (dropped_bytes - self._dropped_bytes) // 1024
        _log.info("the %s is kept again; %d KiB were not written", self._name, lost)
        self.why, self.over_s, self.is_of_hang = None, 0.0, False
