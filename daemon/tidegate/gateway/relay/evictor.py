"""Evicts what can go when memory is short: by the watchdog's order, and at the ledger's limit.

An *order* comes on every tick while memory is short. Its victims are planned, looked at again and
evicted in bites, between which the event loop turns, so that streams go on; at most `order.most`
runs lose something in it. The *limit* is met where bytes are charged, and cannot wait. Both evict
in one place. What is freed is measured around each victim, where nothing else charges.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from heapq import nlargest
from itertools import chain
from typing import NamedTuple

from tidegate.core.memory.report import StepReport
from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.protocol.worker import Reclaim
from tidegate.core.runs import eviction
from tidegate.core.runs.eviction import Candidate, Eviction, Victim
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.retention import RetentionVerdict
from tidegate.core.runs.window import SEGMENT_BYTES
from tidegate.core.text import count
from tidegate.gateway.relay.registry import AGAIN_S, MOST_PER_TICK, Registry
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.server.sockets import Sockets

log = logging.getLogger("tidegate.evictor")

# With these go heads that are arriving, and connections between two requests.
_WITH_CONNECTIONS = frozenset({ReclaimStep.TRIM, ReclaimStep.STALE})
# And with these light answers, which are finished, and read.
_WITH_LIGHT = frozenset({ReclaimStep.KEPT, ReclaimStep.STALE, ReclaimStep.FINISHED})
BITE = 10  # victims between two turns of the loop; each costs some 10 us and its readers' goodbye
MOST_CANDIDATES = 1000  # finished runs that one plan looks at, the oldest
# When a live run would have to fail otherwise, readers who have read nothing for so long go first:
# longer than a socket takes to drain or Wi-Fi to roam. Looking for them costs some 5 us a run.
STALLED_S = 2.0
LOOK_STALLED_S = 0.25
AT_LIMIT = "memory limit"  # why it goes, as readers are told


class Heap(NamedTuple):
    """The process's heap, as far as the system lets it be measured and trimmed."""

    resident_bytes: Callable[[], int] = lambda: 0
    free_bytes: Callable[[], int] = lambda: 0  # what a trim could give back at most
    trim: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _Tally:
    """What was evicted so far."""

    runs: int = 0
    promised_bytes: int = 0
    freed_bytes: int = 0
    took_s: float = 0.0

    def report(self, step: str) -> StepReport:
        return StepReport(step=step, **asdict(self))


class Evictor:
    """Gives memory back. The ledger calls `reclaim`; `carry_out` takes one order at a time."""

    def __init__(
        self,
        registry: Registry,
        *,
        sockets: Sockets,
        make_room: Callable[[Callable[[], bool]], int],
        drop_caches: Callable[[], None],
    ) -> None:
        """Watch the ledger; `make_room` closes waiting connections while its argument is true."""
        self.freed_bytes: Counter[str] = Counter()  # by step of an order, since the start
        self.seconds: dict[str, float] = {}
        self.has_backpressure = False  # the ledger is tight: slow readers' upstreams wait
        self.heap = Heap()  # the worker has the real one
        self._registry = registry
        self._ledger = registry.ledger
        self._sockets = sockets
        self._make_room = make_room
        self._drop_caches = drop_caches
        self._loop = asyncio.get_running_loop()
        self._buffers_are_halved = False
        self._is_reclaiming = False
        self._at_limit = _Tally()
        self._stalled: Iterator[Victim] = iter(())  # as they were last looked for
        self._look_stalled_s = float("-inf")
        registry.ledger.reclaim = self.reclaim
        registry.on_add, registry.on_tick = self._on_add, self._on_tick

    @property
    def at_limit(self) -> StepReport:
        """Tell what the ledger's limit took, since the start."""
        return self._at_limit.report("ledger")

    # --- by order -----------------------------------------------------------------------------

    async def carry_out(self, order: Reclaim) -> list[StepReport]:
        """Take every step of the order; returns what each one promised and freed."""
        reports = []
        left = order.most
        for name in order.steps:
            started_s, tally = time.perf_counter(), _Tally()
            try:
                await self._take(ReclaimStep(name), order, left, tally)
            except Exception:  # the other steps, and what they freed, are told all the same
                log.exception("reclaim step %s failed", name)
                continue
            left -= tally.runs
            tally.took_s = time.perf_counter() - started_s
            self.freed_bytes[name] += tally.freed_bytes
            self.seconds[name] = self.seconds.get(name, 0.0) + tally.took_s
            reports.append(tally.report(name))
        return reports

    async def _take(self, step: ReclaimStep, order: Reclaim, most: int, tally: _Tally) -> None:
        if step in _WITH_CONNECTIONS:
            self._make_room(lambda: True)
        if step is ReclaimStep.TRIM:
            await self._trim_heap(tally)
            return
        now_s, stale_after_s = self._loop.time(), order.stale_after_s
        is_short = (lambda: self._ledger.has_much) if step is ReclaimStep.KEPT else (lambda: True)
        if step in _WITH_LIGHT:
            before_s = now_s - stale_after_s if step is ReclaimStep.STALE else math.inf
            self._evict_light("finished", is_short, tally, most, before_s)
            most -= tally.runs
        planned = eviction.plan(step, self._candidates(step), now_s, stale_after_s, most)
        victims = self._still_due(step, planned, stale_after_s, order.reason)
        for _ in range(0, most, BITE):
            if self._evict(victims, is_short, tally, BITE) < BITE:
                break
            await asyncio.sleep(0)
        self._registry.swept.report()

    async def _trim_heap(self, tally: _Tally) -> None:
        """Drop caches and idle connections, then give the free pages back, off the loop."""
        heap, before = self.heap, self.heap.resident_bytes()
        tally.promised_bytes = await self._loop.run_in_executor(None, heap.free_bytes)
        self._drop_caches()
        await self._loop.run_in_executor(None, heap.trim)
        tally.freed_bytes = max(0, before - heap.resident_bytes())

    def _candidates(self, step: ReclaimStep) -> list[Candidate]:
        """Gather the runs that a step may take something from."""
        active, finished = self._registry.active(), self._registry.finished(MOST_CANDIDATES)
        unread = (relay for relay in active if not relay.subscribers)
        relays: Iterable[Relay] = ()
        match step:
            case ReclaimStep.FINISHED:
                relays = finished
            case ReclaimStep.KEPT | ReclaimStep.STALE:
                # A stuck run that has readers is the sweep's.
                relays = chain(finished, unread)
            case ReclaimStep.STALLED:
                relays = (relay for relay in chain(finished, active) if relay.subscribers)
            case ReclaimStep.BACKGROUND:
                relays = unread
            case ReclaimStep.WINDOWS:
                relays = active
        now_s = self._loop.time()
        return [as_candidate(relay, now_s) for relay in relays]

    # --- one after the other ------------------------------------------------------------------

    def _evict(
        self, victims: Iterator[Victim], is_short: Callable[[], bool], tally: _Tally, most: int
    ) -> int:
        """Evict at most `most` victims while memory is short; returns how many it were."""
        for evicted in range(most):
            victim = next(victims, None) if is_short() else None
            if victim is None:
                return evicted
            tally.runs += 1
            tally.promised_bytes += victim.promised_bytes
            tally.freed_bytes += self.evict(victim)
        return most

    def evict(self, victim: Victim) -> int:
        """Release the run, or shrink its window; returns the bytes that are free now."""
        registry, before = self._registry, self._ledger.total_bytes
        relay = registry.find(victim.id, None)
        if relay is None:
            return 0
        if victim.act is Eviction.RELEASE:
            registry.swept.last = f"run {victim.id} {victim.reason}"
            registry.release(relay, RetentionVerdict(victim.kind, victim.reason))
            return before - self._ledger.total_bytes
        relay.run.transcript.shrink(victim.keep_bytes)
        freed_bytes = before - self._ledger.total_bytes
        registry.swept.by_kind[victim.kind] += freed_bytes
        return freed_bytes

    def _still_due(
        self, step: ReclaimStep, planned: Iterable[Victim], stale_after_s: float, where: str
    ) -> Iterator[Victim]:
        """Look again at each when its turn comes: a reader may have come, or have read meanwhile.

        `where` ends the reason: "memory level 3".
        """
        for each in planned:
            relay = self._registry.find(each.id, None)
            if relay is None:
                continue
            now_s = self._loop.time()
            candidate = as_candidate(relay, now_s)
            for victim in eviction.plan(step, [candidate], now_s, stale_after_s, 1):
                yield victim._replace(reason=f"{victim.reason}, {where}")

    # --- at the ledger's limit ----------------------------------------------------------------

    def reclaim(self) -> None:
        """Make room when the ledger is tight, or its intake full: what harms no reader first.

        What clients can send again, finished windows, heads that are arriving, idle connections,
        then what readers have behind them, and slow readers' upstreams wait.
        What is kept of live runs that have no reader shrinks to a fair share. When it is full all
        the same nothing is kept of those: they go on, and a later reader is told what is gone.
        Then go runs whose readers read nothing, those whose readers lag most, and last finished
        ones with readers who do; all of them are told.
        """
        self._sockets.reclaim(self._loop.time())
        if self._is_reclaiming:
            return  # a run that goes charges its last words
        self._is_reclaiming = True
        try:
            self._reclaim()
        finally:
            self._is_reclaiming = False

    def _reclaim(self) -> None:
        started_s, before, went = time.perf_counter(), self._ledger.total_bytes, _Tally()
        if self._ledger.is_tight:
            self._evict_light("memory", lambda: self._ledger.has_much, went)
            unread = self._registry.unread(MOST_PER_TICK)
            self._evict_finished(unread, lambda: self._ledger.has_much, went)
        self._make_room(lambda: self._ledger.is_tight or self._ledger.is_intake_full)
        if self._ledger.is_tight and not self.has_backpressure:
            log.warning("the ledger is tight: windows shrink, and slow readers' upstreams wait")
            self._set_backpressure(on=True)
        if self._ledger.is_full:
            self._evict_read(went)
        self._registry.swept.report()
        if freed_bytes := before - self._ledger.total_bytes:
            taken = self._at_limit
            taken.runs += went.runs
            taken.promised_bytes += freed_bytes
            taken.freed_bytes += freed_bytes
            taken.took_s += time.perf_counter() - started_s

    def _evict_read(self, went: _Tally) -> None:
        """Take from runs that are live or being read, because the next charge would fail."""
        for relay in self._registry.active():
            if not relay.subscribers:
                relay.run.transcript.shrink(0)
        limit_bytes = self._ledger.limit_bytes
        is_above = partial(self._cut_leaving, limit_bytes)
        self._evict(self._stalled_victims(), is_above, went, MOST_PER_TICK)
        if self._ledger.is_full:  # all are looked at, so a little more goes than is needed just now
            is_above = partial(self._cut_leaving, limit_bytes - limit_bytes // 16)
            self._evict(self._lagging_victims(), is_above, went, MOST_PER_TICK)
        if self._ledger.is_full:
            finished = self._registry.finished(MOST_PER_TICK)
            self._evict_finished(finished, lambda: self._ledger.is_full, went)

    def _evict_light(
        self,
        kind: str,
        is_short: Callable[[], bool],
        tally: _Tally,
        most: int = MOST_PER_TICK,
        before_s: float = math.inf,
    ) -> None:
        """Evict light answers that are kept, the oldest first: their clients have had them."""
        for _ in range(most):
            oldest = self._registry.light.oldest(before_s) if is_short() else None
            if oldest is None:
                return
            freed_bytes = self._registry.release_light(oldest, kind)
            tally.runs += 1
            tally.promised_bytes += freed_bytes
            tally.freed_bytes += freed_bytes

    def _evict_finished(
        self, relays: list[Relay], is_short: Callable[[], bool], went: _Tally
    ) -> None:
        """Evict answers that are over, the oldest first."""
        before = went.freed_bytes
        victims = (
            Victim(
                run.id, Eviction.RELEASE, "memory", f"swept: {AT_LIMIT}", run.account.total_bytes
            )
            for run in (relay.run for relay in relays)
        )
        if runs := self._evict(victims, is_short, went, MOST_PER_TICK):
            freed = f"{count(runs, 'run')}, {went.freed_bytes - before} bytes (memory {runs})"
            self._registry.swept.last = f"finished runs, for memory: {freed}"

    def _stalled_victims(self) -> Iterator[Victim]:
        """Find runs whose readers read nothing, longest first; they go before lagging ones."""
        now_s = self._loop.time()
        if now_s >= self._look_stalled_s:
            self._look_stalled_s = now_s + LOOK_STALLED_S
            found = self._candidates(ReclaimStep.STALLED)
            planned = eviction.plan(ReclaimStep.STALLED, found, now_s, STALLED_S, MOST_PER_TICK)
            self._stalled = iter(planned)
        yield from self._still_due(ReclaimStep.STALLED, self._stalled, STALLED_S, AT_LIMIT)

    def _lagging_victims(self) -> Iterator[Victim]:
        """Find what is held for readers who lag, the most first; it goes after stalled runs.

        Else the run that grows next would have to fail, and its reader keeps up.
        """
        relays = chain(self._registry.active(), self._registry.finished())
        lags = ((relay.lag_bytes, relay.run.id) for relay in relays)
        for lag_bytes, run_id in nlargest(MOST_PER_TICK, lags):
            if not lag_bytes:
                return
            words = f"swept: its readers lag by {lag_bytes // 1024} KiB, {AT_LIMIT}"
            yield Victim(run_id, Eviction.RELEASE, "lagging", words, lag_bytes)

    def _cut_leaving(self, enough_bytes: int) -> bool:
        """Cut readers of released runs, the oldest first; returns whether too much is still held.

        They have `close_flush_s` for their last words. Of 300 that read nothing those were two
        thirds of the ledger, and what was charged next failed: an answer whose reader keeps up.
        """
        leaving = self._registry.leaving
        while leaving and self._ledger.total_bytes > enough_bytes:
            leaving.popitem(last=False)[0].cut_readers()
        return self._ledger.total_bytes > enough_bytes

    # --- how runs go on meanwhile -------------------------------------------------------------

    def shrink_buffers(self, *, half: bool) -> None:
        """Make windows and watermarks half as large, or whole again."""
        if half == self._buffers_are_halved:
            return
        self._buffers_are_halved = half
        for relay in self._registry.active():
            relay.shrink_buffers(half=half)

    def _set_backpressure(self, *, on: bool) -> None:
        self.has_backpressure = on
        spare_bytes = self._fair_bytes()
        for relay in self._registry.active():
            relay.set_backpressure(on=on, spare_bytes=spare_bytes)
        if on:
            self._registry.tick_by(self._loop.time() + AGAIN_S)

    def _on_add(self, relay: Relay) -> None:
        """Let a run that begins go on like those that are there."""
        if self._buffers_are_halved:
            relay.shrink_buffers(half=True)
        if self.has_backpressure:
            relay.set_backpressure(on=True, spare_bytes=self._fair_bytes())

    def _on_tick(self, now_s: float) -> None:
        if not self.has_backpressure:
            return
        if self._ledger.is_tight:
            self._registry.tick_by(now_s + AGAIN_S)
        else:
            self._set_backpressure(on=False)

    def _fair_bytes(self) -> int:
        """Share half the limit: what a run without readers may keep while the ledger is tight."""
        runs = max(1, self._registry.active_count)
        return max(SEGMENT_BYTES, self._ledger.limit_bytes // 2 // runs)


def as_candidate(relay: Relay, now_s: float) -> Candidate:
    """Gather what eviction has to know of a run."""
    run = relay.run
    return Candidate(
        id=run.id,
        is_over=run.is_over,
        delivered=run.delivered,
        readers=len(relay.subscribers),
        stalled_s=min((each.stalled_s(now_s) for each in relay.subscribers), default=0.0),
        ended_s=run.ended_s,
        abandoned_s=run.abandoned_s,
        keep_running=run.request.keep_running,
        stuck_s=run.created_s + run.limits.total_s + run.limits.grace_s,
        held_bytes=run.account.total_bytes - run.account.entries[Entry.OUTBOUND],
        window_bytes=run.window.held_bytes,
        needed_bytes=relay.needed_bytes,
    )
