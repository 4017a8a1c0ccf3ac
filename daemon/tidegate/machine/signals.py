"""Which signals mean something to a process of ours, and what happens to the rest.

No signal ends the watchdog or a worker by its default action, for one is easily sent to the wrong
process, or by a `pkill` that means another program. The watchdog handles and logs what has no
meaning here, and a worker ignores it. What stays as the system has it: KILL and STOP, the stops of
a terminal, what does no harm (CHLD, CONT, URG, WINCH), and what a thread does wrong itself.
"""

from __future__ import annotations

import faulthandler
import signal
import threading

# What a thread does wrong itself must end it wherever it happens; faulthandler writes its stacks.
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
STACKS = signal.SIGUSR1  # faulthandler writes where every thread stands, and all goes on
_LEFT_ALONE = _FAULTS | {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores both, and has errors in their place
    STACKS,
}
# SIGCHLD only has to wake the loop, which looks for dead workers on every turn.
HANDLED = frozenset(signal.valid_signals() - _LEFT_ALONE)
BLOCKED = HANDLED | {STACKS}


def block_early() -> None:
    """Block all that `Signals` handles, from a watchdog's first moment until it is there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


def start_without_signals(thread: threading.Thread) -> None:
    """Start a thread that receives no signals, which `Signals.hold` could not make wait.

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
    """Ignore, in a worker, what is meant for the watchdog: a whole group may be sent it."""
    for number in HANDLED - {signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
