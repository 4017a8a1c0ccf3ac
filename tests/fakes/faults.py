"""A call to the system that fails once, the Nth time, in the process that plants it.

`plant` replaces what the watchdog's code reaches the system through: `socket.send`, `os.kill`,
`subprocess.Popen`, and every way to open a file. It counts from the moment the watchdog's loop
begins; files from the moment the first worker is ready, for a config that cannot be read at the
start is a reason to end. That it has failed is in the log.
"""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from tidegate.watchdog.fleet.dispatcher import Dispatcher
from tidegate.watchdog.watchdog import Watchdog

_log = logging.getLogger("faults")


class Fault:
    """Counts calls, and fails the Nth."""

    def __init__(self, call: str, nth: int, error: str) -> None:
        self.call, self.nth, self.error = call, nth, error
        self.is_armed = False
        self._seen = 0
        self._lock = threading.Lock()

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which fails when it is its turn."""

        def call(*arguments: Any, **options: Any) -> Any:
            if self.is_armed:
                self._count()
            return real(*arguments, **options)

        return call

    def _count(self) -> None:
        with self._lock:
            self._seen += 1
            is_due = self._seen == self.nth
        if is_due:
            _log.warning("planted: %s number %d fails: %s", self.call, self.nth, self.error)
            number = getattr(errno, self.error)
            raise OSError(number, os.strerror(number))


def plant(call: str, nth: int, error: str) -> None:
    """Have the Nth `call` ("send", "kill", "spawn", "open") of a watchdog fail with this errno."""
    fault = Fault(call, nth, error)
    any_os: Any = os
    if call == "send":
        socket.socket.send = fault.wrap(socket.socket.send)  # type: ignore[method-assign]
    elif call == "kill":
        any_os.kill = fault.wrap(os.kill)
    elif call == "spawn":
        any_subprocess: Any = subprocess
        any_subprocess.Popen = fault.wrap(subprocess.Popen)
    elif call == "open":
        any_io: Any = io
        any_builtins: Any = builtins
        any_os.open = fault.wrap(os.open)
        any_io.open = any_builtins.open = fault.wrap(io.open)
    else:
        raise ValueError(call)
    place: Any = Dispatcher if call == "open" else Watchdog
    name = "_became_ready" if call == "open" else "serve"
    former = getattr(place, name)

    def armed(*arguments: Any) -> Any:
        if call != "open":
            fault.is_armed = True
        try:
            return former(*arguments)
        finally:
            fault.is_armed = True

    setattr(place, name, armed)
