"""Every signal there is, sent to a real watchdog and to its worker."""

from __future__ import annotations

import os
import signal

from fakes.gateway import StartGateway
from fakes.machine import wait_until
from tidegate.watchdog import signals

# What a thread does wrong itself, KILL, and what stops the process until CONT.
ENDING = {
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGKILL),
    *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
}
STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


def test_no_signal_ends_the_watchdog_that_does_not_mean_to(gateway: StartGateway) -> None:
    """After each of them it answers, with the same worker; SIGUSR1 leaves its stacks in the log."""
    running = gateway()
    worker = running.worker_pid()
    for number in sorted(signal.valid_signals() - ENDING - STOPPING - {signal.SIGUSR2}):
        os.kill(running.pid, number)
        assert running.worker_pid() == worker, signals.name_of(number)
    running.wait_logged("Current thread")
    running.wait_logged("watchdog.py")
    running.wait_logged("SIGALRM means nothing to tidegate")
    running.wait_logged("config reloaded: nothing changed")


def test_no_signal_ends_a_worker_but_a_fault_and_kill(gateway: StartGateway) -> None:
    """What is meant for the watchdog, or for another program, does nothing to a worker."""
    running = gateway()
    worker = running.worker_pid()
    for number in sorted(signal.valid_signals() - ENDING):
        os.kill(worker, number)
        assert running.is_ready(), signals.name_of(number)
    assert running.worker_pid() == worker
    running.wait_logged("Current thread")


def test_an_upgrade_that_is_sent_to_all_of_them(gateway: StartGateway) -> None:
    """`pkill -USR2 tidegate` reaches the worker too, which goes on until the new one serves."""
    running = gateway()
    worker = running.worker_pid()
    for pid in (worker, running.pid):
        os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: running.worker_pid() != worker, 30, "a worker of the new program serves")
    assert "lost" not in running.log.read_text()


def test_three_signals_stop_it(gateway: StartGateway) -> None:
    """TERM, INT and QUIT are a stop: it ends as asked."""
    for number in sorted(STOPPING):
        running = gateway()
        os.kill(running.pid, number)
        assert running.process.wait(30) == 0
