"""The journal: answers as they were last written, so that they survive the worker that gave them.

    runs (one row a run)  <-  events (pieces of it: whole events, deflated)
                          <-  under_way (how far it is, while it is not over, and its writer)

The pieces of a run follow each other and end at its `next_seq`, always: where some could not be
written, those before are dropped, and a reader who wants them is told that they are no longer
kept. At the end of a run its pieces are joined, which deflates them several times better. A run
that is not over and whose writer is dead was *interrupted*: it is ended here, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.core.runs.state import RunState
from tidegate.gateway.stores.database import Database, StoreFault
from tidegate.gateway.stores.journal_values import (
    DIED,
    FoundRun,
    JournalEntry,
    Piece,
    deflate,
    inflate,
    interrupted_row,
    is_alike,
    join,
    merge,
    row_of,
    run_of,
)

MIGRATIONS = (
    """
    CREATE TABLE runs(
      number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
      token TEXT NOT NULL, path TEXT NOT NULL, model TEXT NOT NULL, upstream_model TEXT NOT NULL,
      upstreams TEXT NOT NULL, state TEXT NOT NULL, reason TEXT, code TEXT, created REAL NOT NULL,
      ended REAL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, response_id TEXT,
      upstream_response_id TEXT, streamed INTEGER NOT NULL, background INTEGER NOT NULL,
      stored INTEGER NOT NULL
    );
    CREATE TABLE under_way(
      run INTEGER PRIMARY KEY, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL,
      written REAL NOT NULL, writer TEXT NOT NULL
    );
    CREATE INDEX runs_by_owner ON runs(owner, number);
    CREATE INDEX runs_by_response ON runs(response_id) WHERE response_id IS NOT NULL;
    CREATE TABLE events(
      run INTEGER NOT NULL, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL,
      bytes INTEGER NOT NULL, data BLOB NOT NULL
    );
    CREATE INDEX events_by_run ON events(run, first_seq)
    """,
)
PAGE_BYTES = 512  # half as much is written as with 4096, for a batch changes little of each
_NAMES = JournaledRun._fields  # whose order may change; a column's name may not
_COLUMNS = ", ".join(
    f"coalesce(under_way.{name}, runs.{name})" if name in {"first_seq", "next_seq"} else name
    for name in _NAMES
)
_FROM = "FROM runs LEFT JOIN under_way ON run=number"
# What no later writing of a run changes is not written again, nor are the indexes over it.
_FIXED = {"id", "owner", "token", "path", "model", "created", "streamed", "background"}
_UPDATES = ", ".join(f"{name}=excluded.{name}" for name in _NAMES if name not in _FIXED)
_ROW = f"({', '.join('?' * len(_NAMES))})"
_INSERT_PIECES = "INSERT INTO events(run, first_seq, next_seq, bytes, data) VALUES"
_REPLACE_UNDER_WAY = (
    "INSERT OR REPLACE INTO under_way(run, first_seq, next_seq, written, writer) VALUES"
)
_PIECE = "((SELECT number FROM runs WHERE id=?), ?, ?, ?, ?)"
_MOST_AT_ONCE = 64  # rows of one statement: each one is a turn for the event loop
_PRUNE_RUNS = 20  # in one bite
_LEAST_BYTES = 256 * 1024  # to take less than that would make no room
_LESS_FOR_S = 600.0  # is kept, after the disk was full


class _Stored(NamedTuple):
    """What the file has of a run."""

    number: int
    run: JournaledRun


class RunJournal:
    """The tables of the journal. Every method raises StoreFault."""

    def __init__(
        self,
        database: Database,
        *,
        writer: str,
        is_alive: Callable[[str], bool],
        with_events: bool,
        keep_s: float,
        max_bytes: int,
        on_interrupted: Callable[[list[RunRow]], object],
    ) -> None:
        """`writer` names this process, as `is_alive` understands it. Without `with_events` no byte
        of an answer is written. Runs that were interrupted are told once, as rows.
        """
        self.database = database
        self._writer = writer
        self._is_alive = is_alive
        self._with_events = with_events
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._most_used_bytes = max_bytes  # less for some time where the disk had no room
        self._less_s = 0.0  # since when that is
        self._bite_runs = _PRUNE_RUNS
        self._on_interrupted = on_interrupted

    def __repr__(self) -> str:
        return f"<RunJournal {self.database.path}>"

    @property
    def wal_limit_bytes(self) -> int:
        """How large the WAL may be before it is emptied."""
        return min(2 * 1024 * 1024, self._max_bytes // 8)

    def begin(self) -> None:
        """Begin with a file that was just opened."""
        if not self._with_events and self.database.first("SELECT EXISTS(SELECT 1 FROM events)"):
            with self.database.transaction():
                self.database.execute("DELETE FROM events")
                self.database.execute("UPDATE runs SET first_seq=next_seq")
                self.database.execute("UPDATE under_way SET first_seq=next_seq")
            self.database.leave_nothing()
        self.end_interrupted()

    # --- writing --------------------------------------------------------------------------------

    def write(self, entries: Sequence[JournalEntry], now: float) -> None:
        """Write all of them in one transaction. `now` is Unix seconds."""
        merged = list(merge(entries, with_events=self._with_events))
        with self.database.transaction():
            for start in range(0, len(merged), _MOST_AT_ONCE):
                self._write(merged[start : start + _MOST_AT_ONCE], now)

    def _write(self, entries: list[JournalEntry], now: float) -> None:
        stored = self._stored([entry.run.id for entry in entries])
        runs: list[JournaledRun] = []
        pieces: list[tuple[str, Piece]] = []
        over: list[int] = []
        under_way: list[JournaledRun] = []
        for entry in entries:
            found = stored.get(entry.run.id)
            first_seq, piece = self._place(entry, found)
            run = entry.run._replace(first_seq=first_seq)
            if piece is not None:
                pieces.append((run.id, piece))
            if run.ended is None:
                under_way.append(run)
            elif found is not None:
                over.append(found.number)
            # How far it is stands in a small table: to write all of it each second is a page more.
            if run.ended is not None or found is None or not is_alike(run, found.run):
                runs.append(run)
        self._write_runs(runs)
        if pieces:
            self.database.execute(
                f"{_INSERT_PIECES} {_times(_PIECE, len(pieces))}",
                [value for run_id, piece in pieces for value in (run_id, *piece)],
            )
        if over:
            self._delete_of("under_way", over)
        if under_way:
            self.database.execute(
                f"{_REPLACE_UNDER_WAY} {_times(_PIECE, len(under_way))}",
                [
                    value
                    for run in under_way
                    for value in (run.id, run.first_seq, run.next_seq, now, self._writer)
                ],
            )

    def _write_runs(self, runs: list[JournaledRun]) -> None:
        if runs:
            self.database.execute(
                f"INSERT INTO runs({', '.join(_NAMES)}) VALUES {_times(_ROW, len(runs))}"  # noqa: S608
                f" ON CONFLICT(id) DO UPDATE SET {_UPDATES}",
                [value for run in runs for value in row_of(run)],
            )

    def _stored(self, ids: list[str]) -> dict[str, _Stored]:
        found = self.database.rows(
            f"SELECT {_COLUMNS}, number {_FROM} WHERE id IN ({_times('?', len(ids))})",
            ids,
        )
        return {row[0]: _Stored(row[-1], run_of(row)) for row in found}

    def _place(self, entry: JournalEntry, found: _Stored | None) -> tuple[int, Piece | None]:
        """Find where the new events belong: from which event on the run is kept, and the piece."""
        run = entry.run
        is_new = bool(entry.events) and entry.first_seq + entry.event_count == run.next_seq
        begins = entry.first_seq if is_new else run.next_seq
        kept_from = begins
        if found is not None and found.run.first_seq < found.run.next_seq:
            if found.run.next_seq != begins:
                self.database.execute("DELETE FROM events WHERE run=?", (found.number,))
            else:
                kept_from = self._trimmed(found, run.first_seq)
                if run.ended is not None:
                    more = entry.events if is_new else b""
                    return kept_from, self._joined(found.number, kept_from, run.next_seq, more)
        if not is_new:
            return kept_from, None
        return kept_from, Piece(begins, run.next_seq, len(entry.events), deflate(entry.events))

    def _trimmed(self, found: _Stored, first_seq: int) -> int:
        """Drop pieces of which nothing is kept in memory either; what the first one begins with."""
        if first_seq <= found.run.first_seq:
            return found.run.first_seq
        self.database.execute(
            "DELETE FROM events WHERE run=? AND next_seq<=?", (found.number, first_seq)
        )
        return self.database.first(
            "SELECT coalesce(min(first_seq), ?) FROM events WHERE run=?",
            (found.run.next_seq, found.number),
        )

    def _joined(self, number: int, first_seq: int, next_seq: int, more: bytes) -> Piece | None:
        """Take the pieces of a run out and join them with what is new; None: they stay."""
        pieces = self._pieces(number)
        if len(pieces) < 2 and not more:
            return None
        with self._as_written():
            size, data = join(pieces, more)
        self.database.execute("DELETE FROM events WHERE run=?", (number,))
        return Piece(first_seq, next_seq, size, data)

    def end_interrupted(self) -> None:
        """End the runs that dead workers left, and tell of each of them once."""
        writers = self.database.rows(
            "SELECT DISTINCT writer FROM under_way WHERE writer<>?", (self._writer,)
        )
        for (writer,) in writers:
            if not self._is_alive(writer):
                while self._end_some(writer):
                    pass

    def _end_some(self, writer: str) -> bool:
        ended = []
        with self.database.transaction():
            found = self.database.rows(
                f"SELECT {_COLUMNS}, number, written {_FROM} WHERE writer=? LIMIT ?",
                (writer, _MOST_AT_ONCE),
            )
            for row in found:
                number, written = row[-2:]
                run = run_of(row)
                run = run._replace(
                    state=RunState.FAILED.value,
                    code=DIED,
                    reason=f"the worker died at event {run.next_seq}",
                    ended=written,
                )
                self._write_runs([run])
                if piece := self._joined(number, run.first_seq, run.next_seq, b""):
                    self.database.execute(f"{_INSERT_PIECES} {_PIECE}", (run.id, *piece))
                size = self.database.first("SELECT sum(bytes) FROM events WHERE run=?", (number,))
                ended.append(interrupted_row(run, size))
            self._delete_of("under_way", [row[-2] for row in found])
        if ended:
            self._on_interrupted(ended)
        return bool(found)

    # --- reading --------------------------------------------------------------------------------

    def find(self, run_id: str, owner: str | None) -> FoundRun | None:
        """Read a run back by its id; `owner` None: of any."""
        return self._find("id=? AND owner=coalesce(?, owner)", (run_id, owner))

    def find_response(self, response_id: str, owner: str) -> FoundRun | None:
        """Read the newest run with that response's id back, if its client may ask for it later."""
        return self._find("response_id=? AND owner=? AND stored", (response_id, owner))

    def _find(self, condition: str, values: tuple[str | None, ...]) -> FoundRun | None:
        self.end_interrupted()
        found = self.database.rows(
            f"SELECT {_COLUMNS}, number {_FROM} WHERE {condition} ORDER BY number DESC LIMIT 1",
            values,
        )
        if not found:
            return None
        run = run_of(found[0])
        pieces = self._pieces(found[0][-1])
        with self._as_written():
            events = b"".join([inflate(size, data) for size, data in pieces])
        return FoundRun(run, events, is_alive=run.ended is None)

    def newest(self, owner: str | None, limit: int) -> list[JournaledRun]:
        """List runs, the newest first; `owner` None: of all."""
        self.end_interrupted()
        condition, values = ("", ()) if owner is None else ("WHERE owner=?", (owner,))
        found = self.database.rows(
            f"SELECT {_COLUMNS} {_FROM} {condition} ORDER BY number DESC LIMIT ?",
            (*values, limit),
        )
        return [run_of(row) for row in found]

    def figures(self) -> tuple[int, float | None]:
        """Count the runs, and find when the oldest one began."""
        count = self.database.first("SELECT count(*) FROM runs")
        oldest = self.database.rows("SELECT created FROM runs ORDER BY number LIMIT 1")
        return count, oldest[0][0] if oldest else None

    def _pieces(self, number: int) -> list[tuple[int, bytes]]:
        return self.database.rows(
            "SELECT bytes, data FROM events WHERE run=? ORDER BY first_seq", (number,)
        )

    @contextmanager
    def _as_written(self) -> Iterator[None]:
        """Have pieces that are not as they were written mean that the file is damaged."""
        try:
            yield
        except ValueError as error:
            raise StoreFault(f"{self.database.path}: {error}", is_damaged=True) from error

    # --- what goes ------------------------------------------------------------------------------

    def prune(self, now: float) -> bool:
        """Let go of a bite of what is too old or too much; False if there is none any more."""
        self.database.tidy_set_aside(now - self._keep_s, self._max_bytes // 2)
        if time.monotonic() > self._less_s + _LESS_FOR_S:
            self._most_used_bytes, self._bite_runs = self._max_bytes, _PRUNE_RUNS
        expired = self.database.rows(
            "SELECT number FROM (SELECT number, ended FROM runs WHERE ended IS NOT NULL"
            " ORDER BY number LIMIT ?) WHERE ended<?",
            (self._bite_runs, now - self._keep_s),
        )
        if not expired and self.is_full:
            expired = self.database.rows(
                "SELECT number FROM runs WHERE ended IS NOT NULL ORDER BY number LIMIT ?",
                (self._bite_runs,),
            )
            if not expired:
                return self._trim_oldest()
        if expired:
            with self.database.transaction():
                self._delete([row[0] for row in expired])
            return True
        return self.database.give_back(self._room_bytes)

    @property
    def is_full(self) -> bool:
        """Tell whether more is kept than there is room for."""
        return self.database.used_bytes() > self._room_bytes

    def take_less(self) -> None:
        """Keep a quarter less than there is for some time: the disk has no room for it."""
        self._less_s = time.monotonic()
        less_bytes = max(self.database.used_bytes() * 3 // 4, _LEAST_BYTES)
        self._most_used_bytes = min(self._most_used_bytes, less_bytes)
        self._bite_runs = 1  # overwriting them takes room at first

    def forget(self, run_id: str | None, owner: str | None) -> int:
        """Remove a run, or all that are over, and leave nothing of them; how many they were."""
        condition, values = ("ended IS NOT NULL", ()) if run_id is None else ("id=?", (run_id,))
        forgotten = 0
        while True:
            found = self.database.rows(
                f"SELECT number FROM runs WHERE {condition} AND owner=coalesce(?, owner) LIMIT ?",  # noqa: S608
                (*values, owner, _PRUNE_RUNS),
            )
            if not found:
                break
            with self.database.transaction():
                self._delete([row[0] for row in found])
            forgotten += len(found)
            if self.database.wal_bytes() > self.wal_limit_bytes:
                self.database.checkpoint()
        self.database.leave_nothing()
        return forgotten

    @property
    def _room_bytes(self) -> int:
        """How large the pages in use may be, so that all files stay below the limit."""
        room_bytes = self._max_bytes - self.wal_limit_bytes - self.database.bad_bytes()
        return min(room_bytes, self._most_used_bytes)

    def _delete(self, numbers: list[int]) -> None:
        for table in ("events", "under_way", "runs"):
            self._delete_of(table, numbers)

    def _delete_of(self, table: str, numbers: list[int]) -> None:
        key = "number" if table == "runs" else "run"
        marks = _times("?", len(numbers))
        self.database.execute(f"DELETE FROM {table} WHERE {key} IN ({marks})", numbers)  # noqa: S608

    def _trim_oldest(self) -> bool:
        """Drop the oldest pieces of runs that go on, where there is nothing else to drop."""
        pieces = self.database.rows(
            "SELECT rowid, run FROM events ORDER BY rowid LIMIT ?", (_PRUNE_RUNS,)
        )
        if not pieces:
            return False
        with self.database.transaction():
            for rowid, number in pieces:
                self.database.execute("DELETE FROM events WHERE rowid=?", (rowid,))
                self.database.execute(
                    "UPDATE under_way SET first_seq=coalesce((SELECT min(first_seq) FROM events"
                    " WHERE events.run=under_way.run), next_seq) WHERE run=?",
                    (number,),
                )
        return True


def _times(what: str, times: int) -> str:
    return ", ".join([what] * times)
