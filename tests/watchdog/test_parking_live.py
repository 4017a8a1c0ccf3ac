"""A config or an address that cannot be used ends the real watchdog, or parks it."""

from __future__ import annotations

import socket

import pytest

from fakes.machine import wait_until
from watchdog.daemon_rig import LIMIT_S, Daemon

pytestmark = pytest.mark.processes


def test_bad_config_exits_78(daemon: Daemon) -> None:
    """A config that is wrong at the start ends with 78 and a reason."""
    daemon.config.write_text("{")
    daemon.start(until_ready=False)
    assert daemon.wait() == 78
    daemon.wait_logged(str(daemon.config))


def test_taken_address_exits_75(daemon: Daemon) -> None:
    """An address that another program has ends with 75, its name and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        daemon.write(listen=[address])
        daemon.start(until_ready=False)
        assert daemon.wait() == 75
    daemon.wait_logged(f"cannot listen on {address}: another program listens there")


def test_parked_daemon_serves_once_the_config_is_mended(daemon: Daemon) -> None:
    """With a bad config it stays up, says why, and starts when told that it is mended."""
    daemon.config.write_text("{")
    daemon.start(park=True, until_ready=False)
    wait_until((daemon.directory / "control.sock").exists, LIMIT_S, "it answers")
    wait_until(lambda: daemon.status()["state"] == "parked", LIMIT_S, "it says so")
    assert str(daemon.config) in daemon.status()["reason"]
    assert not daemon.ask("reload").ok
    daemon.write()
    assert daemon.ask("reload").ok
    daemon.wait_ready()
    assert daemon.get() == "2"  # worker 1 only said why
    assert daemon.status()["reason"] is None
