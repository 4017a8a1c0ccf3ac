"""What is kept stays within its bounds, and what goes first is the oldest that is over."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from fakes.machine import until
from gateway.stores.store_rig import (
    NOW,
    OWNER,
    StoreRig,
    a_row,
    entry,
    events,
    stores_in,
    under_way,
)
from tidegate.core.records.usage import TokenUsage
from tidegate.core.settings import KIB, MIB, History, Journal, Price
from tidegate.gateway.stores import store_thread
from tidegate.gateway.stores.history import MOST_LINES, RunHistory


def small(max_bytes: int = MIB, keep_s: float = 86400.0) -> Journal:
    """A journal of a megabyte."""
    return Journal(keep="answers", max_bytes=max_bytes, keep_s=keep_s)


def size_of(directory: Path) -> int:
    """What the files in it take."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


async def test_the_oldest_that_are_over_go_first(tmp_path: Path) -> None:
    """A run that goes on stays, however old; the files are within the limit at every moment."""
    async with stores_in(tmp_path, small()) as rig:
        rig.stores.put([under_way("run_on", events(0, 20), 0, 20)], [])
        for n in range(600):
            rig.stores.put([entry(f"run_{n}", os.urandom(5000), count=1)], [])
            if n % 10 == 0:
                await rig.stores.flush(5)
                assert size_of(rig.memory) <= MIB + 128 * KIB
        ids = [run.id for run in await rig.stores.list_runs(None, 1000)]
        kept = [int(run_id[4:]) for run_id in ids if run_id != "run_on"]
        assert kept == list(range(599, kept[-1] - 1, -1))
        assert 100 < len(kept) < 220
        found = await rig.stores.find("run_on", OWNER)
        assert found is not None
        assert found.events == events(0, 20)
        journal, _ = rig.stores.states()
        assert journal.runs == len(ids)
        assert journal.dropped_bytes == 0
        assert journal.bytes == size_of(rig.memory)


async def test_runs_that_go_on_lose_their_oldest_events(tmp_path: Path) -> None:
    """Where there is nothing else to drop; what is left ends where it should."""
    async with stores_in(tmp_path, small()) as rig:
        for n in range(100):
            rig.stores.put([under_way(f"run_{k}", os.urandom(10_000), n, 1) for k in range(4)], [])
            await rig.stores.flush(5)
            assert size_of(rig.memory) <= MIB + 128 * KIB
        for k in range(4):
            found = await rig.stores.find(f"run_{k}", OWNER)
            assert found is not None
            assert found.run.next_seq == 100
            assert 0 < found.run.first_seq < 95
            assert len(found.events) == 10_000 * (100 - found.run.first_seq)


async def test_a_smaller_limit_counts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the room back, which would take a minute at the pace that is usual."""
    monkeypatch.setattr(store_thread, "_REST", 0)
    async with stores_in(tmp_path, small(4 * MIB)) as rig:
        for n in range(300):
            rig.stores.put([entry(f"run_{n}", os.urandom(10_000), count=1)], [])
            await rig.stores.flush(5)
        assert size_of(rig.memory) > 3 * MIB
        rig.stores.configure(small(), History(), rig.places)
        await until(lambda: size_of(rig.memory) <= MIB)
        ids = [run.id for run in await rig.stores.list_runs(None, 1000)]
        assert ids[0] == "run_299"
        assert len(ids) > 50


async def test_what_is_too_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From both, though neither is full and nothing is written any more."""
    monkeypatch.setattr(store_thread, "CHORES_S", 0.1)
    async with stores_in(tmp_path, small(keep_s=3600), History(keep_s=3600)) as rig:
        for n in range(300):
            old = {"ended": NOW - 3600 - n % 2 * 7200}
            rig.stores.put([entry(f"run_{n}", b"x", count=1, **old)], [a_row(f"run_{n}", **old)])
        rig.stores.put([entry("run_new"), under_way("run_on", created=NOW - 9999)], [a_row("new")])
        await rig.stores.flush(5)
        await until(lambda: [state.runs for state in rig.stores.states()] == [2, 1])
        assert {run.id for run in await rig.stores.list_runs(None, 10)} == {"run_new", "run_on"}
        await until(lambda: rig.journal_file.with_name("runs.db-wal").stat().st_size == 0)


async def fill(rig: StoreRig, count: int, first: int = 0) -> None:
    """Put rows as they are in life."""
    for start in range(first, first + count, 1000):
        rows = [
            a_row(f"run_{n:032x}", token=f"token-{n % 7}", asked=f"model-{n % 40}", began=NOW - n)
            for n in range(start, min(start + 1000, first + count))
        ]
        rig.stores.put([], rows)
        await rig.stores.flush(30)


async def test_the_history_keeps_so_many_rows(tmp_path: Path) -> None:
    """The newest ones."""
    async with stores_in(tmp_path, history=History(max_rows=500)) as rig:
        await fill(rig, 3000)
        rows = await rig.stores.list_rows(None, 10_000)
        assert [row.id for row in rows] == [f"run_{n:032x}" for n in range(2999, 2499, -1)]
        assert rig.stores.states()[1].runs == 500


def count(run_id: str, store: RunHistory) -> int:
    """Look one up."""
    return store.database.first("SELECT count(*) FROM runs WHERE id=?", (run_id,))


@pytest.mark.long
async def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    """Within 30 MB, each found within 2 ms, and summed up within a second."""
    async with stores_in(tmp_path) as rig:
        await fill(rig, 103_000)
        assert rig.stores.states()[1].runs == 100_000
        assert size_of(rig.disk) <= 30_000_000
        began_s = time.monotonic()
        for n in range(3000, 103_000, 1000):
            assert await rig.stores._history.ask(partial(count, f"run_{n:032x}")) == 1
        assert time.monotonic() - began_s < 0.2
        began_s = time.monotonic()
        assert len(await rig.stores.usage("model", 0, None, {})) == 40
        assert time.monotonic() - began_s < 1


async def test_of_more_names_than_are_listed_the_rest_is_one_line(tmp_path: Path) -> None:
    """So that the sum of the lines is what was used, whatever it is of."""
    count = MOST_LINES + 30
    async with stores_in(tmp_path, small()) as rig:
        for start in range(0, count, 100):
            rows = [
                a_row(f"run_{n}", asked=f"model-{n:04}", usage=TokenUsage(n, 1, 0, 0))
                for n in range(start, min(start + 100, count))
            ]
            rig.stores.put([], rows)
            await rig.stores.flush(5)
        *lines, rest = await rig.stores.usage("model", 0, None, {"model-0001": Price(output=3.0)})
        assert [line.key for line in lines] == [f"model-{n:04}" for n in range(count - 1, 29, -1)]
        assert (rest.key, rest.runs, rest.input) == ("(others)", 30, sum(range(30)))
        assert sum(line.runs for line in [*lines, rest]) == count
        [whole] = await rig.stores.usage("token", 0, None, {})
        assert whole.runs == count


@pytest.mark.long
async def test_a_full_journal_is_read_quickly(tmp_path: Path) -> None:
    """Within 2 ms, at the default limit, which holds for all files together."""
    async with stores_in(tmp_path, small(32 * MIB)) as rig:
        for n in range(0, 12_000, 100):
            rig.stores.put(
                [entry(f"run_{n + k}", os.urandom(4000), count=1) for k in range(100)], []
            )
            await rig.stores.flush(30)
            assert size_of(rig.memory) <= 33 * MIB
        assert rig.stores.states()[0].dropped_bytes == 0
        began_s = time.monotonic()
        for n in range(11_000, 12_000):
            assert await rig.stores.find(f"run_{n}", OWNER) is not None
        assert time.monotonic() - began_s < 2
