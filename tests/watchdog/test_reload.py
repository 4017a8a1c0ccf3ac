"""A reload: who is answered what and when, what is logged, and what the service manager hears."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.core.protocol.control import ControlReply
from tidegate.core.protocol.reload import Reloaded
from watchdog.daemon_rig import SILENT, Daemon, wait_until

pytestmark = pytest.mark.processes

SLOW = {"configured_s": 1.5}  # a worker that does not answer is given up on so soon


def done(reply: ControlReply) -> Reloaded:
    assert reply.ok, reply.error
    return msgspec.json.decode(reply.result, type=Reloaded)


def lines(reply: ControlReply) -> list[str]:
    return [change.text() for change in done(reply).changes]


def refused(reply: ControlReply) -> str:
    assert not reply.ok
    return str(msgspec.json.decode(reply.result)["refused"])


class Asking:
    """`reload` in a thread of its own, for one that has to wait."""

    def __init__(self, daemon: Daemon, verb: str = "reload") -> None:
        self._reply: list[ControlReply] = []
        self._thread = threading.Thread(target=lambda: self._reply.append(daemon.ask(verb)))
        self._thread.start()

    def reply(self) -> ControlReply:
        self._thread.join()
        return self._reply[0]

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()


class Manager:
    """A service manager that writes down what it hears."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self.heard: list[str] = []

    def states(self) -> list[str]:
        """READY, RELOADING and STOPPING in the order in which they came."""
        with suppress(BlockingIOError):
            while True:
                self.heard.append(self._sock.recv(65536).decode())
        names = [text.partition("=")[0] for text in self.heard]
        return [name for name in names if name in ("READY", "RELOADING", "STOPPING")]

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(daemon: Daemon, tmp_path: Path) -> Iterator[Manager]:
    """The one that the daemon of this test reports to."""
    path = tmp_path / "notify"
    heard = Manager(path)
    daemon.environment = {"NOTIFY_SOCKET": str(path)}
    yield heard
    heard.close()


def test_the_reply_says_what_changed(daemon: Daemon) -> None:
    """Each change with its old and new value; the second time, that there is none."""
    daemon.start()
    daemon.write(allowed_hosts=["box.example"], drain={"stop_limit_s": 3.0, "recycle_limit_s": 20})
    assert lines(daemon.ask("reload")) == [
        "allowed_hosts: none → box.example",
        "drain.stop_limit_s: 2 s → 3 s",
    ]
    told = "config reloaded: allowed_hosts: none → box.example; drain.stop_limit_s: 2 s → 3 s"
    wait_until(lambda: told in daemon.log(), "it is logged")
    again = done(daemon.ask("reload"))
    assert (again.changes, again.earlier, again.generation) == ([], None, None)


def test_a_new_address_is_answered_when_the_new_worker_serves_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    """The reply names the worker, and a client that reads it can connect at once."""
    daemon.start()
    path = tmp_path / "door.sock"
    daemon.write(listen=["127.0.0.1:0", f"unix:{path}"])
    result = done(daemon.ask("reload"))
    assert result.generation == 2
    assert [change.text() for change in result.changes] == [
        f"listen: 127.0.0.1:0 → 127.0.0.1:0, unix:{path}"
    ]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(4096).endswith(b"2")


def test_a_change_of_the_file_is_logged_once(daemon: Daemon) -> None:
    """However often it is reported, by whomever: one line; and one for a mistake."""
    daemon.start()
    daemon.write(allowed_hosts=["box.example"])
    for _ in range(3):
        daemon.get("/config")
    wait_until(lambda: "config reloaded" in daemon.log(), "it is taken up")
    daemon.write(nonsense=1)
    for _ in range(3):
        daemon.get("/config")
    wait_until(lambda: "reload refused" in daemon.log(), "it is refused")
    daemon.settings.pop("nonsense")
    daemon.write()
    daemon.get("/config")
    daemon.write(allowed_hosts=["other.example"])
    daemon.get("/config")
    wait_until(lambda: "box.example → other.example" in daemon.log(), "it is taken up")
    assert daemon.log().count("config reloaded: ") == 2
    assert daemon.log().count("reload refused") == 1


def test_a_mistake_that_comes_back_is_told_again(daemon: Daemon) -> None:
    """Once the file was good in between, the same mistake is news."""
    daemon.start()
    for times in (1, 2):
        daemon.write(nonsense=1)
        daemon.get("/config")
        wait_until(lambda: daemon.log().count("reload refused") == times, "it is refused")  # noqa: B023
        daemon.settings.pop("nonsense")
        daemon.write(allowed_hosts=[f"box{times}.example"])
        daemon.get("/config")
        wait_until(lambda: daemon.log().count("config reloaded") == times, "it is mended")  # noqa: B023


def test_who_asks_after_the_file_was_taken_up_is_told_what_it_brought(daemon: Daemon) -> None:
    """Otherwise one who edits and then reloads would read that nothing changed; told once."""
    daemon.start()
    daemon.write(allowed_hosts=["box.example"])
    daemon.get("/config")
    wait_until(lambda: "config reloaded" in daemon.log(), "it is taken up")
    first = done(daemon.ask("reload"))
    assert first.changes == []
    assert first.earlier is not None
    assert [change.text() for change in first.earlier.changes] == [
        "allowed_hosts: none → box.example"
    ]
    assert done(daemon.ask("reload")).earlier is None


def test_a_signal_and_the_verb_say_the_same(daemon: Daemon) -> None:
    """SIGHUP, which is `systemctl reload`, logs what changed; asked for, also that nothing did."""
    daemon.start()
    daemon.write(allowed_hosts=["box.example"])
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "config reloaded: allowed_hosts: none → box.example" in daemon.log(), "done")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "config reloaded: nothing changed" in daemon.log(), "it says so")


def test_who_asks_during_a_reload_is_answered_by_the_next(daemon: Daemon) -> None:
    """No client is told that a reload is under way; all that waited are served by one more."""
    daemon.start(timing=SLOW)
    daemon.write(allowed_hosts=["never.answer"])
    daemon.get("/config")  # by itself, and the worker says nothing for its whole limit
    first = Asking(daemon)
    wait_until(lambda: first.is_waiting, "it asks")
    daemon.status()  # a command that is answered after it was asked after it
    daemon.write(allowed_hosts=["box.example"])
    others = [Asking(daemon) for _ in range(3)]
    assert {tuple(lines(each.reply())) for each in (first, *others)} <= {
        ("allowed_hosts: none → box.example",),
        (),
    }
    told = "config reloaded: allowed_hosts: none → box.example"
    wait_until(lambda: daemon.log().count(told), "it is logged")
    assert daemon.log().count(told) == 1


def test_a_worker_that_becomes_ready_meanwhile_gets_the_new_config_too(daemon: Daemon) -> None:
    """The one that was asked may be replaced before it answers; both end with the same config."""
    daemon.start("--drain-s", "20")
    former = daemon.worker()["pid"]
    os.kill(former, signal.SIGSTOP)
    try:
        daemon.write(allowed_hosts=["box.example"])
        waiting = Asking(daemon)
        recycle = daemon.ask("recycle", wait=False)
        assert recycle.ok, recycle.error
    finally:
        os.kill(former, signal.SIGCONT)
    assert waiting.reply().ok
    wait_until(lambda: "worker 2 was told ['box.example']" in daemon.log(), "it is told")
    wait_until(lambda: "worker 1 was told ['box.example']" in daemon.log(), "so is the former")


def test_who_waits_is_not_kept_waiting_by_a_dead_worker(daemon: Daemon) -> None:
    """The one that was asked dies: the next reload does not ask it again."""
    daemon.start()
    daemon.write(allowed_hosts=["never.answer"])
    first = Asking(daemon)
    wait_until(lambda: "worker 1 hears of never.answer" in daemon.log(), "it is asked")
    second = Asking(daemon)
    daemon.status()  # a command that is answered after it was asked after it
    daemon.write(allowed_hosts=["box.example"])
    os.kill(daemon.worker()["pid"], signal.SIGKILL)
    assert refused(first.reply()) == "worker"
    assert lines(second.reply()) == ["allowed_hosts: none → box.example"]


def test_a_worker_that_answers_too_late_is_told_the_config_in_force(daemon: Daemon) -> None:
    """Nothing has changed, it was said; so what it took over after that is taken back."""
    daemon.start(timing={"configured_s": 0.5})
    pid = daemon.worker()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        daemon.write(allowed_hosts=["box.example"])
        assert refused(daemon.ask("reload")) == "worker"
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "worker 1 was told []" in daemon.log(), "it is told")
    assert daemon.log().index("told ['box.example']") < daemon.log().index("told []")


def test_a_new_address_waits_for_the_recycle_that_is_under_way(
    daemon: Daemon, tmp_path: Path
) -> None:
    """It is refused for now with the reason, and taken up by itself when the former is gone."""
    daemon.start("--drain-s", "1.5")
    assert daemon.ask("recycle", wait=False).ok
    path = tmp_path / "door.sock"
    daemon.write(listen=["127.0.0.1:0", f"unix:{path}"], allowed_hosts=["box.example"])
    reply = daemon.ask("reload")
    assert refused(reply) == "busy"
    assert "`listen` needs a new worker, and a recycle is under way (worker 1 has" in (
        reply.error or ""
    )
    assert not path.exists()
    wait_until(lambda: f"unix:{path}" in daemon.status()["listen"], "it is taken up")
    assert daemon.worker()["generation"] == 3
    wait_until(lambda: daemon.log().count("config reloaded"), "it is logged")
    assert daemon.log().count("config reloaded") == 1
    assert daemon.log().count("reload refused") == 1


def test_what_needs_no_new_worker_does_not_wait_for_a_recycle(daemon: Daemon) -> None:
    """During a drain both workers learn it: a revoked token ends in the draining one too."""
    daemon.start("--drain-s", "20")
    assert daemon.ask("recycle", wait=False).ok
    daemon.write(allowed_hosts=["box.example"])
    assert lines(daemon.ask("reload")) == ["allowed_hosts: none → box.example"]
    for number in (1, 2):
        wait_until(lambda: f"worker {number} was told ['box.example']" in daemon.log(), "told")  # noqa: B023


def test_a_new_address_needs_no_worker_that_serves(daemon: Daemon, tmp_path: Path) -> None:
    """While the worker is being replaced, its successor starts with the new config, or follows."""
    daemon.start()
    os.kill(daemon.worker()["pid"], signal.SIGKILL)
    path = tmp_path / "door.sock"
    daemon.write(listen=["127.0.0.1:0", f"unix:{path}"])
    assert done(daemon.ask("reload")).generation in (2, 3)
    assert f"unix:{path}" in daemon.status()["listen"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"nonsense": 1}, "config"),
        ({"listen": ["unix:/nowhere/at/all"]}, "address"),
        ({"allowed_hosts": ["refuse.me"]}, "worker"),
        ({"allowed_hosts": ["never.answer"]}, "worker"),
    ],
)
def test_a_refusal_has_its_kind_and_changes_nothing(
    daemon: Daemon, settings: dict[str, Any], why: str
) -> None:
    """A mistake, an address, a worker: a script can tell whether another try may help."""
    daemon.start(timing={"configured_s": 0.5})
    daemon.write(**settings)
    assert refused(daemon.ask("reload")) == why
    assert daemon.status()["generation"] == 1


def test_a_stop_refuses_what_comes_after_it(daemon: Daemon) -> None:
    """A tidegate that drains takes no new config up."""
    daemon.start("--drain-s", "20")
    assert daemon.ask("stop", wait=False).ok
    daemon.write(allowed_hosts=["box.example"])
    reply = daemon.ask("reload")
    assert (refused(reply), reply.error) == ("busy", "tidegate is stopping")


def test_a_mended_config_unparks(daemon: Daemon) -> None:
    """The reply is the new worker's readiness, and says that it serves from now on."""
    daemon.config.write_text("{")
    daemon.start(park=True, until_ready=False)
    wait_until((daemon.directory / "control.sock").exists, "it answers")
    wait_until(lambda: daemon.status()["state"] == "parked", "it says so")
    assert refused(daemon.ask("reload")) == "config"
    daemon.write()
    result = done(daemon.ask("reload"))
    assert (result.unparked, result.changes) == (True, [])
    wait_until(lambda: daemon.status()["state"] == "serving", "the one that only said why is gone")


@pytest.mark.parametrize(
    ("settings", "ok"),
    [
        ({"allowed_hosts": ["box.example"]}, True),
        ({}, True),
        ({"nonsense": 1}, False),
        ({"listen": ["unix:/nowhere/at/all"]}, False),
        ({"allowed_hosts": ["refuse.me"]}, False),
        ({"allowed_hosts": ["never.answer"]}, False),
        ({"listen": ["127.0.0.1:0", "127.0.0.1:0"]}, True),
    ],
)
@pytest.mark.parametrize("way", ["verb", "signal"])
def test_every_reload_is_announced_and_ended(
    daemon: Daemon, manager: Manager, way: str, settings: dict[str, Any], ok: bool
) -> None:
    """RELOADING and then READY, whatever becomes of it: else `systemctl reload` waits in vain."""
    daemon.start(timing={"configured_s": 0.5})
    wait_until(lambda: manager.states() == ["READY"], "it is ready")
    daemon.write(**settings)
    if way == "verb":
        assert daemon.ask("reload").ok == ok
    else:
        daemon.signal(signal.SIGHUP)
    wait_until(lambda: manager.states() == ["READY", "RELOADING", "READY"], "it is told")
    [announced] = [text for text in manager.heard if text.startswith("RELOADING")]
    assert "\nMONOTONIC_USEC=" in announced


def test_a_reload_while_no_worker_serves_is_announced_too(daemon: Daemon, manager: Manager) -> None:
    """The service manager was told READY once, and knows nothing of workers."""
    daemon.start(timing={"backoff_first_s": 1.0, "settled_s": 60.0})
    for generation in (1, 2):
        wait_until(lambda: daemon.worker()["generation"] == generation, "it serves")  # noqa: B023
        os.kill(daemon.worker()["pid"], signal.SIGKILL)
    wait_until(lambda: daemon.status()["worker"] is None, "no worker serves")
    assert daemon.ask("reload").ok
    told = ["READY", "RELOADING", "READY"]
    wait_until(lambda: manager.states() == told, "the manager is told of the reload")


def test_what_did_not_change_is_not_announced(daemon: Daemon, manager: Manager) -> None:
    """A file that was only touched makes no reload in the service manager's eyes."""
    daemon.start()
    daemon.get("/config")
    daemon.write(allowed_hosts=["box.example"])
    daemon.get("/config")
    wait_until(lambda: "config reloaded" in daemon.log(), "it is taken up")
    wait_until(lambda: manager.states() == ["READY", "RELOADING", "READY"], "once")


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
