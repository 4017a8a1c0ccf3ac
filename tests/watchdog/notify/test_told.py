"""What of all that befalls a watchdog is told: in virtual time, with nothing sent."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tidegate.config import LoadedConfig
from tidegate.core.notices.notice import EVENT, OPEN, OVER
from tidegate.core.settings import Notify
from tidegate.machine import sample
from tidegate.watchdog.upgrade.state import UpgradeState
from watchdog.run_watchdog import load
from watchdog.world import World

# Only errors would be sent, of which there is none; what is to be told waits, and can be looked at.
QUIET = Notify(min_severity="note", quiet="00:00-23:59")


@pytest.fixture
def told(world: World) -> Callable[[], list[tuple[str, str]]]:
    """What waits for its only receiver, in short."""

    def with_receiver() -> LoadedConfig:
        config = load(world.config)
        settings = msgspec.structs.replace(config.settings, notify=[QUIET])
        return dataclasses.replace(
            config, settings=settings, addresses={"notify": "http://127.0.0.1:9/CANARY"}
        )

    world.start()
    world.load = with_receiver
    assert world.ask("reload").ok
    world.wait(2)  # what happened before is no news

    def waiting() -> list[tuple[str, str]]:
        [outbox] = world.watchdog.parts.teller.kept().values()
        return [(each.id, each.state) for each in outbox.waiting]

    return waiting


Told = Callable[[], list[tuple[str, str]]]


def test_an_upstream_that_is_away(world: World, told: Told) -> None:
    """For 3 s it is no news, for a minute it is told at its begin, and that it is over."""
    world.wait(5)
    world.upstream = "failing"
    world.wait(3)
    world.upstream = "ok"
    world.wait(60)
    assert told() == []
    world.upstream = "failing"
    world.wait(20)
    assert told() == [("upstream-failing:box", OPEN)]
    world.wait(40)
    world.upstream = "ok"
    world.wait(60)
    assert told() == [("upstream-failing:box", OVER)]  # which says all, since neither was sent
    [outbox] = world.watchdog.parts.teller.kept().values()
    [notice] = outbox.waiting
    assert notice.until is not None
    assert world.status()["notify"] == [
        {"name": "notify", "waiting": 1, "error": None, "failing_since": None}
    ]
    assert "CANARY" not in str(world.status())


def test_a_worker_that_dies(world: World, told: Told) -> None:
    """With how it ended."""
    world.workers[1].exit(-signal.SIGKILL)
    world.wait(30)
    assert told() == [("worker-lost", EVENT)]
    [outbox] = world.watchdog.parts.teller.kept().values()
    assert "killed by SIGKILL" in outbox.waiting[0].cause


def test_a_recycle_for_memory_and_no_other(world: World, told: Told) -> None:
    """One that a person asked for is no news to them."""
    assert world.ask("recycle").ok
    world.wait(30)
    assert told() == []
    assert world.watchdog.parts.recycle("growth") is None
    world.wait(30)
    assert told() == [("recycle", EVENT)]


def test_a_config_that_is_refused(world: World, told: Told) -> None:
    """The former one is in force, and knows who is told."""
    world.write(nonsense=True)
    world.ask("reload")
    world.wait(30)
    assert told() == [("config-refused", OPEN)]


def test_an_upgrade_takes_it_along(world: World, told: Told) -> None:
    """In a state that a version which knows of none of it left as well."""
    world.workers[1].exit(1)
    world.wait(10)
    parts = world.watchdog.parts
    left = msgspec.json.encode(parts.upgrader._handover.leave_behind(), enc_hook=str)
    read: Any = msgspec.json.decode(left)
    [outbox] = read["outboxes"].values()
    assert [each["id"] for each in outbox["waiting"]] == ["worker-lost"]
    assert read["config"]["addresses"] == {"notify": "http://127.0.0.1:9/CANARY"}
    fields = {info.name for info in msgspec.structs.fields(UpgradeState) if info.required}
    assert "outboxes" not in fields


def test_a_process_that_sends_counts_in_the_budget(
    world: World, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does."""
    parts = world.watchdog.parts
    asked: list[list[int]] = []

    def read(_: sample.Sampler, pids: list[int]) -> sample.Sample:
        asked.append(list(pids))
        return sample.Sample(rss=dict.fromkeys(pids, 1), cgroup_bytes=None, available_bytes=1)

    monkeypatch.setattr(sample.Sampler, "read", read)
    monkeypatch.setattr(type(parts.teller), "pids", [4711])
    parts.memory.read(parts.generations)
    assert asked[-1] == [os.getpid(), world.workers[1].pid, 4711]
