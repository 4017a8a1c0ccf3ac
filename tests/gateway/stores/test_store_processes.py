"""What a process has written outlives it, however it ends, and two may write at once."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from gateway.stores.store_rig import (
    OWNER,
    StoreRig,
    a_row,
    event,
    events,
    stores_in,
    under_way,
)
from gateway.stores.store_writer import PIECE
from tidegate.core.settings import Journal

TESTS = Path(__file__).parents[2]
MANY = 100_000  # batches: more than it will get to


@asynccontextmanager
async def writer(
    directory: Path, name: str, count: int
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """A process that writes, and the lines it prints; ended if it has not ended by then."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.stores.store_writer", str(directory), name, str(count)),
        stdout=asyncio.subprocess.PIPE,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()


async def killed(directory: Path, name: str, batches: int, pause_s: float) -> int:
    """Have a process write, kill it a moment after so many batches; the last one it told."""
    async with writer(directory, name, MANY) as (process, lines):
        for _ in range(batches):
            assert await lines.readline()
        await asyncio.sleep(pause_s)
        os.kill(process.pid, signal.SIGKILL)  # the other way may reap it before its watcher does
        told = (await lines.read()).split()
    assert process.returncode == -signal.SIGKILL
    return int(told[-1]) if told else batches - 1


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, as any other program opens it."""
    with closing(sqlite3.connect(path)) as connection:
        yield connection


async def is_whole(rig: StoreRig, name: str, last: int) -> None:
    """Every batch until that one is there; the run that went on failed where it was."""
    for n in range(last + 1):
        found = await rig.stores.find(f"{name}_{n}", OWNER)
        assert found is not None
        assert (found.events, found.run.state) == (events(0, n), "completed")
    found = await rig.stores.find(f"{name}_on", OWNER)
    assert found is not None
    after = found.run.next_seq
    assert after >= PIECE * (last + 1)
    assert found.events == events(0, after)
    assert not found.is_alive
    assert (found.run.state, found.run.code) == ("failed", "worker_died")
    assert found.run.reason == f"the worker died at event {after}"
    rows = {row.id: row for row in await rig.stores.list_rows(None, MANY)}
    assert {f"{name}_{n}" for n in range(last + 1)} <= rows.keys()
    row = rows[f"{name}_on"]
    assert (row.outcome, row.code, row.format, row.upstream, row.attempts) == (
        "failed", "worker_died", "chat completion", "spare", 2,
    )  # fmt: skip
    assert row.answer_bytes == len(found.events)


@pytest.mark.processes
async def test_a_process_that_is_killed_leaves_all_but_its_last_batch(tmp_path: Path) -> None:
    """At twenty moments, one process after the other on the same files."""
    chance = random.Random(8)
    for turn in range(20):
        last = await killed(tmp_path, f"of{turn}", 1 + turn % 5, chance.random() / 50)
        for path in (tmp_path / "memory/journal/runs.db", tmp_path / "disk/history/history.db"):
            copy = tmp_path / "copy"
            shutil.copytree(path.parent, copy)
            with opened(copy / path.name) as connection:
                assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            shutil.rmtree(copy)
        async with stores_in(tmp_path) as rig:
            await is_whole(rig, f"of{turn}", last)
            states = rig.stores.states()
            assert [(state.set_aside, state.paused) for state in states] == [(None, None)] * 2


@pytest.mark.processes
async def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """As during a recycle; nothing of either is lost, and a third one reads meanwhile."""
    count = 60
    async with (
        writer(tmp_path, "one", count) as (one, _),
        writer(tmp_path, "two", count) as (two, lines),
        stores_in(tmp_path) as rig,
    ):
        await lines.readline()
        found = await rig.stores.find("two_on", None)
        assert found is not None
        assert found.is_alive
        assert found.events[:50].startswith(event(0))
        assert (await one.wait(), await two.wait()) == (0, 0)
        for name in ("one", "two"):
            await is_whole(rig, name, count - 1)


@pytest.mark.processes
async def test_what_was_interrupted_is_told_once(tmp_path: Path) -> None:
    """Though two workers open the files at once; and of a living one nothing is ended."""
    await killed(tmp_path, "dead", 3, 0)
    async with stores_in(tmp_path) as one, stores_in(tmp_path) as two:
        told: list[str] = []
        one.stores.on_interrupted = lambda rows: told.extend(row.id for row in rows)
        one.stores.put([under_way("run_mine", events(0, 2), 0, 2)], [])
        await one.stores.flush(5)
        for rig in (one, two):
            runs = {run.id: run for run in await rig.stores.list_runs(None, 1000)}
            assert runs["dead_on"].state == "failed"
            assert runs["run_mine"].state == "streaming"
        rows = [row.id for row in await two.stores.list_rows(None, 1000)]
        assert rows.count("dead_on") <= 1
        await one.stores.flush(5)
        rows = [row.id for row in await two.stores.list_rows(None, 1000)]
        assert rows.count("dead_on") == 1


@pytest.mark.processes
async def test_a_worker_that_dies_later_is_noticed(tmp_path: Path) -> None:
    """By the next question after it; the other worker has been open all the time."""
    async with stores_in(tmp_path) as rig:
        last = await killed(tmp_path, "later", 3, 0)
        await is_whole(rig, "later", last)


async def test_without_text_it_is_still_told_where_it_was(tmp_path: Path) -> None:
    """`ends`: how many events there were, and none of them."""
    lifetime = "0123456789abcdef/1/1"  # of no process
    async with stores_in(tmp_path, Journal(keep="ends", place="memory")) as rig:
        rig.stores._journal._store._writer = lifetime  # type: ignore[union-attr]
        rig.stores.put([under_way("run_1", events(0, 7), 0, 7)], [])
        await rig.stores.flush(5)
    async with stores_in(tmp_path, Journal(keep="ends", place="memory")) as rig:
        found = await rig.stores.find("run_1", OWNER)
        assert found is not None
        assert found.run.reason == "the worker died at event 7"
        assert (found.run.first_seq, found.run.next_seq, found.events) == (7, 7, b"")


async def test_a_row_of_a_run_that_completed_is_not_changed(tmp_path: Path) -> None:
    """By one that was taken for interrupted."""
    async with stores_in(tmp_path) as rig:
        rig.stores.put([], [a_row()])
        await rig.stores.flush(5)
        rig.stores._put_rows([a_row(outcome="failed", code="worker_died")])
        assert await rig.stores.list_rows(None, 10) == [a_row()]
