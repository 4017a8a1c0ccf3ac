"""What the service manager and the terminal hear of a start and an end."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from fakes.machine import wait_until
from watchdog.daemon_rig import LIMIT_S, Daemon

pytestmark = pytest.mark.processes


def test_first_start_tells_where_it_listens(daemon: Daemon) -> None:
    """The banner gets the port the system chose, and the status says serving."""
    daemon.start()
    assert daemon.address[1] != 0
    assert daemon.get() == "1"
    wait_until(
        lambda: daemon.status()["runs"]["total"] == 1, LIMIT_S, "the heartbeat counted the run"
    )
    status = daemon.status()
    assert status["state"] == "serving"
    assert status["listen"] == ["{}:{}".format(*daemon.address)]
    assert status["watchdog"]["pid"] == daemon.pid
    assert status["worker"]["generation"] == 1
    assert status["memory"]["budget_source"] == "setting memory.budget"
    assert status["memory"]["used_bytes"] > status["watchdog"]["rss_bytes"] > 0
    assert (daemon.directory / "control.sock").stat().st_mode & 0o777 == 0o600


def test_notifications_tell_the_truth(daemon: Daemon, tmp_path: Path) -> None:
    """systemd hears READY once a worker serves, pings while it does, and STOPPING at the end."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        daemon.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}
        daemon.start(until_ready=False)
        heard = []

        def hear_until(text: str) -> None:
            while not heard or not heard[-1].startswith(text):
                heard.append(manager.recv(4096).decode())

        hear_until("READY=1")
        assert not any(text.startswith("STOPPING") for text in heard)
        hear_until("STATUS=level 0, ")
        hear_until("WATCHDOG=1")
        daemon.signal(signal.SIGHUP)
        hear_until("RELOADING=1\nMONOTONIC_USEC=")
        hear_until("READY=1")
        daemon.signal(signal.SIGTERM)
        hear_until("EXTEND_TIMEOUT_USEC=")
        assert "STOPPING=1" not in heard  # it is final, and streams may still be finishing
        hear_until("STOPPING=1")
        hear_until("BARRIER=1")
    assert daemon.wait() == 0
