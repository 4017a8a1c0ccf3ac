"""What is written down of runs, and when: rows of the history, entries of the journal.

Nothing is done for a chunk. While runs are under way their windows are read by cursor, often
enough that a crash costs no more than `every_s` of an answer; at the end of each what is new goes
with its last state. What ends is gathered for a moment and handed over together, and of a light
answer no more than that is done where it is answered: its values are built later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from operator import attrgetter

from tidegate.core.formats.framing import RAW
from tidegate.core.records.history import RunRow
from tidegate.core.runs.run import Run
from tidegate.core.runs.window import Cursor
from tidegate.core.settings import Journal
from tidegate.gateway.records.values import Names, journaled, light_entry, light_row, row_of
from tidegate.gateway.relay.light_answers import KeptAnswer
from tidegate.gateway.relay.registry import Recording
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.stores.journal_values import JournalEntry
from tidegate.gateway.stores.stores import Stores

GATHER_S = 0.2  # what ends within this is handed over together
MOST_GATHERED = 128  # or as soon as there is so much: some 5 us each
MOST_GATHERED_BYTES = 256 * 1024
MOST_PER_TURN = 200  # running answers between two turns of the event loop, some 8 us each
# Of `every_s`: how often what is running is written, so that no event waits longer than that, the
# way to the file included; and how old an answer is by then, for most are over sooner.
TICK_SHARE, LEAST_AGE_SHARE = 0.85, 0.1
# What a store drops, because it is paused or too much waits, is lost; but how a run ended of which
# it has a beginning is told again, lest that look for ever as if it went on.
TOLD_AGAIN_S = 5.0
MOST_TOLD_AGAIN = 1000


class _Written:
    """How far an answer under way has been written."""

    __slots__ = ("first", "mark", "middle", "next")

    def __init__(self, start: Cursor) -> None:
        self.first = start  # the oldest event that is kept
        self.middle = start  # from where it is kept once that is too much
        self.next = start  # behind the last one
        self.mark: tuple[object, ...] = ()  # what it looked like

    def advance(self, end: Cursor, most_bytes: int) -> None:
        """Take note that all before `end` is written; of more than `most_bytes` half goes."""
        if end.offset - self.first.offset > most_bytes:
            self.first, self.middle = self.middle, self.next
        elif self.middle is self.first and end.offset - self.first.offset > most_bytes // 2:
            self.middle = self.next
        self.next = end


class Recorder(Recording):
    """Tells the stores of every run, and forgets it then."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stores: Stores,
        under_way: Callable[[], Iterable[Relay]],
    ) -> None:
        """`under_way` gives the runs that are not over."""
        # What is told of every run that is over: its row, and why it did not complete.
        self.on_row: Callable[[RunRow, str | None], None] = lambda row, reason: None
        self._loop = loop
        self._stores = stores
        self._under_way = under_way
        self._journal = Journal()
        self._names = Names({})
        self._written: dict[str, _Written] = {}  # by run, of those under way
        self._lights: list[KeptAnswer] = []  # that ended a moment ago
        self._rows: list[RunRow] = []
        self._entries: list[JournalEntry] = []
        self._gathered_bytes = 0
        self._gathering: asyncio.TimerHandle | None = None
        self._ticking: asyncio.Handle | None = None  # while anything is to be written
        self._ends: dict[str, JournalEntry] = {}  # by run, that may not have been written; no text
        self._dropped_bytes = 0  # by the journal, when they were last told
        self._looking: asyncio.TimerHandle | None = None  # while there are any

    def configure(self, journal: Journal, names: Names) -> None:
        """Go by these settings from now on; the stores know of them."""
        if journal != self._journal:
            self._written.clear()  # perhaps nothing of it is kept any more
            self._ends.clear()
        self._journal = journal
        self._names = names
        if any(True for _ in self._under_way()):
            self.begin()

    def close(self) -> None:
        """Hand over what is left, and stop the clocks."""
        self.flush()
        for timer in (self._ticking, self._looking):
            if timer is not None:
                timer.cancel()
        self._ticking = self._looking = None

    # --- what runs do ---------------------------------------------------------------------------

    def begin(self) -> None:
        """See to it that a run which begins is written while it is under way."""
        if self._ticking is None and self._stores.keeps_runs:
            self._ticking = self._loop.call_later(self._journal.every_s * TICK_SHARE, self._tick)

    def end(self, relay: Relay) -> None:
        """Note a run that is over."""
        is_begun = relay.run.id in self._written
        self._note(row_of(relay, self._names), relay.run.reason)
        if self._stores.keeps_runs and (entry := self._last_entry(relay.run)) is not None:
            self._entries.append(entry)
            self._gathered_bytes += len(entry.events)
            if is_begun:
                self._watch_end(entry)
        self._written.pop(relay.run.id, None)
        self._gather(len(self._rows))

    def end_light(self, answer: KeptAnswer) -> None:
        """Note a light answer that has been sent."""
        self._lights.append(answer)
        self._gathered_bytes += len(answer.events)
        self._gather(len(self._lights))

    def _note(self, row: RunRow, reason: str | None = None) -> None:
        self._rows.append(row)
        self.on_row(row, reason)

    def _gather(self, gathered: int) -> None:
        if gathered >= MOST_GATHERED or self._gathered_bytes >= MOST_GATHERED_BYTES:
            self.flush()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(GATHER_S, self.flush)

    def flush(self) -> None:
        """Hand over what has ended."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if not (self._lights or self._rows):
            return
        lights, self._lights = self._lights, []
        stores, names = self._stores, self._names
        keeps_runs, keeps_text = stores.keeps_runs, stores.keeps_answers
        for answer in lights:
            self._note(light_row(answer, names))
            if keeps_runs and answer.next_seq:
                self._entries.append(light_entry(answer, names, keeps_text=keeps_text))
        entries, self._entries = self._entries, []
        rows, self._rows = self._rows, []
        self._gathered_bytes = 0
        if 0 < len(lights) < len(rows):  # some had a run: in the order in which they ended
            rows.sort(key=attrgetter("ended"))
            entries.sort(key=attrgetter("run.ended"))
        stores.put(entries, rows if stores.keeps_rows else ())

    def forget(self, run_id: str | None) -> None:
        """Hand over what has ended, and tell no end of this run, or of any, again."""
        self.flush()
        if run_id is None:
            self._ends.clear()
        else:
            self._ends.pop(run_id, None)

    # --- what must not be lost ------------------------------------------------------------------

    def _watch_end(self, entry: JournalEntry) -> None:
        """See to it that the end of a run is written of which the journal has the beginning."""
        if not self._ends:
            self._dropped_bytes = self._stores.states()[0].dropped_bytes
        elif len(self._ends) >= MOST_TOLD_AGAIN:
            del self._ends[next(iter(self._ends))]
        run = entry.run
        self._ends[run.id] = JournalEntry(run, b"", run.next_seq, 0)
        if self._looking is None:
            self._looking = self._loop.call_later(TOLD_AGAIN_S, self._look_at_ends)

    def _look_at_ends(self) -> None:
        """Tell the ends again where something was dropped since, once the journal takes it."""
        self._looking = None
        journal = self._stores.states()[0]
        if not self._stores.keeps_runs:
            self._ends.clear()
        elif not journal.waiting_bytes:
            if journal.dropped_bytes == self._dropped_bytes:
                self._ends.clear()  # all is written
            elif journal.paused is not None:
                self._stores.put([next(iter(self._ends.values()))], ())  # whether it takes that
            else:
                self._dropped_bytes = journal.dropped_bytes
                self._stores.put(list(self._ends.values()), ())
        if self._ends:
            self._looking = self._loop.call_later(TOLD_AGAIN_S, self._look_at_ends)

    # --- while they are under way ---------------------------------------------------------------

    def _tick(self) -> None:
        """Write what is under way, some at a time."""
        self._ticking = None
        if not self._stores.keeps_runs:
            self._written.clear()
            return
        before_s = self._loop.time() - self._journal.every_s * LEAST_AGE_SHARE
        due = [relay.run for relay in self._under_way() if relay.run.created_s <= before_s]
        self._write(iter(due))

    def _write(self, due: Iterable[Run]) -> None:
        self._ticking = None
        runs = list(islice(due, MOST_PER_TURN))
        entries = [entry for run in runs if (entry := self._next_entry(run)) is not None]
        if entries:
            self._stores.put(entries, ())
        if len(runs) == MOST_PER_TURN:
            self._ticking = self._loop.call_soon(self._write, due)
        elif any(True for _ in self._under_way()):
            self.begin()

    def _next_entry(self, run: Run) -> JournalEntry | None:
        """Make the entry of a run under way; None where nothing is new, or it is over."""
        written = self._written.get(run.id)
        mark = (run.window.end, run.state, len(run.attempts))
        if run.is_over or (written is not None and written.mark == mark):
            return None
        return self._entry(run, mark)

    def _last_entry(self, run: Run) -> JournalEntry | None:
        """Make the entry of a run that is over; None where nothing of it can be asked for."""
        is_readable = run.format.framing is not RAW and (
            run.request.streamed or run.window.held_bytes > 0
        )
        return self._entry(run, ()) if is_readable or run.id in self._written else None

    def _entry(self, run: Run, mark: tuple[object, ...]) -> JournalEntry:
        """Make an entry of what is new; without text where none is to be kept."""
        window, end = run.window, run.window.end
        keeps_text = self._stores.keeps_answers and run.request.stored
        keeps_text = keeps_text and run.format.framing is not RAW
        written = self._written.get(run.id)
        if written is None or written.next.seq < window.first_seq:
            written = self._written[run.id] = _Written(window.start if keeps_text else end)
        start = written.next if keeps_text else end
        events = window.read_all(start)
        written.advance(end, run.limits.window_bytes)
        written.mark = mark
        if not keeps_text:
            written.first = end
        return JournalEntry(
            journaled(run, self._names, written.first.seq), events, start.seq, end.seq - start.seq
        )
