"""What workers are told of the places where they keep answers. In virtual time."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tidegate.core.memory.levels import journal_limit_bytes
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.stores import StoreState
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.settings import KIB, MIB, Journal, Memory, Settings
from tidegate.machine.mounts import is_in_memory
from tidegate.watchdog.workers.store_places import find_places, fitted
from watchdog.world import World, made

SHM = Path("/dev/shm")
IN_MEMORY = StorePlaces(memory="/nowhere/run", disk="/var/lib/x")
ON_DISK = StorePlaces(disk="/var/lib/x")
needs_memory = pytest.mark.skipif(not is_in_memory(SHM), reason="needs /dev/shm in memory")


@pytest.fixture
def in_memory() -> Iterator[World]:
    """A watchdog whose directories are in memory."""
    with tempfile.TemporaryDirectory(prefix="tg-", dir=SHM) as name, made(Path(name)) as world:
        yield world


def journal(**values: object) -> Settings:
    return Settings(journal=replace(Journal(), **values))


@needs_memory
def test_the_runtime_directory_is_a_place_where_it_is_in_memory(tmp_path: Path) -> None:
    """The state directory always is one, on whatever it lies."""
    assert find_places(SHM, tmp_path) == StorePlaces(memory=str(SHM), disk=str(tmp_path))
    assert find_places(Path("/proc"), tmp_path) == StorePlaces(disk=str(tmp_path))
    (tmp_path / "state").symlink_to(SHM)
    assert find_places(SHM, tmp_path / "state") == StorePlaces(memory=str(SHM), disk=str(SHM))
    missing = tmp_path / "missing"
    assert find_places(SHM, missing) == StorePlaces(memory=str(SHM), disk=str(missing))


def test_a_journal_in_memory_is_held_to_a_part_of_the_budget(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What lies there is freed by no sweep, so it must not fill the budget. The log says so."""
    caplog.set_level(logging.INFO)
    large = journal(max_bytes=900 * MIB)
    large = replace(large, memory=replace(large.memory, budget_bytes=256 * MIB))
    most = journal_limit_bytes(256 * MIB)
    assert fitted(large, IN_MEMORY).journal.max_bytes == most < 256 * MIB / 4
    assert fitted(large, ON_DISK) == large
    on_disk = replace(large, journal=replace(large.journal, place="disk"))
    assert fitted(on_disk, IN_MEMORY) == on_disk
    small = replace(large, journal=Journal(max_bytes=most))
    assert fitted(small, IN_MEMORY) is small
    off = replace(large, journal=replace(large.journal, keep="off"))
    assert fitted(off, IN_MEMORY) is off
    [line] = caplog.messages
    assert line.startswith("the journal takes at most 36.0 MiB of memory, not 900")


@pytest.mark.parametrize(
    ("blocks", "most"), [(0, 36 * MIB), (1 << 40, 36 * MIB), (16384, 16 * MIB), (9, 256 * KIB)]
)
def test_a_journal_in_memory_leaves_others_their_room(
    monkeypatch: pytest.MonkeyPatch, blocks: int, most: int
) -> None:
    """/run is small on a small computer, and every service needs a little of it."""
    found = os.statvfs("/")
    fields = [4096, 4096, blocks, *found[3:]]
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    large = Settings(memory=Memory(budget_bytes=256 * MIB), journal=Journal(max_bytes=900 * MIB))
    assert fitted(large, IN_MEMORY).journal.max_bytes == most


@needs_memory
def test_workers_are_told_and_follow_the_runtime_directory(in_memory: World) -> None:
    """One that is made elsewhere takes its journal's place along."""
    in_memory.start()
    folder = in_memory.directory
    told = in_memory.workers[1].last(msg.Configure)
    assert told.store_places == StorePlaces(memory=str(folder), disk=str(folder))
    elsewhere = Path(tempfile.mkdtemp(prefix="tg-", dir="/var/tmp"))
    try:
        if is_in_memory(elsewhere):
            pytest.skip("everything is in memory here")
        in_memory.watchdog.parts.generations.move(elsewhere)
        in_memory.workers[1].act()
        moved = in_memory.workers[1].last(msg.Configure)
        assert moved.store_places == StorePlaces(disk=str(folder))
        assert in_memory.ask("recycle").ok
        assert in_memory.workers[2].last(msg.Configure).store_places == moved.store_places
    finally:
        shutil.rmtree(elsewhere)


def test_a_reload_tells_the_places_and_the_journal_anew(world: World) -> None:
    """`keep = "off"` counts at once, so the worker has to know where to remove what there is."""
    world.start()
    world.write(journal={"keep": "off"})
    assert world.ask("reload").ok
    told = world.workers[1].last(msg.Configure)
    assert told.settings.journal.keep == "off"
    assert told.store_places.disk == str(world.directory)


def test_a_parked_one_keeps_its_hands_off(world: World) -> None:
    """What stands in for the config would shorten what was kept by another one."""
    world.config.write_text("nonsense")
    world.start(park=True, serves=False)
    world.until(lambda: 1 in world.workers and world.workers[1].told, "a worker is told")
    world.workers[1].journal = StoreState(keep="off", place="disk", paused="there is no directory")
    world.wait(10.0)
    status = world.status()
    assert status["journal"] is None
    assert [each["id"] for each in status["repairs"]] == ["parked"]
    assert world.workers[1].last(msg.Configure).store_places == StorePlaces()


def test_the_status_and_the_budget_have_what_the_serving_worker_tells(world: World) -> None:
    """A journal in memory is used, and taken off what answers may hold; on a disk it is not."""
    world.start()
    assert world.status()["journal"] is None
    world.wait(2.0)
    before, decision = world.status()["memory"], world.watchdog.parts.memory.decision
    assert decision is not None
    kept = StoreState(keep="answers", place="memory", bytes=20 * MIB, runs=7, oldest=1.0)
    world.workers[1].journal = kept
    world.wait(3.0)
    told = world.status()
    assert (told["journal"]["runs"], told["journal"]["bytes"]) == (7, 20 * MIB)
    assert told["history"] is None
    assert told["memory"]["used_bytes"] == before["used_bytes"] + 20 * MIB
    assert told["memory"]["unexplained_bytes"] == before["unexplained_bytes"]
    after = world.watchdog.parts.memory.decision
    assert after is not None
    assert after.spendable_bytes == decision.spendable_bytes - 20 * MIB
    assert after.ledger_limit_bytes < decision.ledger_limit_bytes
    world.workers[1].journal = replace(kept, place="disk", paused="no room")
    world.wait(10.0)
    assert world.status()["memory"]["used_bytes"] == before["used_bytes"]
    assert [each["id"] for each in world.status()["repairs"]] == ["journal-paused"]
    world.workers[1].journal = kept
    world.wait(20.0)
    assert world.status()["repairs"] == []
