"""What a watchdog holds before its loop turns, and what keeps it from starting."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from fakes.machine import wait_until
from tidegate.watchdog import start
from watchdog.daemon_rig import LIMIT_S, Daemon

pytestmark = pytest.mark.processes


def test_second_instance_says_who_holds_the_pid_file(daemon: Daemon, tmp_path: Path) -> None:
    """The second watchdog of a runtime directory exits 75 and names the first."""
    daemon.start()
    second = Daemon(tmp_path)
    second.error_file = tmp_path / "second"
    second.start(until_ready=False)
    assert second.wait() == 75
    second.wait_logged(f"already running with process id {daemon.pid}")
    assert daemon.get() == "1"
    assert daemon.directory.joinpath("tidegate.pid").read_text() == f"{daemon.pid}\n"


def test_unusable_control_socket_exits_78(daemon: Daemon) -> None:
    """What cannot be replaced in the control socket's place is named, and nothing is left."""
    path = daemon.directory / "control.sock"
    path.mkdir()
    daemon.start(until_ready=False)
    assert daemon.wait() == 78
    daemon.wait_logged(f"cannot listen on {path}: ")
    assert not (daemon.directory / "tidegate.pid").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(errno.ENOSPC, 75), (errno.EMFILE, 75), (errno.EACCES, 78), (errno.ENOENT, 78), (None, 78)],
)
def test_a_shortage_is_no_mistake_of_the_configuration(error: int | None, code: int) -> None:
    """A service manager tries again after 75, and never after 78."""
    cause = None if error is None else OSError(error, os.strerror(error))
    assert start._exit_code(cause) == code


def test_log_file_takes_both_processes(daemon: Daemon, tmp_path: Path) -> None:
    """With a log file, the watchdog's lines and the worker's stacks are in it."""
    daemon.log_file = tmp_path / "tidegate.log"
    daemon.start()
    os.kill(daemon.worker()["pid"], signal.SIGUSR1)
    wait_until(
        lambda: "Current thread" in daemon.log_file.read_text(), LIMIT_S, "the stacks are there"
    )
    assert "worker 1 is ready" in daemon.log_file.read_text()


def test_worker_hears_nothing_of_the_service_manager(daemon: Daemon, tmp_path: Path) -> None:
    """NOTIFY_SOCKET, WATCHDOG_* and LISTEN_* never reach the worker; what Python reads does."""
    daemon.environment = {
        "NOTIFY_SOCKET": str(tmp_path / "none"),
        "WATCHDOG_USEC": "60000000",
        "LISTEN_FDS": "1",
        "LISTEN_PID": "1",
        "PYTHONHASHSEED": "7",
        "OTHER_KEY": "sk-1",  # whose it is, cannot be known
    }
    daemon.start()
    environ = Path(f"/proc/{daemon.worker()['pid']}/environ").read_bytes()
    assert b"PYTHONHASHSEED=7" in environ
    for name in (b"NOTIFY_SOCKET", b"WATCHDOG_", b"LISTEN_", b"OTHER_KEY"):
        assert name not in environ
