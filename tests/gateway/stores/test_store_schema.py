"""A file outlives the program that made it: older and newer ones read and write it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.stores.store_rig import OWNER, a_row, entry, events, stores_in, under_way
from tidegate.gateway.stores import history, journal

FIRST = Path(__file__).parent / "version_1"  # as the first version wrote them: never changed


def restore(script: str, path: Path, journal_mode: str = "wal") -> None:
    """Make a file of the script of one."""
    path.parent.mkdir(parents=True, mode=0o700)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
        connection.executescript((FIRST / script).read_text())


@pytest.fixture
def first(tmp_path: Path) -> None:
    """Both files, as the first version left them."""
    restore("runs.sql", tmp_path / "memory/journal/runs.db")
    restore("history.sql", tmp_path / "disk/history/history.db", "delete")


@pytest.mark.usefixtures("first")
async def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    """What was kept of a run, and the row; and both are written on."""
    async with stores_in(tmp_path) as rig:
        found = await rig.stores.find("run_kept", None)
        assert found is not None
        assert (found.events, found.run.next_seq) == (events(0, 4), 4)
        assert found.run.upstreams == ("box", "spare")
        found = await rig.stores.find("run_on", None)
        assert found is not None
        assert (found.run.code, found.events) == ("worker_died", events(0, 2))
        rig.stores.put([entry("run_new", events(0, 3), count=3)], [a_row("run_new")])
        found = await rig.stores.find("run_new", OWNER)
        assert found is not None
        assert {row.id for row in await rig.stores.list_rows(None, 10)} == {
            "run_kept", "run_on", "run_new"
        }  # fmt: skip
        assert [state.set_aside for state in rig.stores.states()] == [None, None]


NEWER = {
    "journal": (*journal.MIGRATIONS, "ALTER TABLE runs ADD COLUMN mood TEXT; CREATE TABLE more(x)"),
    "history": (*history.MIGRATIONS, "ALTER TABLE runs ADD COLUMN mood TEXT NOT NULL DEFAULT 'ok'"),
}


async def test_a_newer_program_adds_and_an_older_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside each other, as in an upgrade."""
    async with stores_in(tmp_path) as older:
        older.stores.put([under_way("run_1", events(0, 2), 0, 2)], [a_row("run_1")])
        await older.stores.flush(5)
        monkeypatch.setattr(journal, "MIGRATIONS", NEWER["journal"])
        monkeypatch.setattr(history, "MIGRATIONS", NEWER["history"])
        async with stores_in(tmp_path) as newer:
            for path in (newer.journal_file, newer.history_file):
                with closing(sqlite3.connect(path)) as connection:
                    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
                    assert connection.execute("SELECT mood FROM runs").fetchall()
            newer.stores.put([entry("run_2", events(0, 5), count=5)], [a_row("run_2")])
            older.stores.put([entry("run_1", events(2, 2), 2, 2)], [a_row("run_3")])
            await newer.stores.flush(5)
            await older.stores.flush(5)
            for rig in (older, newer):
                for run_id, count in (("run_1", 4), ("run_2", 5)):
                    found = await rig.stores.find(run_id, OWNER)
                    assert found is not None
                    assert found.events == events(0, count)
            rows = await newer.stores.list_rows(None, 10)
            assert {row.id for row in rows} == {"run_1", "run_2", "run_3"}
    monkeypatch.undo()
    async with stores_in(tmp_path) as older:
        assert await older.stores.find("run_2", OWNER) is not None
        assert len(await older.stores.list_rows(None, 10)) == 3


async def test_a_migration_is_made_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails leaves the file as it was, and the store is paused and says so."""
    async with stores_in(tmp_path) as rig:
        rig.stores.put([entry("run_1")], [a_row("run_1")])
        await rig.stores.flush(5)
    broken = (*history.MIGRATIONS, "CREATE TABLE more(x); ALTER TABLE missing ADD COLUMN y")
    monkeypatch.setattr(history, "MIGRATIONS", broken)
    async with stores_in(tmp_path) as rig:
        journal_state, history_state = rig.stores.states()
        assert "no such table: missing" in str(history_state.paused)
        assert journal_state.paused is None
        assert await rig.stores.find("run_1", OWNER) is not None
    monkeypatch.undo()
    async with stores_in(tmp_path) as rig:
        assert len(await rig.stores.list_rows(None, 10)) == 1
        tables = "SELECT name FROM sqlite_master WHERE name='more'"
        assert await rig.stores._history.ask(lambda store: store.database.rows(tables)) == []
