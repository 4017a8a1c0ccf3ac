"""The fleet as real processes: signals, stacks, and connections that outlive a worker."""

from __future__ import annotations

import os
import re
import signal
import threading

import pytest

from fakes.machine import wait_until
from watchdog.daemon_rig import HANGS, LIMIT_S, Daemon, is_alive

pytestmark = pytest.mark.processes


def test_killed_worker_is_replaced_and_no_connection_refused(daemon: Daemon) -> None:
    """kill -9 of the worker: the listening socket stays open and the next generation answers."""
    daemon.start()
    refused: list[OSError] = []
    answers: list[str] = []
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            try:
                answers.append(daemon.get())
            except OSError as error:
                refused.append(error)

    client = threading.Thread(target=connect)
    client.start()
    try:
        wait_until(lambda: "1" in answers, LIMIT_S, "the first generation answers")
        os.kill(daemon.worker()["pid"], signal.SIGKILL)
        wait_until(lambda: "2" in answers, LIMIT_S, "the second generation answers")
    finally:
        over.set()
        client.join()
    assert refused == []
    status = daemon.status()
    assert status["state"] == "degraded"
    assert [(r["exit"], r["reason"]) for r in status["restarts"]] == [(-9, "killed by SIGKILL")]


def test_stopped_worker_writes_its_stacks_and_is_replaced(daemon: Daemon) -> None:
    """A worker without a heartbeat is continued for its stacks, killed, and replaced."""
    daemon.start(timing=HANGS)
    pid = daemon.worker()["pid"]
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: daemon.status()["generation"] == 2, LIMIT_S, "the replacement serves")
    wait_until(lambda: not is_alive(pid), LIMIT_S, "the hung worker is gone")
    daemon.wait_logged("Current thread")
    assert "no heartbeat for" in daemon.status()["restarts"][0]["reason"]


def test_hanging_loop_is_replaced_while_status_answers(daemon: Daemon) -> None:
    """A worker whose loop does not turn never keeps the watchdog from answering."""
    daemon.start(timing=HANGS)
    daemon.get("/hang")
    assert daemon.status()["generation"] == 1
    wait_until(lambda: daemon.status()["generation"] == 2, LIMIT_S, "the replacement serves")
    wait_until(
        lambda: re.search(r"time\.sleep|in act", daemon.log()), LIMIT_S, "its stack is logged"
    )


def test_recycle_keeps_every_connection(daemon: Daemon) -> None:
    """While a new generation takes over, each connection is answered by one of the two."""
    daemon.start("--drain-s", "0.3")
    answers: list[str] = []
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            answers.append(daemon.get())

    client = threading.Thread(target=connect)
    client.start()
    try:
        assert daemon.ask("recycle").ok
    finally:
        wait_until(lambda: "2" in answers, LIMIT_S, "the second generation answers")
        over.set()
        client.join()
    assert set(answers) == {"1", "2"}
    status = daemon.status()
    assert (status["generation"], status["recycles"], len(status["workers"])) == (2, 1, 1)
    assert status["restarts"] == []


@pytest.mark.long
def test_stuck_worker_channel_never_blocks(daemon: Daemon) -> None:
    """A worker that reads nothing while it is asked a thousand times keeps no other waiting."""
    daemon.start(timing={"beat_limit_s": 60.0, "reply_s": 0.1})
    os.kill(daemon.worker()["pid"], signal.SIGSTOP)
    for _ in range(40):
        assert daemon.ask("sweep").error == "worker 1 did not answer sweep within 0.1 s"
    assert daemon.status()["generation"] == 1
