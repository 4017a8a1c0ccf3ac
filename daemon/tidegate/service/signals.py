"""Signals as one more thing that the loop waits for: a handler does nothing but wake it up."""

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
        self, selector: selectors.BaseSelector, on_signals: Callable[[bytes], None]
    ) -> None:
        self._on_signals = on_signals
        self._wakeup, self._writer = socket.socketpair()
        for end in (self._wakeup, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in HEARD:
            signal.signal(number, lambda _number, _frame: None)
        self.release()  # an upgrade let them wait
        selector.register(self._wakeup, selectors.EVENT_READ, self._woken)

    def _woken(self, _mask: int) -> None:
        self._on_signals(self._wakeup.recv(4096))

    def hold(self) -> bool:
        """Let those wait that come from now on. False, and none waits, if one was not heard yet."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        try:
            self._wakeup.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
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
