"""The signal of the kernel or the service manager that memory is short."""

from __future__ import annotations

import logging
import os
import selectors
import time
from contextlib import suppress

from tidegate.machine import pressure
from tidegate.watchdog.faults import Handler
from tidegate.watchdog.guard.monitor import MemoryMonitor

_log = logging.getLogger(__name__)


class PressureSignal:
    """Tell the monitor of pressure, where it is signalled at all. `close` it when done."""

    def __init__(self, selector: selectors.BaseSelector, memory: MemoryMonitor) -> None:
        self._selector = selector
        self._memory = memory
        self._watch: pressure.PressureWatch | None = None
        try:
            self._watch = pressure.watch_from(os.environ)
        except pressure.PressureError as error:
            _log.warning("memory pressure is not signalled: %s", error)
        if self._watch is not None:
            handler = Handler("memory pressure", self._pressed, self.close)
            selector.register(self._watch, selectors.EVENT_READ, handler)

    def __repr__(self) -> str:
        return f"<PressureSignal is_open={self._watch is not None}>"

    def _pressed(self, _mask: int) -> None:
        assert self._watch is not None
        if self._watch.consume():
            self._memory.on_pressure(time.monotonic(), self._watch.source)

    def close(self) -> None:
        """Listen no more; the figures are read once a second anyway."""
        watch, self._watch = self._watch, None
        if watch is not None:
            with suppress(KeyError, ValueError, RuntimeError):  # the selector is closed
                self._selector.unregister(watch)
            watch.close()
