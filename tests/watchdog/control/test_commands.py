"""What the command line asks of a watchdog with real workers, and the answers."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest

from watchdog.daemon_rig import SILENT, Daemon, is_alive, wait_until

pytestmark = pytest.mark.processes


def test_runs_of_both_generations_are_listed(daemon: Daemon) -> None:
    """While one drains, `runs` shows what both hold, newest first."""
    daemon.start("--drain-s", "20")
    assert daemon.ask("recycle", wait=False).ok
    assert [run["id"] for run in daemon.result("runs")["data"]] == ["run-2", "run-1"]


def test_models_are_those_of_the_serving_generation(daemon: Daemon) -> None:
    """While one drains, `models` shows what the newer one knows; alone, a draining one answers."""
    daemon.start("--drain-s", "20")
    assert [upstream["name"] for upstream in daemon.result("models")["data"]] == ["box1"]
    assert daemon.ask("recycle", wait=False).ok
    assert [upstream["name"] for upstream in daemon.result("models")["data"]] == ["box2"]
    assert daemon.ask("stop", wait=False).ok
    answered = daemon.result("models")
    assert answered == {"object": "list", "data": answered["data"], "aliases": []}
    assert [upstream["name"] for upstream in answered["data"]] == ["box2"]


def test_sweep_answers_what_it_freed(daemon: Daemon) -> None:
    """`sweep` reports runs and bytes, and the status remembers them."""
    daemon.start()
    daemon.get("/ledger?1")
    assert daemon.result("sweep") == {"runs": 1, "bytes": 1024 * 1024, "reasons": {}}
    wait_until(lambda: daemon.status()["swept"]["bytes"] == 1024 * 1024, "it is remembered")
    assert daemon.status()["swept"]["last_reason"] == "told to"


def test_worker_that_does_not_answer_is_named(daemon: Daemon) -> None:
    """A request has a limit, and the error says which worker was silent."""
    daemon.start("--mute", timing=SILENT)
    reply = daemon.ask("sweep")
    assert reply.error == "worker 1 did not answer sweep within 0.5 s"


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


def test_nonsense_requests_are_answered(daemon: Daemon) -> None:
    """A line that is no request and a verb that is none get an error."""
    daemon.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.directory / "control.sock"))
        client.sendall(b"{}\n")
        assert json.loads(client.recv(4096))["ok"] is False
    assert daemon.ask("dance").error == '"dance" is not a verb that this tidegate knows'


def test_stop_by_command_answers_when_it_is_over(daemon: Daemon) -> None:
    """`stop` is answered at the end, when the worker is gone."""
    daemon.start("--drain-s", "0.2")
    pid = daemon.worker()["pid"]
    assert daemon.ask("stop").ok
    assert not is_alive(pid)
    assert daemon.wait() == 0


def test_status_tells_what_is_not_what_was(daemon: Daemon) -> None:
    """A worker whose last heartbeat is older than a fifth of a second is asked for one."""
    daemon.start("--beat-s", "8")
    for served in range(1, 4):
        daemon.get()
        wait_until(lambda: daemon.status()["runs"]["total"] == served, "it is counted", 5)  # noqa: B023


def test_status_does_not_wait_for_a_worker_that_hangs(daemon: Daemon) -> None:
    """It is answered with the age of the last heartbeat."""
    daemon.start()
    pid = daemon.worker()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: daemon.status()["worker"]["heartbeat_age_s"] > 2, "it tells the age")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_former_worker_is_not_asked_to_beat(daemon: Daemon) -> None:
    """It would end at a message that it does not know."""
    daemon.start("--former", "--beat-s", "2")
    pid = daemon.worker()["pid"]
    for _ in range(5):
        assert daemon.status()["worker"]["pid"] == pid
    wait_until(lambda: daemon.status()["worker"]["heartbeat_age_s"] > 0.5, "its beat ages")
    assert daemon.worker()["pid"] == pid


def test_memory_is_read_when_it_is_asked_for(daemon: Daemon) -> None:
    """What the status says of a worker is no older than the request, whatever the tick."""
    daemon.start(timing={"tick_s": 60.0, "gap_s": 300.0})
    former = daemon.worker()["rss_bytes"]
    daemon.get("/grow?50")
    wait_until(lambda: daemon.worker()["rss_bytes"] > former + 45 * 1024 * 1024, "it is seen")
