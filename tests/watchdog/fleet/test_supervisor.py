"""The fleet as real processes: lost workers are replaced, recycles and drains do as decided."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest

from tidegate.core.memory.levels import usual_ledger_limit_bytes
from watchdog.daemon_rig import HANGS, Daemon, is_alive, wait_until

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
        wait_until(lambda: "1" in answers, "the first generation answers")
        os.kill(daemon.worker()["pid"], signal.SIGKILL)
        wait_until(lambda: "2" in answers, "the second generation answers")
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
    wait_until(lambda: daemon.status()["generation"] == 2, "the replacement serves")
    wait_until(lambda: not is_alive(pid), "the hung worker is gone")
    daemon.wait_logged("Current thread")
    assert "no heartbeat for" in daemon.status()["restarts"][0]["reason"]


def test_hanging_loop_is_replaced_while_status_answers(daemon: Daemon) -> None:
    """A worker whose loop does not turn never keeps the watchdog from answering."""
    daemon.start(timing=HANGS)
    daemon.get("/hang")
    assert daemon.status()["generation"] == 1
    wait_until(lambda: daemon.status()["generation"] == 2, "the replacement serves")
    wait_until(lambda: re.search(r"time\.sleep|in act", daemon.log()), "its stack is logged")


def test_worker_that_outlives_its_drain_is_killed(daemon: Daemon) -> None:
    """A stop does not last longer than its limit, even if the worker is stopped."""
    daemon.write(drain={"stop_limit_s": 0.2})
    daemon.start("--drain-s", "600")
    os.kill(daemon.worker()["pid"], signal.SIGSTOP)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    wait_until(lambda: re.search("still draining|no heartbeat", daemon.log()), "it is logged")


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
        wait_until(lambda: "2" in answers, "the second generation answers")
        over.set()
        client.join()
    assert set(answers) == {"1", "2"}
    status = daemon.status()
    assert (status["generation"], status["recycles"], len(status["workers"])) == (2, 1, 1)
    assert status["restarts"] == []


def test_recycle_without_wait_returns_when_the_new_one_serves(daemon: Daemon) -> None:
    """`--no-wait` returns while the former generation still drains, and a second is refused."""
    daemon.start("--drain-s", "20")
    assert daemon.ask("recycle", wait=False).ok
    status = daemon.status()
    assert [w["state"] for w in status["workers"]] == ["draining", "serving"]
    assert status["state"] == "recycling"
    refused = daemon.ask("recycle")
    assert (refused.ok, refused.error) == (False, "a recycle is under way")


def test_recycle_that_fails_changes_nothing(daemon: Daemon) -> None:
    """A new generation that dies before it is ready leaves the former one serving."""
    daemon.start("--fail-from", "2")
    reply = daemon.ask("recycle")
    assert not reply.ok
    assert reply.error is not None
    assert "told to fail" in reply.error
    assert daemon.get() == "1"
    assert daemon.status()["recycles"] == 0


def test_crash_loop_gives_up_with_75(daemon: Daemon) -> None:
    """Five workers in a row that die before they are ready end the daemon."""
    daemon.start("--fail-from", "1", until_ready=False)
    assert daemon.wait() == 75
    assert daemon.log().count("cannot go on: told to fail") == 5
    daemon.wait_logged("giving up: 5 workers in a row")


def test_a_worker_is_bounded_from_its_first_moment(daemon: Daemon) -> None:
    """Its limit comes with its settings: clients may be there before the next second is."""
    daemon.start()
    assert daemon.ask("recycle").ok
    said = dict(re.findall(r"worker (\d) may hold (\d+)", daemon.log()))
    assert said.keys() == {"1", "2"}
    usual_bytes = usual_ledger_limit_bytes(daemon.status()["memory"]["budget_bytes"])
    assert all(0 < int(limit) <= usual_bytes for limit in said.values())


def test_sleep_of_the_computer_kills_no_worker(daemon: Daemon) -> None:
    """When both processes stood still, the watchdog sees the gap and starts all limits afresh."""
    daemon.start(timing={"gap_s": 1.0, **HANGS})
    pid = daemon.worker()["pid"]
    os.kill(pid, signal.SIGSTOP)
    daemon.signal(signal.SIGSTOP)
    resumed_s = time.monotonic() + 2.5  # beyond the scaled limit of 1.5 s for a heartbeat
    wait_until(lambda: time.monotonic() > resumed_s, "time has passed")
    daemon.signal(signal.SIGCONT)
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "the clock stood still" in daemon.log(), "the gap is seen")
    assert daemon.get() == "1"
    assert daemon.status()["restarts"] == []
