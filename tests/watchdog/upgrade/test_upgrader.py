"""An upgrade in the loop, in virtual time: what refuses it, and that nothing has changed then."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import BinaryIO

import pytest

from tidegate.watchdog.upgrade import upgrade
from tidegate.watchdog.upgrade.state import UpgradeError
from tidegate.watchdog.upgrade.upgrade import PREFLIGHT_LIMIT_S, QUIET_LIMIT_S
from watchdog.world import REAL, World


class FakeProgram:
    """The new program in its preflight: it ends so, or never."""

    def __init__(self, code: int | None, text: str = "") -> None:
        self.returncode = code
        self.text = text
        self.started = 0

    def start(self, *_: object, stdout: BinaryIO, **__: object) -> FakeProgram:
        """What it prints goes where a real one's goes."""
        self.started += 1
        stdout.write(self.text.encode())
        return self

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def wait(self) -> None:
        """It is gone at once."""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch, world: World) -> list[float]:
    """When execve was due: it fails here, as it may anywhere."""
    due_s: list[float] = []

    def fails(*_: object) -> None:
        due_s.append(world.now_s)
        raise UpgradeError("it cannot be executed")

    monkeypatch.setattr(upgrade, "become", fails)
    return due_s


def use(monkeypatch: pytest.MonkeyPatch, program: FakeProgram) -> FakeProgram:
    """It is what is on the disk."""
    monkeypatch.setattr(subprocess, "Popen", program.start)
    return program


def is_as_before(world: World) -> None:
    """Asserts that the worker goes on, and that the repair is told."""
    world.wait(15.0)
    status = world.status()
    assert (status["state"], status["generation"], status["recycles"]) == ("serving", 1, 0)
    assert "upgrade-refused" in {repair["id"] for repair in status["repairs"]}
    assert world.ask("recycle").ok


def test_what_the_preflight_prints_is_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, become: list[float]
) -> None:
    """The new version cannot read the config: it says so, and nothing has changed."""
    use(monkeypatch, FakeProgram(os.EX_CONFIG, "config.toml: nonsense\n"))
    world.start()
    reply = world.ask("upgrade")
    assert reply.error == ("the upgrade was refused, nothing has changed: config.toml: nonsense")
    assert become == []
    is_as_before(world)


def test_a_preflight_that_prints_nothing_is_told_by_its_exit_code(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always a reason."""
    use(monkeypatch, FakeProgram(1))
    world.start()
    assert "it ended with exit code 1 and printed nothing" in str(world.ask("upgrade").error)


def test_a_preflight_that_hangs_is_ended_at_its_limit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile all is answered; then it is killed, and the upgrade is refused."""
    program = use(monkeypatch, FakeProgram(None))
    world.start()
    asked_s = world.now_s
    asking = world.asking("upgrade")
    world.wait(PREFLIGHT_LIMIT_S - 2)
    assert world.status()["state"] == "serving"
    assert program.poll() is None
    assert "exit code -9" in str(asking.reply().error)
    assert world.now_s - asked_s < PREFLIGHT_LIMIT_S + 2 * REAL.tick_s


def test_a_program_that_cannot_be_started_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed, or has no right to run."""

    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(subprocess, "Popen", fails)
    world.start()
    assert "cannot be started" in str(world.ask("upgrade").error)
    is_as_before(world)


def test_execve_that_fails_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, become: list[float]
) -> None:
    """The preflight was good; signals are heard as before."""
    use(monkeypatch, FakeProgram(0))
    world.start()
    assert "it cannot be executed" in str(world.ask("upgrade").error)
    assert len(become) == 1
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    is_as_before(world)


def test_one_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks meanwhile is answered with the first."""
    program = use(monkeypatch, FakeProgram(None))
    world.start()
    both = [world.asking("upgrade"), world.asking("upgrade")]
    world.turns(6)
    program.returncode = 1
    assert ["exit code 1" in str(each.reply().error) for each in both] == [True, True]
    assert program.started == 1


def test_a_reload_under_way_is_waited_for_a_little(
    world: World, monkeypatch: pytest.MonkeyPatch, become: list[float]
) -> None:
    """Its client would hear nothing of it; one that takes too long is given up."""
    use(monkeypatch, FakeProgram(0))
    world.start()
    world.write(allowed_hosts=["never.answer"])
    reload = world.asking("reload")
    world.turns(4)
    asked_s = world.now_s
    assert not world.ask("upgrade").ok
    assert 0 < become[0] - asked_s <= QUIET_LIMIT_S + REAL.tick_s
    assert not reload.reply().ok


def test_a_stop_ends_the_preflight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for the upgrade is told why, and another one is refused."""
    program = use(monkeypatch, FakeProgram(None))
    world.drain_s = 2.0
    world.start()
    asking = world.asking("upgrade")
    world.turns(4)
    world.signal(signal.SIGTERM)
    assert asking.reply().error == "tidegate is stopping"
    assert program.returncode == -9
    assert world.ask("upgrade").error == "tidegate is stopping"
    assert world.run() == os.EX_OK
