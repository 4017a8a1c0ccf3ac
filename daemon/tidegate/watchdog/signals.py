"""Signals as one more thing that the loop waits for: a handler notes one, and the loop wakes.

No signal ends the watchdog or a worker by its default action, for one is easily sent to the wrong
process, or by a `pkill` that means another program. What has no meaning here is heard and logged by
the watchdog, and ignored by a worker. What stays as the system has it: KILL and STOP, the stops of
a terminal, what does no harm (CHLD, CONT, URG, WINCH), and what a thread does wrong itself.
"""

from __future__ import annotations

import faulthandler
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from tidegate.watchdog.faults import Handler

# What a thread does wrong itself must end it wherever it happens; faulthandler writes its stacks.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
STACKS = signal.SIGUSR1  # faulthandler writes where every thread stands, and all goes on
_LEFT_ALONE = _FAULTS | {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores both, and has errors in their place
    STACKS,
}
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
# SIGCHLD only has to wake the loop, which looks for dead workers on every turn.
HEARD = frozenset(signal.valid_signals() - _LEFT_ALONE)
_HELD = HEARD | {STACKS}


def hold_early() -> None:
    """Let all wait that `Signals` hears, from the first moment of a watchdog until it is there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


def start_aside(thread: threading.Thread) -> None:
    """Start a thread that takes no signals, which `Signals.hold` could not make wait.

    Raises RuntimeError when the system has no more threads.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def write_stacks_when_asked() -> None:
    """Have SIGUSR1 write the stacks of all threads to standard error, which the log follows."""
    faulthandler.enable()  # the service manager's SIGABRT leaves them there too
    faulthandler.register(STACKS, all_threads=True)


def ignore_all() -> None:
    """What a worker does: what is meant for the watchdog may be sent to a whole group."""
    for number in HEARD - {signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def name_of(number: int) -> str:
    """What a signal is called; a real-time signal has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Signals:
    """Hands the numbers of the signals that came to `on_signals`. `close` it when done."""

    def __init__(
        self, selector: selectors.BaseSelector, on_signals: Callable[[list[int]], None]
    ) -> None:
        self._selector = selector
        self._on_signals = on_signals
        self._came: list[int] = []  # the wake-up alone may be full, and then says nothing
        self._open()
        for number in HEARD:
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
        """What wakes the loop failed: a new one, for a deaf watchdog could not be stopped."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(self._wakeup)
        former = self._wakeup, self._writer
        self._open()
        for end in former:
            end.close()

    def _note(self, number: int, _frame: object) -> None:
        if self._came.count(number) < 2:  # a second stop is another word than the first
            self._came.append(number)

    def _woken(self, _mask: int) -> None:
        with suppress(BlockingIOError):
            self._wakeup.recv(4096)
        came, self._came = self._came, []
        self._on_signals(came)

    def hold(self) -> bool:
        """Let those wait that come from now on. False, and none waits, if one was not heard yet."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        if not self._came:
            return True
        self.release()
        return False

    def release(self) -> None:
        """Hear them again."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)

    def close(self) -> None:
        """Wake nobody any more."""
        signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._writer.close()
