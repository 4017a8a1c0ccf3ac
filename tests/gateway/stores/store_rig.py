"""Stores in a directory, and values to put into them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fakes.machine import until
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.core.records.usage import TokenUsage
from tidegate.core.runs.ledger import Ledger
from tidegate.core.settings import History, Journal
from tidegate.gateway.stores.database import Connect
from tidegate.gateway.stores.journal_values import JournalEntry
from tidegate.gateway.stores.stores import Stores

OWNER = "0f" * 32
NOW = float(int(time.time()) - 10)
ANSWERS = Journal(keep="answers")


def a_run(run_id: str = "run_1", **changes: Any) -> JournaledRun:
    """A run that is over, of no event."""
    run = JournaledRun(
        id=run_id,
        owner=OWNER,
        token="laptop",
        path="/chat/completions",
        model="small",
        upstream_model="small-q4",
        upstreams=("box", "spare"),
        state="completed",
        reason=None,
        code=None,
        created=NOW,
        ended=NOW + 2.5,
        first_seq=0,
        next_seq=0,
        response_id=None,
        upstream_response_id=None,
        streamed=True,
        background=False,
        stored=True,
    )
    return run._replace(**changes)


def entry(
    run_id: str = "run_1", events: bytes = b"", first_seq: int = 0, count: int = 0, **changes: Any
) -> JournalEntry:
    """What is written of a run: `count` events from `first_seq` on."""
    run = a_run(run_id, **{"next_seq": first_seq + count, **changes})
    return JournalEntry(run, events, first_seq, count)


def under_way(
    run_id: str = "run_1", events: bytes = b"", first_seq: int = 0, count: int = 0, **changes: Any
) -> JournalEntry:
    """The same of a run that is not over."""
    changes = {"state": "streaming", "ended": None, **changes}
    return entry(run_id, events, first_seq, count, **changes)


def a_row(run_id: str = "run_1", **changes: Any) -> RunRow:
    """A row of a run that completed."""
    row = RunRow(
        id=run_id,
        owner=OWNER,
        token="laptop",
        asked="small",
        upstream="box",
        model="small-q4",
        format="chat",
        streamed=True,
        outcome="completed",
        code="",
        attempts=1,
        began=NOW,
        ended=NOW + 2.5,
        queued_s=0.25,
        first_output_s=0.5,
        request_bytes=300,
        answer_bytes=2000,
        usage=TokenUsage(10, 20, 4, None),
    )
    return row._replace(**changes)


class StoreRig:
    """Stores with their ledger, in a directory with one place of each kind."""

    def __init__(self, directory: Path, connect: Connect = sqlite3.connect) -> None:
        self.memory, self.disk = directory / "memory", directory / "disk"
        self.places = StorePlaces(memory=str(self.memory), disk=str(self.disk))
        self.ledger = Ledger()
        self.stores = Stores(asyncio.get_running_loop(), self.ledger.open(), connect=connect)

    @property
    def journal_file(self) -> Path:
        """Where answers are, in memory."""
        return self.memory / "journal" / "runs.db"

    @property
    def history_file(self) -> Path:
        """Where rows are."""
        return self.disk / "history" / "history.db"

    def files(self) -> list[Path]:
        """All files that there are."""
        places = (self.memory, self.disk)
        return [path for place in places for path in place.rglob("*") if path.is_file()]

    def bytes(self) -> bytes:
        """What all files hold."""
        return b"".join(path.read_bytes() for path in self.files())

    async def written(self) -> None:
        """Waits until nothing waits any more."""
        stores = self.stores
        await until(lambda: not any(state.waiting_bytes for state in stores.states()))


def event(n: int) -> bytes:
    """One event, which says its number."""
    return b'data: {"n": %d}\n\n' % n


def events(first: int, count: int) -> bytes:
    """As many events, from that number on."""
    return b"".join(event(n) for n in range(first, first + count))


@asynccontextmanager
async def stores_in(
    directory: Path,
    journal: Journal = ANSWERS,
    history: History | None = None,
    connect: Connect = sqlite3.connect,
) -> AsyncIterator[StoreRig]:
    """Opens stores there, and waits for their threads at the end."""
    rig = StoreRig(directory, connect)
    rig.stores.configure(journal, history or History(), rig.places)
    await rig.stores.open()
    try:
        yield rig
    finally:
        rig.stores.close()
        threads = [rig.stores._journal._thread, rig.stores._history._thread]
        await until(lambda: not any(thread and thread.is_alive() for thread in threads))
