"""The journal and the history as the loop sees them: what is put never waits, what is asked does.

The settings and the directories there are say what is kept where (`Kept`). What waits to be
written is bounded and in the ledger; each store's thread (`stores.store_thread`) does the rest.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tidegate.core.errors import LedgerFull
from tidegate.core.protocol.stores import StoreState
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.core.records.usage import GROUPS, UsageLine
from tidegate.core.runs.ledger import Account, Entry
from tidegate.core.settings import MIB, History, Journal, Price
from tidegate.gateway.stores import history, journal
from tidegate.gateway.stores.database import Connect, Database
from tidegate.gateway.stores.history import RunHistory
from tidegate.gateway.stores.journal import RunJournal
from tidegate.gateway.stores.journal_values import FoundRun, JournalEntry
from tidegate.gateway.stores.store_thread import (
    ANSWER_LIMIT_S,
    StoreThread,
)
from tidegate.machine.lifetime import is_alive, own_lifetime

# What may wait: of answers, and half a MiB more of runs without their events; of rows, which are
# small and must not wait behind answers.
_ENTRIES_BYTES, _ROWS_BYTES = 5 * MIB // 2, MIB
ENTRY_BYTES, ROW_BYTES = 1024, 640  # what one costs while it waits, beside its events
FORGET_LIMIT_S = 20.0  # every byte of it is overwritten
_JOURNAL_GATHERS_S, _HISTORY_GATHERS_S = 0.05, 1.0  # the recorder has gathered already


class Kept(NamedTuple):
    """What the journal keeps, and where."""

    keep: str  # "answers", "ends" or "off"
    place: str  # "memory" or "disk"
    why: str | None = None  # it is off although the settings want it

    @classmethod
    def of(cls, settings: Journal, places: StorePlaces) -> Kept:
        """Decide by the settings and by what directories there are."""
        place = settings.place
        if place == "auto" or (place == "memory" and not places.memory and settings.keep == "auto"):
            place = "memory" if places.memory else "disk"
        if settings.keep == "off":
            return cls("off", place)
        if place == "memory" and not places.memory:
            return cls(
                "off",
                place,
                'journal.place is "memory", but the runtime directory is on a disk;'
                ' set it to "disk" or "auto"',
            )
        if place == "disk" and not places.disk:
            return cls("off", place, "there is no state directory to keep it in")
        if settings.keep != "auto":
            return cls(settings.keep, place)
        return cls("answers" if place == "memory" else "ends", place)


class Stores:
    """Both stores. All methods on the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        account: Account,
        *,
        connect: Connect = sqlite3.connect,
    ) -> None:
        """`account` is the ledger's, for what waits to be written.

        Raises OSError where the system does not tell when this process started.
        """
        self._account = account
        self._writer = own_lifetime()
        self._connect = connect
        self._journal: StoreThread[RunJournal, JournalEntry] = StoreThread(
            "journal", loop, self._charge, _JOURNAL_GATHERS_S, _without_events
        )
        self._history: StoreThread[RunHistory, RunRow] = StoreThread(
            "history", loop, self._charge, _HISTORY_GATHERS_S
        )
        self._opening: list[asyncio.Future[None]] = []
        self._configured: tuple[Journal, History, StorePlaces] | None = None
        self.keeps_runs = self.keeps_answers = self.keeps_rows = False
        self._loop = loop
        # What is told of runs that a dead worker left, on the loop's thread.
        self.on_interrupted: Callable[[Sequence[RunRow]], None] = lambda rows: None

    def __repr__(self) -> str:
        return f"<Stores {self._journal} {self._history}>"

    def configure(
        self, journal_settings: Journal, history_settings: History, places: StorePlaces
    ) -> None:
        """Keep what the settings say from now on, and remove what they no longer do.

        The files are opened by the threads; `open` waits for that.
        """
        wanted = (journal_settings, history_settings, places)
        if wanted == self._configured:
            return
        former, self._configured = self._configured, wanted
        self._opening = [each for each in self._opening if not each.done()]
        if former is None or (former[1], former[2].disk) != (history_settings, places.disk):
            self._configure_history(history_settings, places.disk)
        if former is None or (former[0], former[2]) != (journal_settings, places):
            self._configure_journal(journal_settings, places)

    def _configure_history(self, settings: History, disk: str | None) -> None:
        self.keeps_rows = settings.max_rows > 0 and disk is not None
        database = None
        if disk is not None:
            database = Database(
                Path(disk) / "history",
                "history.db",
                history.MIGRATIONS,
                in_memory=False,
                connect=self._connect,
            )
        if database is None or not self.keeps_rows:
            off = "there is no state directory to keep it in" if settings.max_rows > 0 else None
            remove = [database] if database is not None else []
            answer = self._history.use(None, "off", "disk", off=off, remove=remove)
        else:
            store = RunHistory(database, keep_s=settings.keep_s, max_rows=settings.max_rows)
            answer = self._history.use(store, "rows", "disk")
        self._opening.append(answer)

    def _configure_journal(self, settings: Journal, places: StorePlaces) -> None:
        kept = Kept.of(settings, places)
        databases = {
            place: Database(
                Path(directory) / "journal",
                "runs.db",
                journal.MIGRATIONS,
                in_memory=place == "memory",
                page_bytes=journal.PAGE_BYTES,
                connect=self._connect,
            )
            for place, directory in (("memory", places.memory), ("disk", places.disk))
            if directory
        }
        self.keeps_runs = kept.keep != "off"
        self.keeps_answers = kept.keep == "answers"
        store = None
        if self.keeps_runs:
            own = databases.pop(kept.place)  # both directories may be one
            databases = {k: each for k, each in databases.items() if each.path != own.path}
            store = RunJournal(
                own,
                writer=self._writer,
                is_alive=is_alive,
                with_events=self.keeps_answers,
                keep_s=settings.keep_s,
                max_bytes=settings.max_bytes,
                on_interrupted=self._take_interrupted,
            )
        self._opening.append(
            self._journal.use(
                store, kept.keep, kept.place, off=kept.why, remove=[*databases.values()]
            )
        )

    async def open(self) -> None:
        """Wait at most 2 s for both to be open, and for the runs of dead writers to be ended."""
        opening = [each for each in self._opening if not each.done()]
        if opening:
            await asyncio.wait(opening, timeout=ANSWER_LIMIT_S)

    # --- what is to be kept ---------------------------------------------------------------------

    def put(self, entries: Sequence[JournalEntry], rows: Sequence[RunRow]) -> None:
        """Have it written soon; what finds no room is dropped and counted. Never raises."""
        if rows:
            self._put_rows(rows)
        if entries and self.keeps_runs:
            sized = [(entry, _size_of(entry)) for entry in entries]
            self._journal.put(sized, _ENTRIES_BYTES)
        self._charge()

    def states(self) -> tuple[StoreState, StoreState]:
        """Say how the journal is, and the history."""
        return self._journal.state(), self._history.state()

    def _take_interrupted(self, rows: Sequence[RunRow]) -> None:
        """Have rows of interrupted runs written and told; on the journal's thread."""
        self._put_rows(rows)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.on_interrupted, rows)

    def _put_rows(self, rows: Sequence[RunRow]) -> None:
        """Queue rows; the journal's thread does so too, with those of interrupted runs."""
        if not self.keeps_rows:
            return
        self._history.put([(row, ROW_BYTES + len(row.asked)) for row in rows], _ROWS_BYTES)

    def _charge(self) -> None:
        with suppress(LedgerFull):  # it is charged all the same, and soon less
            self._account.set(
                Entry.STORED, self._journal.waiting_bytes + self._history.waiting_bytes
            )

    # --- what is asked --------------------------------------------------------------------------

    async def find(self, run_id: str, owner: str | None) -> FoundRun | None:
        """Read a run back; `owner` None: of any. Raises StoreUnavailable."""
        if not self.keeps_runs:
            return None
        return await self._journal.ask(lambda store: store.find(run_id, owner))

    async def find_response(self, response_id: str, owner: str) -> FoundRun | None:
        """Read the newest run of that response back that is stored. Raises StoreUnavailable."""
        if not self.keeps_runs:
            return None
        return await self._journal.ask(lambda store: store.find_response(response_id, owner))

    async def list_runs(self, owner: str | None, limit: int) -> list[JournaledRun]:
        """List the journal, the newest first; `owner` None: of all. Raises StoreUnavailable."""
        if not self.keeps_runs:
            return []
        return await self._journal.ask(lambda store: store.newest(owner, limit))

    async def list_rows(self, owner: str | None, limit: int) -> list[RunRow]:
        """List the history, the newest first; `owner` None: of all. Raises StoreUnavailable."""
        return await self._history.ask(lambda store: store.newest(owner, limit))

    async def usage(
        self, by: str, since: float, owner: str | None, prices: Mapping[str, Price]
    ) -> list[UsageLine]:
        """Sum up what began since then (Unix seconds), by one of `GROUPS`, most used first.

        `prices` are by the name that clients ask for. Raises StoreUnavailable, also where there is
        no history, and ValueError for what is no such group.
        """
        if by not in GROUPS:
            raise ValueError(f"usage is by one of {', '.join(GROUPS)}, not by {by!r}")
        return await self._history.ask(lambda store: store.usage(by, since, owner, prices))

    async def forget(self, run_id: str | None, owner: str | None, *, rows: bool) -> int:
        """Remove a run, or with None all that are over, and with `rows` from the history, too.

        Then nothing of it is in the files. Returns how many runs those were, in the store that knew
        more of them. Raises StoreUnavailable.
        """
        forgotten = 0
        if self.keeps_runs:
            forgotten = await self._journal.ask(
                lambda store: store.forget(run_id, owner), FORGET_LIMIT_S
            )
        if rows and self.keeps_rows:
            more = await self._history.ask(
                lambda store: store.forget(run_id, owner), FORGET_LIMIT_S
            )
            forgotten = max(forgotten, more)
        return forgotten

    # --- the end --------------------------------------------------------------------------------

    async def flush(self, within_s: float) -> None:
        """Wait until what waits is written, but no longer than that."""
        asked = [
            asyncio.ensure_future(thread.ask(lambda _: None, within_s))
            for thread in (self._journal, self._history)
            if thread.is_on
        ]
        await asyncio.gather(*asked, return_exceptions=True)

    def close(self) -> None:
        """Let the threads write what waits and end; none is waited for."""
        self._journal.close()
        self._history.close()


def _without_events(entry: JournalEntry) -> tuple[JournalEntry, int]:
    """Make of an entry one that says how the run is, and no more; what was before is dropped."""
    small = JournalEntry(entry.run, b"", 0, 0)
    return small, _size_of(small)


def _size_of(entry: JournalEntry) -> int:
    """Say what it costs while it waits."""
    return ENTRY_BYTES + len(entry.run.model) + len(entry.events)
