"""Signals as one more thing that the loop waits for: a handler notes one, and the loop wakes."""

from __future__ import annotations

import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import suppress

from tidegate.machine.signals import BLOCKED, HANDLED
from tidegate.watchdog.faults import Handler

STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


def name_of(number: int) -> str:
    """Name a signal; a real-time signal has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Signals:
    """Hand the numbers of the signals that came to `on_signals`. `close` it when done."""

    def __init__(
        self, selector: selectors.BaseSelector, on_signals: Callable[[list[int]], None]
    ) -> None:
        self._selector = selector
        self._on_signals = on_signals
        self._came: list[int] = []  # the wake-up alone may be full, and then says nothing
        self._open()
        for number in HANDLED:
            signal.signal(number, self._note)
        self.release()  # an upgrade let them wait

    def _open(self) -> None:
        self._wakeup, self._writer = socket.socketpair()
        for end in (self._wakeup, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        handler = Handler("a signal", self._woken, self._open_again)
        self._selector.register(self._wakeup, selectors.EVENT_READ, handler)

    def _open_again(self) -> None:
        """Replace what wakes the loop, for a deaf watchdog could not be stopped."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(self._wakeup)
        former = self._wakeup, self._writer
        self._open()
        for end in former:
            end.close()

    def _note(self, number: int, _frame: object) -> None:
        if self._came.count(number) < 2:  # a second stop means something else than the first
            self._came.append(number)

    def _woken(self, _mask: int) -> None:
        with suppress(BlockingIOError):
            self._wakeup.recv(4096)
        came, self._came = self._came, []
        self._on_signals(came)

    def hold(self) -> bool:
        """Block signals from now on. Return False, and block none, if one has yet to be handled."""
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        if not self._came:
            return True
        self.release()
        return False

    def release(self) -> None:
        """Unblock them."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)

    def close(self) -> None:
        """Stop waking the loop."""
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._writer.close()
