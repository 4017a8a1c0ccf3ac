"""Whatever befalls the files, nothing raises, the rest goes on, and what is found is right."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.machine import until
from gateway.stores.store_rig import (
    ANSWERS,
    OWNER,
    StoreRig,
    a_row,
    entry,
    events,
    stores_in,
    under_way,
)
from tidegate.core.settings import MIB, History, Journal
from tidegate.gateway.stores import database, store_pause, store_thread
from tidegate.gateway.stores.store_thread import StoreUnavailable

PAUSE_S = 0.2


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is long for a test."""
    monkeypatch.setattr(store_pause, "PAUSE_S", PAUSE_S)


class Flaky(sqlite3.Connection):
    """A genuine connection of which every so manyth statement fails."""

    every = 0  # 0: none
    code = sqlite3.SQLITE_IOERR
    done = 0

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute it, or fail before or after it has been done."""
        Flaky.done += 1
        if Flaky.every and Flaky.done % Flaky.every == 0:
            if Flaky.done % 2:
                super().execute(*arguments)
            error = sqlite3.OperationalError("planted")
            error.sqlite_errorcode = Flaky.code
            raise error
        return super().execute(*arguments)


def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
    """Open a flaky connection."""
    return sqlite3.connect(*arguments, factory=Flaky, **named)


@pytest.fixture
def flaky() -> Iterator[type[Flaky]]:
    """How connections fail; they do not yet."""
    Flaky.every, Flaky.code, Flaky.done = 0, sqlite3.SQLITE_IOERR, 0
    yield Flaky
    Flaky.every = 0


async def is_kept(rig: StoreRig, run_id: str) -> bool:
    """Puts a run and a row, and tells whether both are there."""
    rig.stores.put([entry(run_id, events(0, 3), count=3)], [a_row(run_id)])
    try:
        found = await rig.stores.find(run_id, OWNER)
        rows = await rig.stores.list_rows(None, 1000)
    except StoreUnavailable:
        return False
    return found is not None and found.events == events(0, 3) and run_id in {r.id for r in rows}


async def is_kept_again(rig: StoreRig) -> None:
    """Waits until both stores keep what they are given, and say that all is well."""
    for n in range(200):
        is_there = await is_kept(rig, f"run_again_{n}")
        if is_there and not any(state.paused for state in rig.stores.states()):
            return
        await asyncio.sleep(PAUSE_S / 4)
    raise AssertionError(rig.stores.states())


@pytest.mark.parametrize("every", [2, 3, 7, 11, 29])
async def test_every_so_manyth_statement_fails(
    tmp_path: Path, flaky: type[Flaky], every: int
) -> None:
    """What is found has no part missing in its midst; what is lost is counted."""
    async with stores_in(tmp_path, connect=connect) as rig:
        flaky.every = every
        for turn in range(40):
            put = [
                under_way(f"run_{n}", events(2 * turn, 2), 2 * turn, 2, model="m" * n)
                for n in range(4)
            ]
            rig.stores.put(put, [a_row(f"row_{turn}")])
            await rig.stores.flush(1)
            await asyncio.sleep(0.01)
            try:
                found = await rig.stores.find("run_1", OWNER)
            except StoreUnavailable:
                continue
            if found is not None:
                first, after = found.run.first_seq, found.run.next_seq
                assert found.events == events(first, after - first)
                assert after <= 2 * turn + 2
        flaky.every = 0
        await is_kept_again(rig)
        await rig.written()
        assert all(state.written_bytes > 0 for state in rig.stores.states())
        for n in range(4):  # and the next piece of each is taken up again
            rig.stores.put([under_way(f"run_{n}", events(80, 2), 80, 2)], [])
            found = await rig.stores.find(f"run_{n}", OWNER)
            assert found is not None
            first = found.run.first_seq
            assert (found.run.next_seq, found.events) == (82, events(first, 82 - first))


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "why"),
    [
        (sqlite3.SQLITE_FULL, "there is no room left"),
        (sqlite3.SQLITE_IOERR, "it cannot be read or written"),
        (sqlite3.SQLITE_IOERR_FSYNC, "it cannot be read or written"),
        (sqlite3.SQLITE_READONLY, "it may not be written"),
        (sqlite3.SQLITE_READONLY_DBMOVED, "it may not be written"),
        (sqlite3.SQLITE_BUSY, "another program keeps it locked"),
        (sqlite3.SQLITE_CANTOPEN, "it cannot be opened"),
        (sqlite3.SQLITE_NOMEM, "there is no memory for it"),
        (sqlite3.SQLITE_TOOBIG, "it cannot be used"),
    ],
)
async def test_a_pause_says_why_and_ends(
    tmp_path: Path, flaky: type[Flaky], code: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the file's name, in the status, in what a reader is told, and once in the log."""
    caplog.set_level("INFO")
    async with stores_in(tmp_path, connect=connect) as rig:
        assert await is_kept(rig, "run_before")
        flaky.every, flaky.code = 1, code
        for n in range(20):
            rig.stores.put([entry(f"run_{n}", events(0, 3), count=3)], [a_row(f"run_{n}")])
            await asyncio.sleep(0.02)
        await until(lambda: all(state.paused for state in rig.stores.states()))
        for state, file in zip(
            rig.stores.states(), (rig.journal_file, rig.history_file), strict=True
        ):
            assert state.paused == f"{file}: {why} (planted)"
            assert state.set_aside is None
        with pytest.raises(StoreUnavailable, match=why):
            await rig.stores.find("run_before", OWNER)
        with pytest.raises(StoreUnavailable, match=why):
            await rig.stores.usage("token", 0, None, {})
        flaky.every = 0
        await is_kept_again(rig)
        assert await rig.stores.find("run_before", OWNER) is not None
    told = [record for record in caplog.records if "is paused" in record.message]
    assert len(told) == 2
    assert sum("is kept again" in record.message for record in caplog.records) == 2


@pytest.mark.long
async def test_what_fails_again_and_again_is_dropped(tmp_path: Path, flaky: type[Flaky]) -> None:
    """A batch that cannot be written must not keep all that comes after it from it."""
    async with stores_in(tmp_path, connect=connect) as rig:
        flaky.every = 1
        rig.stores.put([entry("run_1", events(0, 3), count=3)], [a_row("run_1")])
        await rig.written()
        for state in rig.stores.states():
            assert state.dropped_bytes > 0
            assert (state.writes, state.lag_s) == (0, 0.0)
        flaky.every = 0
        await is_kept_again(rig)


async def test_one_store_fails_and_the_other_goes_on(tmp_path: Path) -> None:
    """The state directory may be what it wants: answers are in memory."""
    (tmp_path / "disk").write_text("no directory")
    async with stores_in(tmp_path) as rig:
        rig.stores.put([entry(events=events(0, 3), count=3)], [a_row()])
        assert await rig.stores.find("run_1", OWNER) is not None
        with pytest.raises(StoreUnavailable, match=r"Not a directory|File exists"):
            await rig.stores.list_rows(None, 10)
        journal, history = rig.stores.states()
        assert journal.paused is None
        assert str(rig.disk) in str(history.paused)
        (tmp_path / "disk").unlink()
        await is_kept_again(rig)


def overwrite_start(path: Path) -> None:
    """Rubbish where the head was."""
    with path.open("r+b") as file:
        file.write(os.urandom(4096))


def overwrite_all(path: Path) -> None:
    """Rubbish, as much as there was before."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(os.urandom(size))


def replace(path: Path) -> None:
    """Another file in its place, which is no database."""
    other = path.with_name("other")
    other.write_bytes(os.urandom(5000))
    other.replace(path)


def cut(path: Path) -> None:
    """Half of it."""
    os.truncate(path, path.stat().st_size // 2 // 512 * 512)


def spoil_tables(path: Path) -> None:
    """All pages but the first."""
    with path.open("r+b") as file:
        file.seek(512)
        file.write(os.urandom(path.stat().st_size - 512))


@pytest.mark.parametrize("spoil", [overwrite_start, overwrite_all, replace, cut, spoil_tables])
@pytest.mark.parametrize("while_open", [False, True])
async def test_a_damaged_file_is_put_aside(
    tmp_path: Path, spoil: Any, while_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One of them is kept, with the mode it had, and both stores go on with new files."""
    async with stores_in(tmp_path) as rig:
        for n in range(30):
            assert await is_kept(rig, f"run_{n}")
        files = rig.journal_file, rig.history_file
        if while_open:
            for file, thread in zip(files, (rig.stores._journal, rig.stores._history), strict=True):
                await thread.ask(lambda store: store.database.checkpoint())
                spoil(file)
            await is_kept_again(rig)
    if not while_open:
        for file in files:
            spoil(file)
    async with stores_in(tmp_path) as rig:
        await is_kept_again(rig)
        for state, file in zip(rig.stores.states(), files, strict=True):
            bad = file.with_name(f"{file.name}.bad")
            if spoil is not cut or bad.exists():
                assert state.set_aside == str(bad)
                assert bad.stat().st_mode & 0o777 in {0o600, 0o644}
        assert await rig.stores.forget(None, None, rows=True) >= 1
        assert not [path for path in rig.files() if path.suffix == ".bad"]
        await until(lambda: [state.set_aside for state in rig.stores.states()] == [None, None])


@pytest.mark.parametrize("what", ["file", "wal", "directory", "place"])
async def test_what_is_removed_is_made_anew(tmp_path: Path, what: str) -> None:
    """At the next batch, private as before."""
    async with stores_in(tmp_path) as rig:
        assert await is_kept(rig, "run_before")
        for file in (rig.journal_file, rig.history_file):
            if what == "file":
                file.unlink()
            elif what == "wal":
                file.with_name(f"{file.name}-wal").unlink()
            else:
                shutil.rmtree(file.parent if what == "directory" else file.parent.parent)
        assert await is_kept(rig, "run_after")
        if what != "wal":
            assert await rig.stores.find("run_before", OWNER) is None
        for file in rig.files():
            assert file.stat().st_mode & 0o777 == 0o600
            assert file.parent.stat().st_mode & 0o777 == 0o700
        with closing(sqlite3.connect(rig.history_file)) as other:
            assert other.execute("PRAGMA quick_check").fetchone() == ("ok",)


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Neither in the file's place nor in the directory's."""
    victim = tmp_path / "victim"
    victim.write_text("not to be touched\n")
    for name in ("journal/runs.db", "journal/runs.db-wal"):
        (tmp_path / "memory" / "journal").mkdir(parents=True, exist_ok=True)
        place = tmp_path / "memory" / name
        place.symlink_to(victim)
        async with stores_in(tmp_path) as rig:
            assert not await is_kept(rig, "run_1")
            journal, _ = rig.stores.states()
            assert "remove it" in str(journal.paused)
        assert victim.read_text() == "not to be touched\n"
        place.unlink()
    shutil.rmtree(tmp_path / "memory" / "journal")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "memory" / "journal").symlink_to(tmp_path / "elsewhere")
    async with stores_in(tmp_path) as rig:
        assert not await is_kept(rig, "run_1")
        assert rig.stores.states()[0].paused is not None
    assert not [*(tmp_path / "elsewhere").iterdir()]


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[bytes]:
    """A process that locks the database until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


async def test_a_lock_that_is_held_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process: the loop goes on, and the store when it is given back."""
    monkeypatch.setattr("tidegate.gateway.stores.database.BUSY_S", 0.3)
    async with stores_in(tmp_path) as rig:
        assert await is_kept(rig, "run_before")
        with hold(rig.journal_file) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            assert holder.stdout.readline() == b"held\n"
            began_s = time.monotonic()
            rig.stores.put([entry("run_held", events(0, 3), count=3)], [a_row("run_held")])
            assert time.monotonic() - began_s < 0.1
            await until(lambda: rig.stores.states()[0].paused is not None)
            assert "another program keeps it locked" in str(rig.stores.states()[0].paused)
            assert [row.id for row in await rig.stores.list_rows(None, 1)] == ["run_held"]
            holder.stdin.close()
        await is_kept_again(rig)
        assert await rig.stores.find("run_held", OWNER) is not None  # it has waited


async def test_a_directory_that_is_locked_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening waits for the other worker, but not for ever."""
    monkeypatch.setattr("tidegate.gateway.stores.database._LOCK_S", 0.2)
    (tmp_path / "memory" / "journal").mkdir(parents=True)
    fd = os.open(tmp_path / "memory" / "journal", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    async with stores_in(tmp_path) as rig:
        await until(lambda: rig.stores.states()[0].paused is not None)
        os.close(fd)
        await is_kept_again(rig)


async def test_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits for nothing; what comes is dropped and counted until it is back."""
    monkeypatch.setattr(store_thread, "HANG_S", 0.3)
    goes_on = threading.Event()
    async with stores_in(tmp_path) as rig:
        assert await is_kept(rig, "run_before")
        stuck = asyncio.ensure_future(rig.stores._history.ask(lambda _: goes_on.wait(30), 0.1))
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.1 s"):
            await stuck
        await until(lambda: rig.stores.states()[1].paused is not None)
        assert "has not answered for" in str(rig.stores.states()[1].paused)
        began_s = time.monotonic()
        for _ in range(100):
            rig.stores.put([], [a_row("run_hung")] * 100)
        with pytest.raises(StoreUnavailable, match="the history is paused: its disk has not"):
            await rig.stores.list_rows(None, 1)
        await rig.stores.flush(0.1)
        assert time.monotonic() - began_s < 1
        _, history = rig.stores.states()
        assert MIB - 1000 < history.waiting_bytes <= MIB
        assert history.dropped_bytes == 100 * 100 * (640 + len("small")) - history.waiting_bytes
        rig.stores.put([entry("run_on", events(0, 3), count=3)], [])
        assert await rig.stores.find("run_on", OWNER) is not None  # the other one goes on
        goes_on.set()
        await until(lambda: "did not answer for" in str(rig.stores.states()[1].paused))
        await is_kept_again(rig)


async def test_a_hanging_disk_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither flushing nor closing waits for it."""
    goes_on = threading.Event()
    async with stores_in(tmp_path) as rig:
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await rig.stores._journal.ask(lambda _: goes_on.wait(30), 0.1)
        rig.stores.put([entry()], [a_row()])
        await rig.stores.flush(0.2)
        rig.stores.close()
        assert time.monotonic() - began_s < 2
        goes_on.set()


async def test_a_full_disk(tmp_path: Path) -> None:
    """A quarter of what is kept goes, the oldest first, and what is new is kept again."""

    def small(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(*arguments, **named)
        connection.execute("PRAGMA page_size=512")
        connection.execute("PRAGMA max_page_count=1200")  # of 512 bytes
        return connection

    async with stores_in(tmp_path, Journal(keep="answers"), connect=small) as rig:
        kept: list[str] = []
        for n in range(300):
            rig.stores.put([entry(f"run_{n}", os.urandom(2000), count=1)], [])
            await rig.stores.flush(5)
            if rig.stores.states()[0].paused:
                break
            kept.append(f"run_{n}")
        assert "there is no room left" in str(rig.stores.states()[0].paused)
        await until(lambda: len(kept) * 0.9 > rig.stores.states()[0].runs > 0)
        rig.stores.put([entry("run_new", os.urandom(2000), count=1)], [])
        await is_kept_again(rig)
        left = [run.id for run in await rig.stores.list_runs(None, 1000)]
        assert kept[-1] in left
        assert kept[0] not in left


@pytest.fixture
def little_memory(tmp_path: Path) -> Iterator[Path]:
    """A place in memory of 512 KiB."""
    place = tmp_path / "memory"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", place]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(512)):
            pass


@pytest.mark.long
async def test_a_file_system_that_is_full(tmp_path: Path, little_memory: Path) -> None:
    """Whether it is ours or others that fill it: what has room is kept again."""
    async with stores_in(tmp_path, ANSWERS, History()) as rig:
        for n in range(600):
            rig.stores.put([entry(f"run_{n}", os.urandom(2000), count=1)], [a_row(f"run_{n}")])
            await rig.stores.flush(5)
            await asyncio.sleep(0.005)
        assert rig.stores.states()[0].dropped_bytes
        assert rig.stores.states()[1].dropped_bytes == 0
        await is_kept_again(rig)
        filler = little_memory / "filler"
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        for n in range(100):
            rig.stores.put([entry(f"more_{n}", os.urandom(9000), count=1)], [])
            await rig.stores.flush(5)
        assert "there is no room left" in str(rig.stores.states()[0].paused)
        assert rig.stores.states()[1].paused is None
        filler.unlink()
        await is_kept_again(rig)


async def test_a_file_system_that_says_nothing_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for full; one that has nothing left is."""
    size = {"f_blocks": 0, "f_bavail": 0, "f_frsize": 4096}
    monkeypatch.setattr(database.os, "statvfs", lambda path: SimpleNamespace(**size))
    async with stores_in(tmp_path) as rig:
        assert await is_kept(rig, "run_1")
        size["f_blocks"] = 1000
        rig.stores.put([entry("run_2")], [a_row("run_2")])
        await until(lambda: all(state.paused for state in rig.stores.states()))
        assert "there is no room left" in str(rig.stores.states()[1].paused)
        size["f_bavail"] = 1000
        await is_kept_again(rig)


async def test_names_that_no_database_holds(tmp_path: Path) -> None:
    """Half an emoji, a zero byte, an absurd number: the row beside them is kept as well."""
    async with stores_in(tmp_path) as rig:
        odd = a_row("run_odd", asked="\ud83d", model="a\0b", answer_bytes=2**70, upstream="x" * 999)
        rig.stores.put([entry("run_odd", model="\ud83d\0")], [a_row("run_1"), odd])
        newest, other = await rig.stores.list_rows(None, 10)
        assert (newest.asked, newest.model, len(newest.upstream)) == ("?", "a\0b", 256)
        assert other == a_row("run_1")
        found = await rig.stores.find("run_odd", OWNER)
        assert found is not None
        assert found.run.model == "?\0"
        for odd_id in ("\ud83d", "\0", "x" * 100_000, ""):
            assert await rig.stores.find(odd_id, odd_id) is None
            assert await rig.stores.find_response(odd_id, odd_id) is None
            assert await rig.stores.list_runs(odd_id, 2**80) == []
            assert await rig.stores.list_rows(odd_id, -1) == []
            assert await rig.stores.usage("token", float("nan"), odd_id, {}) == []
            assert await rig.stores.forget(odd_id, odd_id, rows=True) == 0
        with pytest.raises(ValueError, match="not by 'mood'"):
            await rig.stores.usage("mood", 0, None, {})
        assert [state.paused for state in rig.stores.states()] == [None, None]
