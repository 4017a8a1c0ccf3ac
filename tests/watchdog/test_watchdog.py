"""The watchdog and scripted workers as real processes. Its limits are scaled, see daemon_rig."""

from __future__ import annotations

import signal

import pytest

from fakes.machine import wait_until
from watchdog.daemon_rig import LIMIT_S, Daemon, is_alive

pytestmark = pytest.mark.processes


def test_killed_watchdog_leaves_no_worker(daemon: Daemon) -> None:
    """kill -9 of the watchdog ends the worker, and a new watchdog can start at once."""
    daemon.start()
    pid = daemon.worker()["pid"]
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    wait_until(lambda: not is_alive(pid), LIMIT_S, "the worker is gone")
    daemon.ready_file.unlink()
    daemon.start()
    assert daemon.get() == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_drains_and_exits_0(daemon: Daemon, number: signal.Signals) -> None:
    """SIGTERM and SIGINT let streams finish and end with exit code 0 and nothing left."""
    daemon.start("--drain-s", "0.3")
    pid = daemon.worker()["pid"]
    daemon.signal(number)
    assert daemon.wait() == 0
    assert not is_alive(pid)
    daemon.wait_logged("drains, for at most 2 s (stop)")
    assert not (daemon.directory / "control.sock").exists()
    assert not (daemon.directory / "tidegate.pid").exists()
