"""A reload: who is answered what and when, what is logged, and what the service manager hears.

In virtual time.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.core.fleet.lifecycle import Timing
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.control import ControlReply
from tidegate.core.protocol.reload import Reloaded
from tidegate.managers.systemd.notify import Notifier
from watchdog.manager_rig import Manager
from watchdog.world import World


def done(reply: ControlReply) -> Reloaded:
    assert reply.ok, reply.error
    return msgspec.json.decode(reply.result, type=Reloaded)


def lines(reply: ControlReply) -> list[str]:
    return [change.text() for change in done(reply).changes]


def refused(reply: ControlReply) -> str:
    assert not reply.ok
    return str(msgspec.json.decode(reply.result)["refused"])


def touch(world: World) -> None:
    """The worker tells that the file may have changed."""
    world.workers[world.serving.number].say(msg.ConfigChanged())
    world.turns(4)


def hosts_told(world: World, number: int) -> list[list[str]]:
    """`allowed_hosts` of each config that a worker was told, after its first."""
    told = [each for each in world.workers[number].told if isinstance(each, msg.Configure)]
    return [each.settings.allowed_hosts for each in told[1:]]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """The one that the watchdog of this test reports to."""
    heard = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(Notifier, "barrier", lambda *_: None)  # at the end; no manager reads here
    yield heard
    heard.close()


def test_the_reply_says_what_changed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Each change with its old and new value; the second time, that there is none."""
    world.start()
    world.write(allowed_hosts=["box.example"], drain={"stop_limit_s": 3.0, "recycle_limit_s": 20})
    assert lines(world.ask("reload")) == [
        "allowed_hosts: none → box.example",
        "drain.stop_limit_s: 2 s → 3 s",
    ]
    told = "config reloaded: allowed_hosts: none → box.example; drain.stop_limit_s: 2 s → 3 s"
    assert told in caplog.text
    again = done(world.ask("reload"))
    assert (again.changes, again.earlier, again.generation) == ([], None, None)


def test_a_change_of_the_file_is_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is reported: one line; and one for a mistake."""
    world.start()
    world.write(allowed_hosts=["box.example"])
    for _ in range(3):
        touch(world)
    world.write(nonsense=1)
    for _ in range(3):
        touch(world)
    world.settings.pop("nonsense")
    world.write()
    touch(world)
    world.write(allowed_hosts=["other.example"])
    touch(world)
    assert "box.example → other.example" in caplog.text
    assert caplog.text.count("config reloaded: ") == 2
    assert caplog.text.count("reload refused") == 1


def test_a_mistake_that_comes_back_is_told_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the file was good in between, the same mistake is news."""
    world.start()
    for times in (1, 2):
        world.write(nonsense=1)
        touch(world)
        assert caplog.text.count("reload refused") == times
        world.settings.pop("nonsense")
        world.write(allowed_hosts=[f"box{times}.example"])
        touch(world)
        assert caplog.text.count("config reloaded") == times


def test_who_asks_after_the_file_was_taken_up_is_told_what_it_brought(world: World) -> None:
    """Otherwise one who edits and then reloads would read that nothing changed; told once."""
    world.start()
    world.write(allowed_hosts=["box.example"])
    touch(world)
    first = done(world.ask("reload"))
    assert first.changes == []
    assert first.earlier is not None
    assert [change.text() for change in first.earlier.changes] == [
        "allowed_hosts: none → box.example"
    ]
    assert done(world.ask("reload")).earlier is None


def test_a_signal_and_the_verb_say_the_same(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """SIGHUP, which is `systemctl reload`, logs what changed; asked for, also that nothing did."""
    world.start()
    world.write(allowed_hosts=["box.example"])
    world.signal(signal.SIGHUP)
    world.turns(4)
    assert "config reloaded: allowed_hosts: none → box.example" in caplog.text
    world.signal(signal.SIGHUP)
    world.turns(4)
    assert "config reloaded: nothing changed" in caplog.text


def test_who_asks_during_a_reload_is_answered_by_the_next(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """No client is told that a reload is under way; all that waited are served by one more."""
    world.start()
    world.write(allowed_hosts=["never.answer"])
    touch(world)  # by itself, and the worker says nothing for its whole limit
    first = world.asking("reload")
    world.turns(4)
    world.write(allowed_hosts=["box.example"])
    others = [world.asking("reload") for _ in range(3)]
    assert not first.is_answered
    assert {tuple(lines(each.reply())) for each in (first, *others)} <= {
        ("allowed_hosts: none → box.example",),
        (),
    }
    assert caplog.text.count("config reloaded: allowed_hosts: none → box.example") == 1


def test_a_worker_that_becomes_ready_meanwhile_gets_the_new_config_too(world: World) -> None:
    """The one that was asked may be replaced before it answers; both end with the same config."""
    world.drain_s = 20.0
    world.start()
    world.workers[1].hangs = True
    world.write(allowed_hosts=["box.example"])
    waiting = world.asking("reload")
    recycle = world.ask("recycle", wait=False)
    assert recycle.ok, recycle.error
    assert not waiting.is_answered
    world.workers[1].hangs = False
    assert waiting.reply().ok
    world.turns(4)
    assert (hosts_told(world, 1)[-1], hosts_told(world, 2)[-1]) == (["box.example"],) * 2


def test_who_waits_is_not_kept_waiting_by_a_dead_worker(world: World) -> None:
    """The one that was asked dies: the next reload does not ask it again."""
    world.start()
    world.write(allowed_hosts=["never.answer"])
    first = world.asking("reload")
    world.until(lambda: hosts_told(world, 1) == [["never.answer"]], "it is asked")
    second = world.asking("reload")
    world.turns(4)
    world.write(allowed_hosts=["box.example"])
    died_s = world.now_s
    world.workers[1].exit(3)
    reply = first.reply()
    assert refused(reply) == "worker"
    assert "the worker ended before it answered: exited (3)" in (reply.error or "")
    assert lines(second.reply()) == ["allowed_hosts: none → box.example"]
    assert world.now_s - died_s < 1.0


def test_a_worker_that_answers_too_late_is_told_the_config_in_force(world: World) -> None:
    """Nothing has changed, it was said; so what it took over after that is taken back."""
    world.start(timing=Timing(configured_s=5.0))
    world.workers[1].hangs = True
    world.write(allowed_hosts=["box.example"])
    assert refused(world.ask("reload")) == "worker"
    world.workers[1].hangs = False
    world.wait(1.0)
    assert hosts_told(world, 1) == [["box.example"], []]


def test_a_new_address_waits_for_the_recycle_that_is_under_way(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused for now with the reason, and taken up by itself when the former is gone."""
    world.drain_s = 15.0
    world.start()
    assert world.ask("recycle", wait=False).ok
    path = world.directory / "door.sock"
    world.write(listen=["127.0.0.1:0", f"unix:{path}"], allowed_hosts=["box.example"])
    reply = world.ask("reload")
    assert refused(reply) == "busy"
    assert "`listen` needs a new worker, and a recycle is under way (worker 1 has" in (
        reply.error or ""
    )
    assert not path.exists()
    world.until(lambda: f"unix:{path}" in world.status()["listen"], "it is taken up")
    world.until(lambda: world.serving.number == 3, "it is served")
    world.turns(4)
    assert caplog.text.count("config reloaded") == 1
    assert caplog.text.count("reload refused") == 1


def test_what_needs_no_new_worker_does_not_wait_for_a_recycle(world: World) -> None:
    """During a drain both workers learn it: a revoked token ends in the draining one too."""
    world.drain_s = 20.0
    world.start()
    assert world.ask("recycle", wait=False).ok
    world.write(allowed_hosts=["box.example"])
    assert lines(world.ask("reload")) == ["allowed_hosts: none → box.example"]
    world.turns(4)
    assert (hosts_told(world, 1)[-1], hosts_told(world, 2)[-1]) == (["box.example"],) * 2


def test_a_new_address_needs_no_worker_that_serves(world: World) -> None:
    """While the worker is being replaced, its successor starts with the new config, or follows."""
    world.start()
    world.workers[1].send_signal(signal.SIGKILL)
    path = world.directory / "door.sock"
    world.write(listen=["127.0.0.1:0", f"unix:{path}"])
    assert done(world.ask("reload")).generation in (2, 3)
    assert f"unix:{path}" in world.status()["listen"]


@pytest.mark.parametrize(
    ("settings", "why", "error"),
    [
        ({"nonsense": 1}, "config", "nonsense"),
        ({"listen": ["127.0.0.1:x"]}, "address", 'listen "127.0.0.1:x"'),
        ({"listen": ["unix:/nowhere/at/all"]}, "address", "its directory does not exist"),
        (
            {"listen": ["127.0.0.1:0", "unix:/nowhere/at/all"]},
            "address",
            "its directory does not exist",
        ),
        ({"allowed_hosts": ["refuse.me"]}, "worker", "no"),
        (
            {"allowed_hosts": ["never.answer"]},
            "worker",
            "the worker did not answer within 10 s",
        ),
    ],
)
def test_a_refusal_has_its_kind_and_changes_nothing(
    world: World,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    why: str,
    error: str,
) -> None:
    """A mistake, an address, a worker: a script can tell whether another try may help."""
    world.start()
    former = world.status()
    world.write(**settings)
    reply = world.ask("reload")
    assert refused(reply) == why
    assert error in (reply.error or "")
    assert f"nothing has changed: {reply.error}" in caplog.text
    now = world.status()
    assert (now["generation"], now["listen"]) == (1, former["listen"])


def test_a_stop_refuses_what_comes_after_it(world: World) -> None:
    """A tidegate that drains takes no new config up."""
    world.drain_s = 20.0
    world.start()
    assert world.ask("stop", wait=False).ok
    world.write(allowed_hosts=["box.example"])
    reply = world.ask("reload")
    assert (refused(reply), reply.error) == ("busy", "tidegate is stopping")


def test_a_mended_config_unparks(world: World) -> None:
    """The reply is the new worker's readiness, and says that it serves from now on."""
    world.config.write_text("{")
    world.start(park=True, serves=False)
    assert world.status()["state"] == "parked"
    assert refused(world.ask("reload")) == "config"
    world.write()
    result = done(world.ask("reload"))
    assert (result.unparked, result.changes) == (True, [])
    world.until(lambda: world.status()["state"] == "serving", "the one that only said why is gone")


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
    manager: Manager, world: World, way: str, settings: dict[str, Any], ok: bool
) -> None:
    """RELOADING and then READY, whatever becomes of it: else `systemctl reload` waits in vain."""
    world.start()
    assert manager.states() == ["READY"]
    world.write(**settings)
    if way == "verb":
        assert world.ask("reload").ok == ok
    else:
        world.signal(signal.SIGHUP)
    world.until(lambda: manager.states() == ["READY", "RELOADING", "READY"], "it is told")
    [announced] = [text for text in manager.heard if text.startswith("RELOADING")]
    assert "\nMONOTONIC_USEC=" in announced


def test_a_reload_while_no_worker_serves_is_announced_too(manager: Manager, world: World) -> None:
    """The service manager was told READY once, and knows nothing of workers."""
    world.start()
    for number in (1, 2):
        world.until(lambda: world.serving and world.serving.number == number, "it serves")  # noqa: B023
        world.workers[number].send_signal(signal.SIGKILL)
    world.until(lambda: world.status()["worker"] is None, "no worker serves")
    assert world.ask("reload").ok
    assert manager.states() == ["READY", "RELOADING", "READY"]


def test_what_did_not_change_is_not_announced(manager: Manager, world: World) -> None:
    """A file that was only touched makes no reload in the service manager's eyes."""
    world.start()
    touch(world)
    assert manager.states() == ["READY"]
    world.write(allowed_hosts=["box.example"])
    touch(world)
    assert manager.states() == ["READY", "RELOADING", "READY"]


def test_changed_listen_that_cannot_start_is_undone(world: World) -> None:
    """When no worker starts with the new address, the former address stays and is served."""
    world.fail_from = 2
    world.start()
    former = world.status()["listen"]
    path = world.directory / "door.sock"
    world.write(listen=[f"unix:{path}"])
    assert not world.ask("reload").ok
    assert not path.exists()
    status = world.status()
    assert (status["listen"], status["generation"]) == (former, 1)
