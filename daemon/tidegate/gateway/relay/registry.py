"""All runs of this generation: who is there, what is due, what goes when memory is short.

Two heaps of deadlines drive it. *Clocks* belong to relays and subscribers: limits, keep-alives,
stalls. *Sweeps* belong to runs and are the net beneath the clocks: they look at the record alone,
so a run whose own end never took place is released all the same. What a tick costs depends on what
is due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import chain, islice

from tidegate.core.histogram import FIRST_OUTPUT_BOUNDS_S, RELAY_BOUNDS_S, Histogram
from tidegate.core.memory.report import StepReport
from tidegate.core.runs import eviction, retention
from tidegate.core.runs.deadlines import Deadlines, Watched
from tidegate.core.runs.eviction import Act, Candidate, Step, Victim
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.runs.retention import Verdict
from tidegate.core.runs.state import Happening, State, empty_census
from tidegate.core.runs.summary import RunSummary
from tidegate.core.runs.window import SEGMENT_BYTES
from tidegate.core.text import count
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.summaries import summarise
from tidegate.logs.pace import Pace

log = logging.getLogger("tidegate.registry")

TICK_S = 0.02  # deadlines closer together than this are served together
LATE_S = 1.0  # a tick so late judges nobody: neither clients nor upstreams were read
AGAIN_S = 1.0  # what is overdue and stays so is looked at this often
MOST_PER_TICK = 50  # releases between two turns of the event loop, some 10 us each
MOST_CANDIDATES = 1000  # finished runs that one plan looks at, the oldest
# When a live run would have to fail otherwise, readers who have read nothing for so long go first:
# longer than a socket takes to drain or Wi-Fi to roam. Looking for them costs some 5 us a run.
STALLED_S = 2.0
LOOK_STALLED_S = 0.25


@dataclass(slots=True)
class Swept:
    """What a sweep released."""

    runs: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, other: Swept) -> None:
        """With what another one released."""
        self.runs += other.runs
        self.bytes += other.bytes
        self.reasons += other.reasons

    def __str__(self) -> str:
        why = ", ".join(f"{kind} {count}" for kind, count in sorted(self.reasons.items()))
        return f"{count(self.runs, 'run')}, {self.bytes} bytes ({why or 'nothing was due'})"


class Registry:
    """The runs by id, and their deadlines. Times are the event loop's, in seconds."""

    def __init__(self, ledger: Ledger, loop: asyncio.AbstractEventLoop) -> None:
        self.ledger = ledger
        self.relay_seconds = Histogram(RELAY_BOUNDS_S)
        self.first_output_seconds: dict[str, Histogram] = {}
        self.ended: Counter[str] = Counter()  # by terminal state, since the start
        self.total = 0
        self.swept = Swept()
        self.swept_bytes: Counter[str] = Counter()  # by kind
        self.last_sweep: str | None = None
        self.at_limit = StepReport(
            step="ledger", runs=0, promised_bytes=0, freed_bytes=0, took_s=0.0
        )  # what the enforced limit took, since the start
        self._unreported = Swept()
        self._pace = Pace()  # of log lines about sweeps
        self._relays: dict[str, Relay] = {}
        self._active: dict[str, Relay] = {}
        self._leaving: OrderedDict[Relay, None] = OrderedDict()  # released, and still being read
        self._finished: dict[str, Relay] = {}  # over and kept, the oldest first
        # So that an answer costs what is found, not the thousands of runs that others keep.
        self._census = empty_census()
        self._of_owner: dict[str, dict[str, Relay]] = {}
        self._of_response: dict[str, dict[str, Relay]] = {}  # of those that are over
        self._clocks: Deadlines[Watched] = Deadlines()
        self._sweeps: Deadlines[str] = Deadlines()
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._spared = False  # the last tick was late and judged nobody
        self._held_back = False
        self._squeezed = False
        self._relieving = False
        self._stalled: list[Victim] = []  # the least valuable last
        self._look_stalled_s = float("-inf")
        # What connections give back while memory is short, before any run is harmed.
        self.make_room: Callable[[Callable[[], bool]], int] = lambda is_short: 0
        ledger.relieve = self._relieve

    # --- the runs -----------------------------------------------------------------------------

    def add(self, relay: Relay) -> None:
        """A new run."""
        self.total += 1
        self._file(relay)
        self._active[relay.run.id] = relay
        self._plan_sweep(relay)
        if self._squeezed:
            relay.squeeze(half=True)
        if self._held_back:
            relay.hold_back(back=True, spare_bytes=self._fair_bytes())

    def adopt(self, relay: Relay) -> None:
        """A finished run of another generation, to be kept for its readers."""
        if relay.run.id in self._relays:
            relay.run.account.close()
            return
        self._file(relay)
        self._finish(relay)

    def handed_over(self, relay: Relay) -> None:
        """Another generation answers for this finished run now."""
        if relay.run.id in self._relays and not relay.subscribers:
            self._release(relay, "handed over")

    def find(self, run_id: str, owner: str | None) -> Relay | None:
        """The run, if it is `owner`'s; None as the owner means everybody's."""
        relay = self._relays.get(run_id)
        return relay if relay is not None and owner in {None, relay.run.owner} else None

    def find_response(self, response_id: str | None, owner: str) -> Relay | None:
        """The newest run whose answer has that id, if it is `owner`'s and was to be kept.

        The id is mostly an upstream's, and nobody keeps an upstream from giving it twice.
        """
        if response_id is None:
            return None
        over = self._of_response.get(response_id, {})
        for relay in chain(reversed(self._active.values()), reversed(over.values())):
            run = relay.run
            if run.response_id == response_id and run.owner == owner and run.stored:
                return relay
        return None

    def discard(self, relay: Relay, reason: str) -> None:
        """Its owner wants it gone."""
        relay.cancel(reason)
        if relay.run.id in self._relays:
            self._release(relay, reason)

    def newest(self, owner: str | None, limit: int) -> list[RunSummary]:
        """Summaries, newest first."""
        relays = self._relays if owner is None else self._of_owner.get(owner, {})
        return [summarise(relay) for relay in islice(reversed(relays.values()), limit)]

    def active(self) -> list[Relay]:
        """The runs that are not over."""
        return list(self._active.values())

    def finished(self) -> list[Relay]:
        """The runs that are over and kept, the oldest first."""
        return list(self._finished.values())

    @property
    def active_count(self) -> int:
        return len(self._active)

    @property
    def finished_count(self) -> int:
        return len(self._finished)

    def states(self) -> Counter[str]:
        """How many runs are held, by state."""
        return Counter({state.value: held for state, held in self._census.items() if held})

    def _file(self, relay: Relay) -> None:
        """Hold the run: it is counted, and found by its id and its owner."""
        run = relay.run
        self._relays[run.id] = relay
        self._of_owner.setdefault(run.owner, {})[run.id] = relay
        run.join(self._census)

    def _finish(self, relay: Relay) -> None:
        """Keep a run that is over: it is found by its answer's id too, which changes no more."""
        run = relay.run
        self._finished[run.id] = relay
        if run.response_id is not None:
            self._of_response.setdefault(run.response_id, {})[run.id] = relay
        self._plan_sweep(relay)

    def _unfile(self, relay: Relay) -> None:
        """Hold the run no longer."""
        run = relay.run
        run.leave_census()
        for runs in (self._relays, self._active, self._finished):
            runs.pop(run.id, None)
        for index, key in ((self._of_owner, run.owner), (self._of_response, run.response_id)):
            found = index.get(key or "", {})
            if found.pop(run.id, None) is not None and not found:
                del index[key or ""]

    # --- what relays report -------------------------------------------------------------------

    def look_soon(self, who: Watched, due_s: float) -> None:
        """Calls `who.check` at `due_s`, or earlier if that was asked before."""
        if self._clocks.set_earlier(who, due_s):
            self._arm(due_s)

    def on_first_output(self, upstream: str, seconds: float) -> None:
        histogram = self.first_output_seconds.get(upstream)
        if histogram is None:
            histogram = self.first_output_seconds[upstream] = Histogram(FIRST_OUTPUT_BOUNDS_S)
        histogram.observe(seconds)

    def on_end(self, relay: Relay) -> None:
        run = relay.run
        self.ended[run.state.value] += 1
        self.forget(relay)
        if self._active.pop(run.id, None) is not None:
            self._finish(relay)
        if run.state is not State.COMPLETED:
            log.info("run %s %s: %s", run.id, run.state.value, _once(run.state, run.reason))

    def on_detach(self, relay: Relay) -> None:
        if relay.run.released:
            if not relay.subscribers:
                self._leaving.pop(relay, None)
                relay.run.account.close()
        elif relay.run.is_over and not relay.run.streamed and not relay.run.window.held_bytes:
            self._release(relay, "answered")  # it has been written; there is nothing to resume
        else:
            self._plan_sweep(relay)

    def forget(self, who: Watched) -> None:
        """Nothing of it is due any more."""
        self._clocks.drop(who)

    # --- sweeping -----------------------------------------------------------------------------

    def sweep(self, now_s: float, *, finished: bool = False) -> Swept:
        """Releases what is due; with `finished`, answers that are over too. Some at a time."""
        swept = Swept()
        for run_id in self._sweeps.take_due(now_s, MOST_PER_TICK):
            relay = self._relays.get(run_id)
            if relay is None:
                continue
            verdict = retention.verdict(relay.run, now_s)
            if verdict is None:
                self._plan_sweep(relay)
            else:
                self._sweep_one(relay, verdict, swept)
        if finished:
            unread = (relay for relay in self._finished.values() if not relay.subscribers)
            for relay in list(islice(unread, max(0, MOST_PER_TICK - swept.runs))):
                self._sweep_one(relay, Verdict("finished", "swept: finished"), swept)
        self._add(swept)
        return swept

    # --- relief, as the watchdog orders it: see `gateway.relief` ----------------------------------

    def candidates(self, step: Step) -> list[Candidate]:
        """The runs that a step may take something from."""
        active, finished = self._active.values(), islice(self._finished.values(), MOST_CANDIDATES)
        unread = (relay for relay in active if not relay.subscribers)
        relays: Iterable[Relay]
        match step:
            case Step.FINISHED:
                relays = finished
            case (
                Step.KEPT | Step.STALE
            ):  # a stuck run that has readers is the sweep's, whatever the level
                relays = chain(finished, unread)
            case Step.STALLED:
                relays = (relay for relay in chain(finished, active) if relay.subscribers)
            case Step.BACKGROUND:
                relays = unread
            case Step.WINDOWS:
                relays = active
            case Step.TIDY:
                relays = ()
        now_s = self._loop.time()
        return [as_candidate(relay, now_s) for relay in relays]

    def candidate(self, run_id: str) -> Candidate | None:
        """One run as it is now; None when it is gone."""
        relay = self._relays.get(run_id)
        return None if relay is None else as_candidate(relay, self._loop.time())

    def evict(self, victim: Victim, where: str) -> int:
        """Does it; returns the bytes that are free now. `where` ends the reason: "level 3"."""
        relay = self._relays.get(victim.id)
        if relay is None:
            return 0
        before = self.ledger.total_bytes
        swept = Swept()
        if victim.act is Act.RELEASE:
            self.last_sweep = f"run {victim.id} {victim.reason}, {where}"
            self._sweep_one(relay, Verdict(victim.kind, f"{victim.reason}, {where}"), swept)
        else:
            relay.run.shrink(victim.keep_bytes)
            self.swept_bytes[victim.kind] += before - self.ledger.total_bytes
        self._note(swept)
        return before - self.ledger.total_bytes

    def squeeze(self, *, half: bool) -> None:
        """Windows and watermarks are half as large, or whole again."""
        if half == self._squeezed:
            return
        self._squeezed = half
        for relay in self.active():
            relay.squeeze(half=half)

    def _sweep_one(self, relay: Relay, verdict: Verdict, swept: Swept) -> None:
        if not relay.run.is_over:
            self.last_sweep = f"run {relay.run.id} {verdict.reason}"
            log.warning("%s", self.last_sweep)
            self._end_by_force(relay, verdict.reason)
        freed = self._release(relay, verdict.reason)
        for totals in (swept, self.swept):
            totals.runs += 1
            totals.bytes += freed
            totals.reasons[verdict.kind] += 1
        self.swept_bytes[verdict.kind] += freed

    def _end_by_force(self, relay: Relay, reason: str) -> None:
        """Whatever is broken about this run's end, the record says that it is over."""
        try:
            relay.force_end(reason)
        except Exception:
            log.exception("run %s: its end failed", relay.run.id)
        if not relay.run.is_over:
            relay.run.end(Happening.EXPIRE, reason, "swept", self._loop.time(), time.time())
            relay.tell_error()
            self.on_end(relay)

    def _release(self, relay: Relay, reason: str) -> int:
        """The one way out of the registry: afterwards the run holds nothing.

        `reason` is what a reader is told who had not come to the end yet.
        """
        run = relay.run
        run.reason = run.reason or reason
        freed = run.release()
        self._unfile(relay)
        self._sweeps.drop(run.id)
        self.forget(relay)
        for subscriber in relay.subscribers:
            subscriber.wake()  # a lagging one finds its window gone, and tells its client
            self.look_soon(subscriber, self._loop.time())
        if relay.subscribers:
            self._leaving[relay] = None
        else:
            run.account.close()
        return freed

    def _add(self, swept: Swept) -> None:
        self._note(swept)
        self.report()

    def _note(self, swept: Swept) -> None:
        if swept.runs:
            self._unreported.add(swept)
            self._pace.grew(self._loop.time())

    def report(self) -> None:
        """Logs what was swept, each time for the first few times and then once a minute."""
        if not self._unreported.runs:
            return
        now_s = self._loop.time()
        if now_s >= self._pace.due_s:
            self._tell_swept()
            self._pace.told(now_s)
        else:
            self._arm(self._pace.due_s)

    def _tell_swept(self) -> None:
        if self._unreported.runs:
            log.info("swept %s", self._unreported)
            self._unreported = Swept()

    def _plan_sweep(self, relay: Relay) -> None:
        due_s = retention.due_s(relay.run)
        self._sweeps.set(relay.run.id, due_s)
        self._arm(due_s)

    # --- when memory is short -----------------------------------------------------------------

    def _relieve(self) -> None:
        """Called when the ledger is tight, or its intake full: what costs no reader anything first.

        Finished windows, heads that are arriving, idle connections, then what readers have behind
        them, and slow readers' upstreams wait.
        What is kept of live runs that nobody reads shrinks to a fair share. When it is full all
        the same nothing is kept of those: they go on, and who comes later is told what is gone.
        Then go runs whose readers read nothing, those whose readers lag most, and last finished
        ones with readers who do; all of them are told.
        """
        if self._relieving:
            return  # a run that goes charges its last words
        self._relieving = True
        try:
            self._relieve_once()
        finally:
            self._relieving = False

    def _relieve_once(self) -> None:
        started_s, before = time.perf_counter(), self.ledger.total_bytes
        ledger = self.ledger
        runs = 0
        if ledger.is_tight:
            unread = (relay for relay in self._finished.values() if not relay.subscribers)
            runs = self._evict_while(lambda: ledger.has_much, unread)
        self.make_room(lambda: ledger.is_tight or ledger.is_intake_full)
        if self.ledger.is_tight and not self._held_back:
            log.warning("the ledger is tight: windows shrink, and slow readers' upstreams wait")
            self._hold_back(back=True)
        if self.ledger.is_full:
            for relay in self._active.values():
                if not relay.subscribers:
                    relay.run.shrink(0)
            self._cut_leaving(ledger.limit_bytes)
            runs += self._evict_stalled()
            runs += self._evict_lagging()
            runs += self._evict_while(lambda: self.ledger.is_full, self._finished.values())
        if freed := before - self.ledger.total_bytes:
            known = self.at_limit
            self.at_limit = StepReport(
                step=known.step,
                runs=known.runs + runs,
                promised_bytes=known.promised_bytes + freed,
                freed_bytes=known.freed_bytes + freed,
                took_s=known.took_s + time.perf_counter() - started_s,
            )

    def _evict_while(self, short: Callable[[], bool], relays: Iterable[Relay]) -> int:
        """Releases these for as long as it is, some at a time; how many."""
        if not short():
            return 0
        swept = Swept()
        for relay in list(islice(relays, MOST_PER_TICK)):
            if not short():
                break
            self._sweep_one(relay, Verdict("memory", "swept: memory limit"), swept)
        if swept.runs:
            self.last_sweep = f"finished runs, for memory: {swept}"
        self._add(swept)
        return swept.runs

    def _evict_stalled(self) -> int:
        """Whoever reads nothing goes before one who reads: the longest first; how many."""
        now_s = self._loop.time()
        if self.ledger.is_full and now_s >= self._look_stalled_s:
            self._look_stalled_s = now_s + LOOK_STALLED_S
            found = self.candidates(Step.STALLED)
            self._stalled = eviction.plan(Step.STALLED, found, now_s, STALLED_S, MOST_PER_TICK)[
                ::-1
            ]
        runs = 0
        while self._stalled and self.ledger.is_full:
            candidate = self.candidate(self._stalled.pop().id)  # it may have read meanwhile
            found = [candidate] if candidate is not None else []
            for victim in eviction.plan(Step.STALLED, found, now_s, STALLED_S, 1):
                self.evict(victim, "memory limit")
                self._cut_leaving(self.ledger.limit_bytes)
                runs += 1
        self.report()
        return runs

    def _evict_lagging(self) -> int:
        """Then goes what is held for readers who lag, the most first; how many.

        Else whichever run grows next would have to fail, and that is one whose reader keeps up.
        All are looked at, so a little more goes than is needed just now.
        """
        if not self.ledger.is_full:
            return 0
        enough_bytes = self.ledger.limit_bytes - self.ledger.limit_bytes // 16
        lags = ((relay.lag_bytes, relay.run.id) for relay in self._relays.values())
        runs = 0
        for lag_bytes, run_id in nlargest(MOST_PER_TICK, lags):
            if not lag_bytes or self.ledger.total_bytes <= enough_bytes:
                break
            words = f"swept: its readers lag by {lag_bytes // 1024} KiB"
            self.evict(Victim(run_id, Act.RELEASE, "lagging", words, lag_bytes), "memory limit")
            self._cut_leaving(enough_bytes)
            runs += 1
        self.report()
        return runs

    def _cut_leaving(self, enough_bytes: int) -> None:
        """Then the last words to readers of released runs: the oldest first, unread as they are.

        Readers have `close_flush_s` for them. Of 300 that read nothing they were two thirds of
        the ledger, and what was charged next failed: an answer whose reader keeps up.
        """
        while self._leaving and self.ledger.total_bytes > enough_bytes:
            self._leaving.popitem(last=False)[0].cut_readers()

    def _hold_back(self, *, back: bool) -> None:
        self._held_back = back
        spare_bytes = self._fair_bytes()
        for relay in self.active():
            relay.hold_back(back=back, spare_bytes=spare_bytes)
        self._arm(self._loop.time() + AGAIN_S)

    def _fair_bytes(self) -> int:
        """What a run that nobody reads may keep while the ledger is tight: of half the limit."""
        return max(SEGMENT_BYTES, self.ledger.limit_bytes // 2 // max(1, len(self._active)))

    # --- time ---------------------------------------------------------------------------------

    def close(self) -> None:
        """No more ticks; what was swept and not yet told is told."""
        self._tell_swept()
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, due_s: float) -> None:
        if due_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = max(due_s, self._loop.time() + TICK_S)
        self._timer = self._loop.call_at(self._timer_s, self._tick)

    def _tick(self) -> None:
        """Looks at what is due, and arms the timer for what comes next."""
        planned_s, self._timer, self._timer_s = self._timer_s, None, float("inf")
        now_s = self._loop.time()
        late = now_s - planned_s > LATE_S
        self._spared = late and not self._spared  # once: a loop that is always late still judges
        if self._spared:
            self._arm(now_s)  # we were stopped: what came meanwhile has yet to be read
            return
        for who in self._clocks.take_due(now_s):
            try:
                again_s = who.check(now_s)
            except Exception:
                log.exception("a deadline could not be served")
                again_s = now_s + AGAIN_S
            if again_s is not None:
                self.look_soon(who, again_s if again_s > now_s else now_s + AGAIN_S)
        self.sweep(now_s)
        if self._held_back and not self.ledger.is_tight:
            self._hold_back(back=False)
        for next_s in (self._clocks.next_s(), self._sweeps.next_s()):
            if next_s is not None:
                self._arm(next_s)
        if self._held_back:
            self._arm(now_s + AGAIN_S)


def as_candidate(relay: Relay, now_s: float) -> Candidate:
    """What relief has to know of a run."""
    run = relay.run
    return Candidate(
        id=run.id,
        is_over=run.is_over,
        delivered=run.delivered,
        readers=len(relay.subscribers),
        stalled_s=min((each.stalled_s(now_s) for each in relay.subscribers), default=0.0),
        ended_s=run.ended_s,
        abandoned_s=run.abandoned_s,
        keep_running=run.keep_running,
        stuck_s=run.created_s + run.limits.total_s + run.limits.grace_s,
        held_bytes=run.account.total_bytes - run.account.entries[Entry.OUTBOUND],
        window_bytes=run.window.held_bytes,
        needed_bytes=relay.needed_bytes,
    )


def _once(state: State, reason: str | None) -> str:
    """The reason without the word that the state says already."""
    return (reason or "").removeprefix(f"{state.value}: ")
