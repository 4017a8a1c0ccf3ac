"""What the command line asks of a watchdog with real workers, and the answers."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from fakes.machine import wait_until
from watchdog.daemon_rig import LIMIT_S, Daemon, is_alive

pytestmark = pytest.mark.processes


def test_sweep_answers_what_it_freed(daemon: Daemon) -> None:
    """`sweep` reports runs and bytes, and the status remembers them."""
    daemon.start()
    daemon.get("/ledger?1")
    assert daemon.result("sweep") == {"runs": 1, "bytes": 1024 * 1024, "reasons": {}}
    wait_until(
        lambda: daemon.status()["swept"]["bytes"] == 1024 * 1024, LIMIT_S, "it is remembered"
    )
    assert daemon.status()["swept"]["last_reason"] == "told to"


def test_control_clients_are_bounded(daemon: Daemon) -> None:
    """Silent and babbling clients do not keep `status` from being answered."""
    daemon.start()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(60)]
    try:
        for client in silent:
            client.connect(str(daemon.directory / "control.sock"))
        silent[-1].sendall(b"x" * 5000)
        assert daemon.status()["state"] == "serving"
    finally:
        for client in silent:
            client.close()


def test_stop_by_command_answers_when_it_is_over(daemon: Daemon) -> None:
    """`stop` is answered at the end, when the worker is gone."""
    daemon.start("--drain-s", "0.2")
    pid = daemon.worker()["pid"]
    assert daemon.ask("stop").ok
    assert not is_alive(pid)
    assert daemon.wait() == 0


def test_status_does_not_wait_for_a_worker_that_hangs(daemon: Daemon) -> None:
    """It is answered with the age of the last heartbeat."""
    daemon.start()
    pid = daemon.worker()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(
            lambda: daemon.status()["worker"]["heartbeat_age_s"] > 2, LIMIT_S, "it tells the age"
        )
    finally:
        os.kill(pid, signal.SIGCONT)


def test_memory_is_read_when_it_is_asked_for(daemon: Daemon) -> None:
    """What the status says of a worker is no older than the request, whatever the tick."""
    daemon.start(timing={"tick_s": 60.0, "gap_s": 300.0})
    former = daemon.worker()["rss_bytes"]
    daemon.get("/grow?50")
    wait_until(
        lambda: daemon.worker()["rss_bytes"] > former + 45 * 1024 * 1024, LIMIT_S, "it is seen"
    )
