"""A reload of real processes: a signal, the file, a new address, and what systemd hears."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import msgspec
import pytest

from fakes.machine import wait_until
from tidegate.core.protocol.reload import Reloaded
from watchdog.daemon_rig import LIMIT_S, Daemon
from watchdog.manager_rig import Manager

pytestmark = pytest.mark.processes


def test_a_new_address_is_answered_when_the_new_worker_serves_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    """The reply names the worker, and a client that reads it can connect at once."""
    daemon.start()
    path = tmp_path / "door.sock"
    daemon.write(listen=["127.0.0.1:0", f"unix:{path}"])
    reply = daemon.ask("reload")
    assert reply.ok, reply.error
    result = msgspec.json.decode(reply.result, type=Reloaded)
    assert result.generation == 2
    assert [change.text() for change in result.changes] == [
        f"listen: 127.0.0.1:0 → 127.0.0.1:0, unix:{path}"
    ]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(4096).endswith(b"2")


@pytest.mark.parametrize("way", ["verb", "signal", "worker"])
def test_reload_reaches_the_worker(daemon: Daemon, way: str) -> None:
    """`reload`, SIGHUP and a changed file all validate and pass the config on."""
    daemon.start()
    daemon.write(allowed_hosts=["box.example"])
    if way == "verb":
        assert daemon.ask("reload").ok
    elif way == "signal":
        daemon.signal(signal.SIGHUP)
    else:
        daemon.get("/config")
    wait_until(lambda: "config reloaded" in daemon.log(), LIMIT_S, "it is reloaded")
    assert daemon.status()["generation"] == 1


def test_changed_listen_moves_without_a_gap(daemon: Daemon, tmp_path: Path) -> None:
    """A new address is opened, a new generation takes it over, and the old one is closed."""
    daemon.start("--drain-s", "0.2")
    former = daemon.address
    path = tmp_path / "door.sock"
    daemon.write(listen=[f"unix:{path}"])
    assert daemon.ask("reload").ok
    assert daemon.status()["listen"] == [f"unix:{path}"]
    assert daemon.status()["generation"] == 2
    wait_until(
        lambda: "no longer listening" in daemon.log(), LIMIT_S, "the former socket is closed"
    )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(former)
    assert path.is_socket()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not path.exists()


def test_a_reload_is_announced_and_ended(daemon: Daemon, tmp_path: Path) -> None:
    """The service manager hears RELOADING and then READY, also of one that is refused."""
    manager = Manager(tmp_path / "notify")
    daemon.environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    daemon.start()
    wait_until(lambda: manager.states() == ["READY"], LIMIT_S, "it is ready")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: manager.states() == ["READY", "RELOADING", "READY"], LIMIT_S, "it is told")
    daemon.write(nonsense=1)
    assert not daemon.ask("reload").ok
    wait_until(lambda: manager.states()[3:] == ["RELOADING", "READY"], LIMIT_S, "it is told again")
    manager.close()
