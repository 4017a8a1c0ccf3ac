"""All runs of this generation: which there are, how they are found, and what of them is due.

Two heaps of deadlines drive it. *Clocks* belong to relays and subscribers: limits, keep-alives,
stalls. *Sweeps* belong to runs and are the net beneath the clocks: they look at the record alone,
so a run whose own end never took place is released all the same. What a tick costs depends on what
is due. What goes when memory is short, the evictor decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice

from tidegate.core.errors import LedgerFull
from tidegate.core.histogram import FIRST_OUTPUT_BOUNDS_S, RELAY_BOUNDS_S, Histogram
from tidegate.core.labels import own_label
from tidegate.core.runs import retention
from tidegate.core.runs.deadlines import Deadlines, Watched
from tidegate.core.runs.ledger import Ledger
from tidegate.core.runs.retention import RetentionVerdict
from tidegate.core.runs.state import RunState, Trigger, empty_census
from tidegate.core.runs.summary import RunSummary
from tidegate.core.settings import Limits
from tidegate.gateway.relay.light_answers import KeptAnswer, LightAnswers
from tidegate.gateway.relay.packing import Packing
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import Subscriber
from tidegate.gateway.relay.summaries import summarise
from tidegate.gateway.relay.swept import SweepLog, SweptRuns

log = logging.getLogger("tidegate.registry")

TICK_S = 0.02  # deadlines closer together than this are served together
LATE_S = 1.0  # a tick so late judges no run: neither clients nor upstreams were read
AGAIN_S = 1.0  # what is overdue and stays so is looked at this often
MOST_PER_TICK = 50  # releases between two turns of the event loop, some 10 us each


class Recording:
    """Who is told what becomes of runs; this one writes nothing down."""

    def begin(self) -> None:
        """Take note that a run begins."""

    def end(self, relay: Relay) -> None:
        """Take note that a run is over, once."""

    def end_light(self, answer: KeptAnswer) -> None:
        """Take note that a light answer has been sent."""


class Registry:
    """Holds the runs by id, and their deadlines. Times are the event loop's, in seconds."""

    def __init__(self, ledger: Ledger, loop: asyncio.AbstractEventLoop) -> None:
        self.ledger = ledger
        self.relay_seconds = Histogram(RELAY_BOUNDS_S)
        self.first_output_seconds: dict[str, Histogram] = defaultdict(_no_first_outputs)
        self.ended: Counter[str] = Counter()  # by terminal state, since the start
        self.total = 0
        self.swept = SweepLog(loop, self.tick_by)
        self.limits: Callable[[], Limits] = Limits  # of what is made of a kept light answer
        self.token_names: Mapping[str, str] = {}  # by owner
        self.leaving: OrderedDict[Relay, None] = OrderedDict()  # released, and still being read
        self.on_add: Callable[[Relay], None] = lambda relay: None  # a run begins
        self.on_tick: Callable[[float], None] = lambda now_s: None  # what was due has been served
        self.recording = Recording()
        self.light = LightAnswers(ledger)
        self._relays: dict[str, Relay] = {}
        self.packing = Packing(self._relays, self.light, self._settle, loop)
        self._active: dict[str, Relay] = {}
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
        self._spared = False  # the last tick was late and judged no run

    # --- the runs -----------------------------------------------------------------------------

    def add(self, relay: Relay) -> None:
        """Hold a new run."""
        self.total += 1
        self._file(relay)
        self._active[relay.run.id] = relay
        self._plan_sweep(relay)
        self.on_add(relay)
        self.recording.begin()

    def adopt(self, relay: Relay) -> None:
        """Keep a finished run of another generation for its readers."""
        if relay.run.id in self._relays:
            relay.run.account.close()
            return
        self._file(relay)
        self._finish(relay)

    def handed_over(self, relay: Relay) -> None:
        """Release a finished run for which another generation answers now."""
        if relay.run.id in self._relays and not relay.subscribers:
            self._let_go(relay, "handed over")

    def find(self, run_id: str, owner: str | None) -> Relay | None:
        """Find the run, if it is `owner`'s; None as the owner finds any."""
        relay = self._relays.get(run_id) or self._revive(run_id, owner)
        return relay if relay is not None and owner in {None, relay.run.owner} else None

    def _revive(self, run_id: str, owner: str | None) -> Relay | None:
        """Make a run of a light answer that is kept, if it is `owner`'s."""
        run = self.light.revive(run_id, owner, self.limits())
        if run is None:
            return None
        relay = Relay(self, run, [], self._loop)
        self.adopt(relay)
        return relay

    def on_light_end(self, answer: KeptAnswer) -> None:
        """Count a light answer that has been sent, and keep it if it can be read again."""
        self.total += 1
        self.ended[RunState.COMPLETED.value] += 1
        self.recording.end_light(answer)
        if not answer.next_seq:
            return
        with suppress(LedgerFull):  # it is not kept
            self._keep_light(answer)
            self.packing.touch(answer.id)

    def _keep_light(self, answer: KeptAnswer) -> None:
        self.light.keep(answer)
        self._sweeps.set(answer.id, answer.due_s)
        self.tick_by(answer.due_s)

    def _settle(self, relay: Relay, answer: KeptAnswer) -> int:
        """Keep a run that is over as a light answer; returns the bytes freed."""
        freed_bytes = self._let_go(relay, "settled")
        self._keep_light(answer)
        return freed_bytes - answer.held_bytes

    def release_light(self, run_id: str, kind: str) -> int:
        """Release a light answer that is kept, and count it; returns the bytes freed."""
        freed_bytes = self.light.drop(run_id)
        self.packing.forget(run_id)
        self._sweeps.drop(run_id)
        self.swept.add(kind, freed_bytes)
        return freed_bytes

    def find_response(self, response_id: str | None, owner: str) -> Relay | None:
        """Find the newest run whose answer has that id, if it is `owner`'s and was to be kept.

        The id is mostly an upstream's, which may give it twice.
        """
        if response_id is None:
            return None
        over = self._of_response.get(response_id, {})
        for relay in chain(reversed(self._active.values()), reversed(over.values())):
            run = relay.run
            if run.response_id == response_id and run.owner == owner and run.request.stored:
                return relay
        return None

    def discard(self, relay: Relay, reason: str) -> None:
        """Cancel and release a run that its owner wants gone."""
        relay.cancel(reason)
        if relay.run.id in self._relays:
            self._let_go(relay, reason)

    def newest(self, owner: str | None, limit: int) -> list[RunSummary]:
        """List summaries, newest first."""
        self.light.promote()
        relays = self._relays if owner is None else self._of_owner.get(owner, {})
        found = [
            summarise(each, self.token_names) for each in islice(reversed(relays.values()), limit)
        ]
        found += self.light.newest(owner, limit, self.token_names)
        return sorted(found, key=lambda run: run.created, reverse=True)[:limit]

    def active(self) -> list[Relay]:
        """List the runs that are not over."""
        self.light.promote()
        return list(self._active.values())

    def under_way(self) -> Iterable[Relay]:
        """Give the runs that are not over; light answers stay what they are."""
        return self._active.values()

    def finished(self, most: int | None = None) -> list[Relay]:
        """List the runs that are over and kept, the oldest first, at most `most`."""
        return list(islice(self._finished.values(), most))

    def each_finished(self) -> Iterator[Relay]:
        """Go through what is over and kept; a light answer becomes a run when its turn comes."""
        yield from self.finished()
        while (oldest := self.light.oldest()) and (relay := self._revive(oldest, None)):
            yield relay

    def unread(self, most: int) -> list[Relay]:
        """List the finished runs that have no reader, the oldest first, at most `most`."""
        relays = (relay for relay in self._finished.values() if not relay.subscribers)
        return list(islice(relays, most))

    @property
    def active_count(self) -> int:
        return len(self._active) + len(self.light.running)

    @property
    def finished_count(self) -> int:
        return len(self._finished) + len(self.light)

    def states(self) -> Counter[str]:
        """Count the runs that are held, by state."""
        held = Counter({state.value: number for state, number in self._census.items()})
        held[RunState.CONNECTING.value] += len(self.light.running)
        held[RunState.COMPLETED.value] += len(self.light)
        return +held

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
        self.packing.touch(run.id)
        if run.response_id is not None:
            self._of_response.setdefault(run.response_id, {})[run.id] = relay
        self._plan_sweep(relay)

    def _unfile(self, relay: Relay) -> None:
        """Take the run out of every list."""
        run = relay.run
        run.leave_census()
        self.packing.forget(run.id)
        for runs in (self._relays, self._active, self._finished):
            runs.pop(run.id, None)
        for index, key in ((self._of_owner, run.owner), (self._of_response, run.response_id)):
            found = index.get(key or "", {})
            if found.pop(run.id, None) is not None and not found:
                del index[key or ""]

    # --- what relays report -------------------------------------------------------------------

    def look_soon(self, who: Watched, due_s: float) -> None:
        """Call `who.check` at `due_s`, or earlier if that was asked before."""
        if self._clocks.set_earlier(who, due_s):
            self.tick_by(due_s)

    def on_first_output(self, upstream: str, seconds: float) -> None:
        seen = self.first_output_seconds
        seen[own_label(upstream, seen)].observe(seconds)

    def on_end(self, relay: Relay) -> None:
        run = relay.run
        self.ended[run.state.value] += 1
        self.forget(relay)
        if self._active.pop(run.id, None) is not None:
            self._finish(relay)
        self.recording.end(relay)

    def on_detach(self, relay: Relay) -> None:
        run = relay.run
        if run.released:
            if not relay.subscribers:
                self.leaving.pop(relay, None)
                run.account.close()
        elif run.is_over and not run.request.streamed and not run.window.held_bytes:
            self._let_go(relay, "answered")  # it has been written; there is nothing to resume
        else:
            self._plan_sweep(relay)
            if run.is_over:
                self.packing.touch(run.id)

    def detach(self, relay: Relay, subscriber: Subscriber) -> None:
        """Let a reader go that has gone."""
        self.forget(subscriber)
        relay.detach(subscriber)

    def forget(self, who: Watched) -> None:
        """Drop its deadline: nothing of it is due any more."""
        self._clocks.drop(who)

    # --- sweeping -----------------------------------------------------------------------------

    def sweep(self, now_s: float, *, finished: bool = False) -> SweptRuns:
        """Release what is due, and with `finished` also answers that are over; some at a time."""
        swept = SweptRuns()
        for run_id in self._sweeps.take_due(now_s, MOST_PER_TICK):
            relay = self._relays.get(run_id)
            if relay is None:
                if run_id in self.light:
                    swept.add("finished", self.release_light(run_id, "finished"))
                continue
            verdict = retention.verdict(relay.run, now_s)
            if verdict is None:
                self._plan_sweep(relay)
            else:
                swept.add(verdict.kind, self.release(relay, verdict))
        if finished:
            while swept.runs < MOST_PER_TICK and (oldest := self.light.oldest()):
                swept.add("finished", self.release_light(oldest, "finished"))
            for relay in self.unread(max(0, MOST_PER_TICK - swept.runs)):
                verdict = RetentionVerdict("finished", "swept: finished")
                swept.add(verdict.kind, self.release(relay, verdict))
        self.swept.report()
        return swept

    def release(self, relay: Relay, verdict: RetentionVerdict) -> int:
        """Release a run, ending it if it is not over, and count it; returns the bytes freed."""
        if not relay.run.is_over:
            self.swept.last = f"run {relay.run.id} {verdict.reason}"
            log.warning("%s", self.swept.last)
            self._end_by_force(relay, verdict.reason)
        freed_bytes = self._let_go(relay, verdict.reason)
        self.swept.add(verdict.kind, freed_bytes)
        return freed_bytes

    def _end_by_force(self, relay: Relay, reason: str) -> None:
        """End the run; whatever is broken about its end, the record says that it is over."""
        try:
            relay.force_end(reason)
        except Exception:
            log.exception("run %s: its end failed", relay.run.id)
        if not relay.run.is_over:
            relay.run.end(Trigger.EXPIRE, reason, "swept", self._loop.time(), time.time())
            relay.tell_error()
            self.on_end(relay)

    def _let_go(self, relay: Relay, reason: str) -> int:
        """Take the run out, which has no other way: afterwards it holds nothing.

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
            self.leaving[relay] = None
        else:
            run.account.close()
        return freed

    def _plan_sweep(self, relay: Relay) -> None:
        """Look at the run when it may be due; one that is to be looked at before waits for that."""
        due_s = retention.due_s(relay.run)
        if self._sweeps.set_earlier(relay.run.id, due_s):
            self.tick_by(due_s)

    # --- time ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the ticks, and log what was swept and is not yet told."""
        self.swept.tell()
        self.packing.close()
        if self._timer is not None:
            self._timer.cancel()

    def tick_by(self, due_s: float) -> None:
        """Look at what is due at `due_s`, or earlier if something else is."""
        if due_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = max(due_s, self._loop.time() + TICK_S)
        self._timer = self._loop.call_at(self._timer_s, self._tick)

    def _tick(self) -> None:
        """Look at what is due, and arm the timer for what comes next."""
        planned_s, self._timer, self._timer_s = self._timer_s, None, float("inf")
        now_s = self._loop.time()
        late = now_s - planned_s > LATE_S
        self._spared = late and not self._spared  # once: a loop that is always late still judges
        if self._spared:
            self.tick_by(now_s)  # we were stopped: what came meanwhile has yet to be read
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
        self.on_tick(now_s)
        for next_s in (self._clocks.next_s(), self._sweeps.next_s()):
            if next_s is not None:
                self.tick_by(next_s)


def _no_first_outputs() -> Histogram:
    return Histogram(FIRST_OUTPUT_BOUNDS_S)
