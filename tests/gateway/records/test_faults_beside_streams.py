"""Whatever befalls the stores' files, no answer differs by a byte."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.client import Stream, chat, get, numbers, open_chat
from fakes.machine import until
from fakes.upstream import numbered
from gateway.gateway_rig import DEADLINE_S, Rig, Tap
from gateway.records.records_rig import found, new_places
from tidegate.core.settings import Journal
from tidegate.gateway.records import recorder
from tidegate.gateway.stores import store_pause
from tidegate.gateway.stores.database import Database, StoreFault

ON_EVERY_ROAD = True
STREAMS = 8


def rubbish(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"no database" * 1000)


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def replaced(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another program holds the file for as long as this lasts."""
    [file] = folder.glob("*.db")
    with sqlite3.connect(file, isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    connection.close()


FAULTS = {"rubbish": rubbish, "removed": removed, "replaced": replaced}


async def answers(rig) -> None:
    """Answers of each kind, at once, and each is whole."""
    slow = [await open_chat(rig.base_url, "numbered:40:10") for _ in range(STREAMS)]
    for _ in range(4):
        fast = await asyncio.gather(*(chat(rig.base_url, "ok") for _ in range(STREAMS)))
        assert all(answer.clean for answer in fast)
        assert len({bytes(answer.body) for answer in fast}) == 1
    for stream in slow:
        await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
        assert numbers(stream.events) == list(range(40))
        assert stream.clean
    await rig.idle()


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_file_that_is_spoiled_touches_no_answer(
    rigs, scripted_upstream, tmp_path, fault: str
) -> None:
    """While answers are under way, in both stores at once."""
    places = new_places(tmp_path)
    rig = await rigs(scripted_upstream, places=places, journal=Journal(every_s=0.1))
    await answers(rig)
    for folder in (Path(places.memory or "") / "journal", Path(places.disk or "") / "history"):
        FAULTS[fault](folder)
    await answers(rig)
    await answers(rig)
    if fault != "replaced":  # there it cannot be begun anew
        kept = await chat(rig.base_url, "ok")
        await rig.idle()
        again = await found(rig, kept.run_id)
        assert again is not None
        assert again.events == bytes(kept.body)
    rig.errors.clear()


async def test_a_file_that_is_locked_touches_no_answer(rigs, scripted_upstream, tmp_path) -> None:
    """Another program holds both; the loop does not wait for it."""
    places = new_places(tmp_path)
    rig = await rigs(scripted_upstream, places=places, journal=Journal(every_s=0.1))
    await answers(rig)
    journal = Path(places.memory or "") / "journal"
    with locked(journal), locked(Path(places.disk or "") / "history"):
        began_s = rig.gateway.loop.time()
        await answers(rig)
        assert rig.gateway.loop.time() - began_s < DEADLINE_S
    rig.errors.clear()


@pytest.mark.parametrize("every", [2, 3, 7])
async def test_writing_that_fails_now_and_then_touches_no_answer(
    rigs, scripted_upstream, tmp_path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Every so manyth statement fails as a full disk does."""
    executed = 0
    execute = Database.execute

    def failing(self: Database, *arguments: object) -> sqlite3.Cursor:
        nonlocal executed
        executed += 1
        if executed % every == 0:
            raise StoreFault("there is no room left", is_full=True)
        return execute(self, *arguments)  # type: ignore[arg-type]

    places = new_places(tmp_path)
    rig = await rigs(scripted_upstream, places=places, journal=Journal(every_s=0.1))
    with monkeypatch.context() as patched:
        patched.setattr(store_pause, "PAUSE_S", 0.02)
        patched.setattr(Database, "execute", failing)
        await answers(rig)
        await answers(rig)
        assert executed >= every
        await rig.gateway.stores.flush(DEADLINE_S)
    rig.errors.clear()


async def begun(rigs: Any, raw_upstream: Any, tmp_path: Path) -> tuple[Tap, Rig, Stream]:
    """An answer under way, of which the journal has something already."""
    tap = Tap()
    places = new_places(tmp_path)
    rig = await rigs(await raw_upstream(tap.play), places=places, journal=Journal(every_s=0.1))
    stream = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await stream.read_events(2)
    await until(lambda: bool(rig.gateway.recorder._written), DEADLINE_S, "it is written")
    return tap, rig, stream


@pytest.mark.long
async def test_an_end_that_could_not_be_written_is_told_again(
    rigs, raw_upstream, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the journal takes something; until then the run looks as if it went on."""

    def failing(self: Database, *arguments: object) -> sqlite3.Cursor:
        raise StoreFault("it cannot be written")

    monkeypatch.setattr(recorder, "TOLD_AGAIN_S", 0.2)
    monkeypatch.setattr(store_pause, "PAUSE_S", 0.5)
    tap, rig, stream = await begun(rigs, raw_upstream, tmp_path)
    mine = rig.gateway.recorder
    await rig.gateway.stores.flush(DEADLINE_S)
    with monkeypatch.context() as patched:
        patched.setattr(Database, "execute", failing)
        tap.finish()
        await stream.read_rest()
        await rig.idle()
        mine.flush()
        await until(
            lambda: rig.gateway.stores.states()[0].dropped_bytes,
            DEADLINE_S,
            "it is given up, which is after three tries",
        )
    await until(lambda: not mine._ends, DEADLINE_S, "the end is told again")
    kept = await found(rig, stream.run_id)
    assert kept is not None
    assert (kept.run.state, kept.is_alive, kept.run.next_seq) == ("completed", False, 4)
    assert bytes(stream.body).endswith(kept.events)
    assert mine._looking is None
    rig.errors.clear()


async def test_what_was_forgotten_is_not_told_again(
    rigs, raw_upstream, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though other ends could not be written at that time."""
    monkeypatch.setattr(recorder, "TOLD_AGAIN_S", 0.2)
    tap, rig, stream = await begun(rigs, raw_upstream, tmp_path)
    mine = rig.gateway.recorder
    tap.finish()
    await stream.read_rest()
    await rig.idle()
    assert mine._ends
    mine._dropped_bytes = -1  # as if something had been dropped
    answer = await get(rig.base_url, f"/v1/runs/{stream.run_id}", method="DELETE")
    assert answer.status == 200
    await until(lambda: mine._looking is None, DEADLINE_S, "all is told")
    assert await found(rig, stream.run_id) is None
