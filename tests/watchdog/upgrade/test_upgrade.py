"""The watchdog becomes another program while its workers go on: same pid, same sockets."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fakes.machine import wait_until
from watchdog.daemon_rig import HANGS, LIMIT_S, Daemon, is_alive

pytestmark = pytest.mark.processes


def upgraded(daemon: Daemon, times: int = 1) -> bool:
    return daemon.log().count("goes on where") == times


def alone_after_upgrade(daemon: Daemon, timing: dict[str, float]) -> int:
    """The worker of the former program, which goes on because its successor does not start."""
    daemon.start("--slow-from", "2", timing=timing | {"start_limit_s": 1.0})
    pid = daemon.worker()["pid"]
    reply = daemon.ask("upgrade", timeout_s=60)
    assert not reply.ok
    assert "did not start" in (reply.error or "")
    assert upgraded(daemon)
    assert daemon.worker()["pid"] == pid
    return int(pid)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_same_process_goes_on_and_its_worker_is_replaced(daemon: Daemon) -> None:
    """SIGUSR2: the pid, the totals and the age stay; a worker of the new version serves."""
    daemon.start()
    daemon.get()
    wait_until(
        lambda: daemon.status()["runs"]["total"] == 1, LIMIT_S, "the heartbeat counted the run"
    )
    former = daemon.status()
    daemon.signal(signal.SIGUSR2)
    wait_until(lambda: upgraded(daemon), LIMIT_S, "the new program runs")
    wait_until(lambda: daemon.status()["generation"] == 2, LIMIT_S, "a new worker serves")
    wait_until(lambda: daemon.status()["state"] == "serving", LIMIT_S, "the former one is gone")
    now = daemon.status()
    assert now["watchdog"]["pid"] == former["watchdog"]["pid"] == daemon.pid
    assert now["uptime_s"] > former["uptime_s"]
    assert now["listen"] == former["listen"]
    assert (now["runs"]["total"], now["recycles"], now["restarts"]) == (1, 1, [])
    assert daemon.get() == "2"
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not (daemon.directory / "tidegate.pid").exists()
    assert not list(daemon.directory.glob("*.sock"))


def test_upgrades_refuse_no_client_and_leave_no_descriptor(daemon: Daemon) -> None:
    """One after the other, with a client that connects all the time: the figures stay."""
    daemon.start()
    failed: list[OSError] = []
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            try:
                assert daemon.get()
            except OSError as error:
                failed.append(error)

    client = threading.Thread(target=connect)
    client.start()
    open_then: list[int] = []
    try:
        for turn in range(1, 4):
            assert daemon.ask("upgrade", timeout_s=60).ok
            assert upgraded(daemon, turn)
            assert daemon.status()["generation"] == turn + 1
            open_then.append(descriptors(daemon.pid))
    finally:
        over.set()
        client.join()
    assert failed == []
    assert max(open_then) - min(open_then) <= 1  # a command line may be on its way


@pytest.mark.parametrize("to_a_file", [False, True])
def test_a_bad_config_refuses_the_upgrade(
    daemon: Daemon, tmp_path: Path, *, to_a_file: bool
) -> None:
    """The preflight reads the file as the new version would; what it says is the answer."""
    daemon.log_file = tmp_path / "tidegate.log" if to_a_file else None
    daemon.start()
    pid = daemon.worker()["pid"]
    daemon.config.write_text("{")
    reply = daemon.ask("upgrade", timeout_s=60)
    assert not reply.ok
    assert "nothing has changed" in (reply.error or "")
    assert str(daemon.config) in (reply.error or "")
    assert daemon.worker()["pid"] == pid
    assert not upgraded(daemon)
    assert daemon.get() == "1"
    daemon.write()
    assert daemon.ask("upgrade", timeout_s=60).ok
    assert daemon.get() == "2"


def test_a_parked_one_is_upgraded_and_unparks_as_ever(daemon: Daemon) -> None:
    """What it is parked for may be what the new version mends; its config is no reason against."""
    daemon.config.write_text("{")
    daemon.start(park=True, until_ready=False)
    wait_until((daemon.directory / "control.sock").exists, LIMIT_S, "it runs")
    wait_until(lambda: daemon.status()["generation"] == 1, LIMIT_S, "its worker says why")
    assert daemon.ask("upgrade", timeout_s=60).ok
    assert upgraded(daemon)
    assert (daemon.status()["state"], daemon.status()["generation"]) == ("parked", 2)
    daemon.write()
    assert daemon.ask("reload", timeout_s=60).ok
    daemon.wait_ready()
    assert daemon.get() == "3"


def test_a_client_that_waits_for_a_recycle_is_still_told_of_its_end(daemon: Daemon) -> None:
    """An upgrade in the middle of a recycle: both generations stay, and a third one follows."""
    daemon.start("--drain-s", "3")
    answers: list[bool] = []
    asks = threading.Thread(target=lambda: answers.append(daemon.ask("recycle", 60).ok))
    asks.start()
    wait_until(lambda: daemon.status()["generation"] == 2, LIMIT_S, "the recycle is under way")
    assert len(daemon.status()["workers"]) == 2
    assert daemon.ask("upgrade", timeout_s=60, wait=False).ok
    asks.join()
    assert answers == [True]
    status = daemon.status()
    assert status["generation"] == 3
    assert status["restarts"] == []


def test_adopted_worker_that_dies_is_replaced(daemon: Daemon) -> None:
    """Its death is seen and told as that of a child of one's own."""
    pid = alone_after_upgrade(daemon, {})
    os.kill(pid, signal.SIGKILL)
    restarts = wait_until(lambda: daemon.status()["restarts"], LIMIT_S, "its death is told")
    assert [(r["exit"], r["reason"]) for r in restarts] == [(-9, "killed by SIGKILL")]
    wait_until(lambda: "worker 3 starts" in daemon.log(), LIMIT_S, "its successor starts")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


def test_adopted_worker_that_hangs_writes_its_stacks(daemon: Daemon) -> None:
    """A worker of the former program is found hanging by the new one."""
    pid = alone_after_upgrade(daemon, HANGS)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not is_alive(pid), LIMIT_S, "the hung worker is gone")
    daemon.wait_logged("Current thread")
    wait_until(lambda: "worker 3 starts" in daemon.log(), LIMIT_S, "its successor starts")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_an_upgrade_is_a_stop(daemon: Daemon, number: signal.Signals) -> None:
    """Whenever the signal comes, also in the moment of execve, it ends with exit code 0."""
    daemon.start()
    daemon.signal(signal.SIGUSR2)
    wait_until(lambda: "takes over" in daemon.log(), LIMIT_S, "execve is due")
    daemon.signal(number)
    assert daemon.wait() == 0


def test_signals_in_the_moment_of_execve_do_not_end_it(daemon: Daemon) -> None:
    """Their default would be to end the process; they wait until the new program hears them."""
    daemon.start()
    daemon.signal(signal.SIGUSR2)
    deadline_s = time.monotonic() + 30
    while not upgraded(daemon):
        daemon.signal(signal.SIGHUP)
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    wait_until(lambda: daemon.status()["generation"] == 2, LIMIT_S, "a new worker serves")
