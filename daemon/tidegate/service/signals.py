"""Signals as one more thing that the loop waits for: a handler notes one, and the loop wakes."""

from __future__ import annotations

import selectors
import signal
import socket
import threading
from collections.abc import Callable

# SIGCHLD only has to wake the loop, which looks for dead workers on every turn.
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)

# What a thread does wrong itself must end it wherever it happens.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}


def start_aside(thread: threading.Thread) -> None:
    """Start a thread that takes no signals, which `Signals.hold` could not make wait.

    Raises RuntimeError when the system has no more threads.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class Signals:
    """Hands the numbers of the signals that came to `on_signals`. `close` it when done."""

    def __init__(
        self, selector: selectors.BaseSelector, on_signals: Callable[[list[int]], None]
    ) -> None:
        self._on_signals = on_signals
        self._came: list[int] = []  # the wake-up alone may be full, and then says nothing
        self._wakeup, self._writer = socket.socketpair()
        for end in (self._wakeup, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in HEARD:
            signal.signal(number, self._note)
        self.release()  # an upgrade let them wait
        selector.register(self._wakeup, selectors.EVENT_READ, self._woken)

    def _note(self, number: int, _frame: object) -> None:
        if self._came.count(number) < 2:  # a second stop is another word than the first
            self._came.append(number)

    def _woken(self, _mask: int) -> None:
        self._wakeup.recv(4096)
        came, self._came = self._came, []
        self._on_signals(came)

    def hold(self) -> bool:
        """Let those wait that come from now on. False, and none waits, if one was not heard yet."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        if not self._came:
            return True
        self.release()
        return False

    def release(self) -> None:
        """Hear them again."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)

    def close(self) -> None:
        """Wake nobody any more."""
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._writer.close()
