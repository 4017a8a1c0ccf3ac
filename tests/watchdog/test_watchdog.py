"""The watchdog and scripted workers as real processes. Its limits are scaled, see daemon_rig."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tidegate.core.memory.levels import LEAST_BUDGET_BYTES, usual_ledger_limit_bytes
from tidegate.watchdog import start
from watchdog.daemon_rig import HANGS, SILENT, Daemon, is_alive, wait_until

pytestmark = pytest.mark.processes


def test_first_start_tells_where_it_listens(daemon: Daemon) -> None:
    """The banner gets the port the system chose, and the status says serving."""
    daemon.start()
    assert daemon.address[1] != 0
    assert daemon.get() == "1"
    wait_until(lambda: daemon.status()["runs"]["total"] == 1, "the heartbeat counted the run")
    status = daemon.status()
    assert status["state"] == "serving"
    assert status["listen"] == ["{}:{}".format(*daemon.address)]
    assert status["watchdog"]["pid"] == daemon.pid
    assert status["worker"]["generation"] == 1
    assert status["memory"]["budget_source"] == "setting memory.budget"
    assert status["memory"]["used_bytes"] > status["watchdog"]["rss_bytes"] > 0
    assert (daemon.directory / "control.sock").stat().st_mode & 0o777 == 0o600


def test_a_worker_is_bounded_from_its_first_moment(daemon: Daemon) -> None:
    """Its limit comes with its settings: clients may be there before the next second is."""
    daemon.start()
    assert daemon.ask("recycle").ok
    said = dict(re.findall(r"worker (\d) may hold (\d+)", daemon.log()))
    assert said.keys() == {"1", "2"}
    usual_bytes = usual_ledger_limit_bytes(daemon.status()["memory"]["budget_bytes"])
    assert all(0 < int(limit) <= usual_bytes for limit in said.values())


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


def test_killed_watchdog_leaves_no_worker(daemon: Daemon) -> None:
    """kill -9 of the watchdog ends the worker, and a new watchdog can start at once."""
    daemon.start()
    pid = daemon.worker()["pid"]
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    wait_until(lambda: not is_alive(pid), "the worker is gone")
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


def test_second_signal_ends_at_once(daemon: Daemon) -> None:
    """The second SIGTERM does not wait for streams."""
    daemon.write(drain={"stop_limit_s": 600.0})
    daemon.start("--drain-s", "600")
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: daemon.status()["state"] == "draining", "it drains")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


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


def test_each_generation_knows_the_other_at_once(daemon: Daemon) -> None:
    """When `--no-wait` returns, both have been told where the other is and what it is doing."""
    # No tick comes in between that could have told them.
    daemon.start("--drain-s", "20", timing={"tick_s": 60.0, "gap_s": 300.0})
    assert daemon.ask("recycle", wait=False).ok
    new = daemon.directory / "worker-2.sock"
    wait_until(lambda: f"worker 1 drains and knows of {new}" in daemon.log(), "it heard of it")
    facts = json.loads(daemon.get("/facts"))
    assert facts["peer_socket"] == str(daemon.directory / "worker-1.sock")
    assert facts["peer_active"] == {"box": 1}


def test_recycle_that_fails_changes_nothing(daemon: Daemon) -> None:
    """A new generation that dies before it is ready leaves the former one serving."""
    daemon.start("--fail-from", "2")
    reply = daemon.ask("recycle")
    assert not reply.ok
    assert reply.error is not None
    assert "told to fail" in reply.error
    assert daemon.get() == "1"
    assert daemon.status()["recycles"] == 0


def test_totals_outlive_a_worker(daemon: Daemon) -> None:
    """Runs counted by one generation are still counted when another serves."""
    daemon.start()
    daemon.get()
    daemon.get()
    wait_until(lambda: daemon.status()["runs"]["total"] == 2, "both are counted")
    assert daemon.ask("recycle").ok
    daemon.get()
    wait_until(lambda: daemon.status()["runs"]["total"] == 3, "the third is added")


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
    """A question has a limit, and the error says which worker was silent."""
    daemon.start("--mute", timing=SILENT)
    reply = daemon.ask("sweep")
    assert reply.error == "worker 1 did not answer sweep within 0.5 s"


def test_failing_upstream_is_degraded(daemon: Daemon) -> None:
    """The state is degraded while an upstream fails."""
    daemon.start("--upstream", "failing")
    wait_until(lambda: daemon.status()["state"] == "degraded", "it says so")
    assert daemon.status()["upstreams"][0]["name"] == "box"


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


def test_bad_config_exits_78(daemon: Daemon) -> None:
    """A config that is wrong at the start ends with 78 and a reason."""
    daemon.config.write_text("{")
    daemon.start(until_ready=False)
    assert daemon.wait() == 78
    daemon.wait_logged(str(daemon.config))


def test_unusable_control_socket_exits_78(daemon: Daemon) -> None:
    """What cannot be replaced in the control socket's place is named, and nothing is left."""
    path = daemon.directory / "control.sock"
    path.mkdir()
    daemon.start(until_ready=False)
    assert daemon.wait() == 78
    daemon.wait_logged(f"cannot listen on {path}: ")
    assert not (daemon.directory / "tidegate.pid").exists()


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
    wait_until((daemon.directory / "control.sock").exists, "it answers")
    wait_until(lambda: daemon.status()["state"] == "parked", "it says so")
    assert str(daemon.config) in daemon.status()["reason"]
    assert not daemon.ask("reload").ok
    daemon.write()
    assert daemon.ask("reload").ok
    daemon.wait_ready()
    assert daemon.get() == "2"  # worker 1 only said why
    assert daemon.status()["reason"] is None


def test_crash_loop_gives_up_with_75(daemon: Daemon) -> None:
    """Five workers in a row that die before they are ready end the daemon."""
    daemon.start("--fail-from", "1", until_ready=False)
    assert daemon.wait() == 75
    assert daemon.log().count("cannot go on: told to fail") == 5
    daemon.wait_logged("giving up: 5 workers in a row")


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
    wait_until(lambda: "config reloaded" in daemon.log(), "it is reloaded")
    assert daemon.status()["generation"] == 1


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"allowed_hosts": ["refuse.me"]}, "no"),
        ({"allowed_hosts": ["never.answer"]}, "the worker did not answer within 0.5 s"),
        ({"listen": ["127.0.0.1:x"]}, 'listen "127.0.0.1:x"'),
        ({"listen": ["127.0.0.1:0", "unix:/nowhere/at/all"]}, "its directory does not exist"),
    ],
)
def test_refused_reload_changes_nothing(
    daemon: Daemon, settings: dict[str, object], error: str
) -> None:
    """Whatever is wrong with a new config is returned, and the former one goes on."""
    daemon.start(timing=SILENT if "0.5 s" in error else None)
    daemon.write(**settings)
    reply = daemon.ask("reload")
    assert not reply.ok
    assert error in (reply.error or "")
    told = f"nothing has changed: {reply.error}"
    wait_until(lambda: told in daemon.log(), "it is logged")
    assert daemon.get() == "1"


def test_changed_listen_moves_without_a_gap(daemon: Daemon, tmp_path: Path) -> None:
    """A new address is opened, a new generation takes it over, and the old one is closed."""
    daemon.start("--drain-s", "0.2")
    former = daemon.address
    path = tmp_path / "door.sock"
    daemon.write(listen=[f"unix:{path}"])
    assert daemon.ask("reload").ok
    assert daemon.status()["listen"] == [f"unix:{path}"]
    assert daemon.status()["generation"] == 2
    wait_until(lambda: "no longer listening" in daemon.log(), "the former socket is closed")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(former)
    assert path.is_socket()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not path.exists()


def test_changed_listen_that_cannot_start_is_undone(daemon: Daemon, tmp_path: Path) -> None:
    """When no worker starts with the new address, the former address stays and is served."""
    daemon.start("--fail-from", "2")
    path = tmp_path / "door.sock"
    daemon.write(listen=[f"unix:{path}"])
    assert not daemon.ask("reload").ok
    assert not path.exists()
    assert daemon.status()["listen"] == ["{}:{}".format(*daemon.address)]
    assert daemon.get() == "1"


def test_memory_that_is_explained_is_swept(daemon: Daemon) -> None:
    """At level 2 and above the worker is told to sweep, and the level is in the status."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start()
    daemon.get("/ledger?85")
    wait_until(lambda: daemon.status()["swept"]["runs"] == 1, "the sweep was ordered and done")
    daemon.wait_logged("memory level")
    steps = {step["step"]: step for step in daemon.status()["memory"]["steps"]}
    assert steps["stale"]["freed_bytes"] == steps["stale"]["promised_bytes"] > 0
    daemon.wait_logged("step stale freed")


def test_memory_that_is_unexplained_is_recycled(daemon: Daemon) -> None:
    """What the ledger does not explain is got rid of by a new generation, and documented."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start()
    daemon.get("/grow?85")
    wait_until(lambda: daemon.status()["recycles"] == 1, "it recycled")
    daemon.wait_logged("that no run explains")
    assert daemon.worker()["generation"] == 2
    bundles = [path.name for path in (daemon.directory / "bundles").iterdir()]
    assert any("recycle-memory" in name for name in bundles), bundles


def test_last_level_costs_the_worker_its_life(daemon: Daemon) -> None:
    """When raw use stays at the budget although it was swept, the worker is replaced."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start()
    daemon.get("/grow?160")
    wait_until(lambda: daemon.status()["generation"] == 2, "the replacement serves")
    assert "memory is at the last level" in daemon.status()["restarts"][0]["reason"]
    assert daemon.get() == "2"


def test_last_level_costs_no_second_life_while_the_first_ends(daemon: Daemon) -> None:
    """A worker that takes its time to die is waited for; its replacement holds nothing."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start(timing={"kill_wait_s": 2.0})
    pid = daemon.worker()["pid"]
    daemon.get("/grow?160")
    wait_until(lambda: daemon.status()["generation"] == 2, "the replacement serves")
    wait_until(lambda: not is_alive(pid), "the full one is gone")
    wait_until(lambda: len(daemon.status()["workers"]) == 1, "only the replacement is left")
    assert daemon.status()["generation"] == 2


def test_memory_is_read_when_it_is_asked_for(daemon: Daemon) -> None:
    """What the status says of a worker is no older than the question, whatever the tick."""
    daemon.start(timing={"tick_s": 60.0, "gap_s": 300.0})
    former = daemon.worker()["rss_bytes"]
    daemon.get("/grow?50")
    wait_until(lambda: daemon.worker()["rss_bytes"] > former + 45 * 1024 * 1024, "it is seen")


def test_observing_only_says_what_it_would_do(daemon: Daemon) -> None:
    """In observe mode nothing is swept, and the log says what would have been."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES, "mode": "observe"})
    daemon.start()
    daemon.get("/ledger?85")
    wait_until(lambda: "would sweep" in daemon.log(), "it says so")
    assert daemon.status()["swept"]["runs"] == 0
    explained = 85 * 1024 * 1024
    wait_until(lambda: daemon.status()["memory"]["ledger_bytes"] == explained, "a beat tells")


def test_worker_that_talks_nonsense_is_replaced(daemon: Daemon) -> None:
    """A line that is no message costs the worker its place."""
    daemon.start()
    daemon.get("/garbage")
    wait_until(lambda: daemon.status()["generation"] == 2, "the replacement serves")


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
    assert daemon.ask("dance").error == '"dance" is no verb that this tidegate knows'


def test_stop_by_command_answers_when_it_is_over(daemon: Daemon) -> None:
    """`stop` is answered at the end, when the worker is gone."""
    daemon.start("--drain-s", "0.2")
    pid = daemon.worker()["pid"]
    assert daemon.ask("stop").ok
    assert not is_alive(pid)
    assert daemon.wait() == 0


def test_sleep_of_the_computer_kills_nobody(daemon: Daemon) -> None:
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


def test_log_file_takes_both_processes(daemon: Daemon, tmp_path: Path) -> None:
    """With a log file, the watchdog's lines and the worker's stacks are in it."""
    daemon.log_file = tmp_path / "tidegate.log"
    daemon.start()
    os.kill(daemon.worker()["pid"], signal.SIGUSR1)
    wait_until(lambda: "Current thread" in daemon.log_file.read_text(), "the stacks are there")
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


@pytest.mark.long
def test_stuck_worker_channel_never_blocks(daemon: Daemon) -> None:
    """A worker that reads nothing while it is asked a thousand times keeps nobody waiting."""
    daemon.start(timing={"beat_limit_s": 60.0, "reply_s": 0.1})
    os.kill(daemon.worker()["pid"], signal.SIGSTOP)
    for _ in range(40):
        assert daemon.ask("sweep").error == "worker 1 did not answer sweep within 0.1 s"
    assert daemon.status()["generation"] == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(errno.ENOSPC, 75), (errno.EMFILE, 75), (errno.EACCES, 78), (errno.ENOENT, 78), (None, 78)],
)
def test_a_shortage_is_no_mistake_of_the_configuration(error: int | None, code: int) -> None:
    """A service manager tries again after 75, and never after 78."""
    cause = None if error is None else OSError(error, os.strerror(error))
    assert start._exit_code(cause) == code


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
