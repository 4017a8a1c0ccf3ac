"""Steps of relief, carried out: plan, look again, then evict, in bites.

The watchdog orders them on every tick while memory is short, and is told what each one freed. At
most `order.most` runs lose something in one order, and between two bites the event loop turns, so
that streams go on. What is freed is measured around each victim, where nobody else charges.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from tidegate.core.memory.report import StepReport
from tidegate.core.protocol.worker import Relieve
from tidegate.core.runs import eviction
from tidegate.core.runs.eviction import Step, Victim
from tidegate.gateway.relay.registry import Registry

log = logging.getLogger("tidegate.relief")

# With these go heads that are arriving, and connections between two requests.
_WITH_CONNECTIONS = frozenset({Step.TIDY, Step.STALE})
BITE = 10  # victims between two turns of the loop; each costs some 10 us and its readers' goodbye


class Relief:
    """Gives memory back when the watchdog says so. `take` one order at a time."""

    def __init__(
        self,
        registry: Registry,
        *,
        resident_bytes: Callable[[], int],
        trim: Callable[[], None],
        free_bytes: Callable[[], int],
        tidy: Callable[[], None],
    ) -> None:
        """`free_bytes` tells what the allocator could give back at most; `tidy` drops caches."""
        self.freed_bytes: Counter[str] = Counter()  # by step, since the start
        self.seconds: dict[str, float] = {}
        self._registry = registry
        self._resident_bytes = resident_bytes
        self._trim = trim
        self._free_bytes = free_bytes
        self._tidy = tidy
        self._loop = asyncio.get_running_loop()

    async def take(self, order: Relieve) -> list[StepReport]:
        """Every step of the order; what each one promised and freed."""
        reports = []
        left = order.most
        for name in order.steps:
            started_s = time.perf_counter()
            try:
                runs, promised, freed = await self._take(name, order, left)
            except Exception:  # the other steps, and what they freed, are told all the same
                log.exception("step %s of relief failed", name)
                continue
            left -= runs
            took_s = time.perf_counter() - started_s
            self.freed_bytes[name] += freed
            self.seconds[name] = self.seconds.get(name, 0.0) + took_s
            reports.append(
                StepReport(
                    step=name, runs=runs, promised_bytes=promised, freed_bytes=freed, took_s=took_s
                )
            )
        return reports

    async def _take(self, name: str, order: Relieve, most: int) -> tuple[int, int, int]:
        step = Step(name)
        if step in _WITH_CONNECTIONS:
            self._registry.make_room(lambda: True)
        return await (self._take_tidy() if step is Step.TIDY else self._evict(step, order, most))

    async def _take_tidy(self) -> tuple[int, int, int]:
        """Caches and idle connections go, then the free pages, off the loop."""
        before = self._resident_bytes()
        promised = await self._loop.run_in_executor(None, self._free_bytes)
        self._tidy()
        await self._loop.run_in_executor(None, self._trim)
        return 0, promised, max(0, before - self._resident_bytes())

    async def _evict(self, step: Step, order: Relieve, most: int) -> tuple[int, int, int]:
        registry = self._registry
        runs = promised = freed = 0
        candidates = registry.candidates(step)
        victims = eviction.plan(step, candidates, self._loop.time(), order.stale_after_s, most)
        for n, victim in enumerate(victims):
            if n and not n % BITE:
                await asyncio.sleep(0)
            if step is Step.KEPT and not registry.ledger.has_much:
                break
            now_due = victim if n < BITE else self._look_again(step, victim.id, order)
            if now_due is not None:
                runs += 1
                promised += now_due.promised_bytes
                freed += registry.evict(now_due, order.reason)
        registry.report()
        return runs, promised, freed

    def _look_again(self, step: Step, run_id: str, order: Relieve) -> Victim | None:
        """What is due now: since the plan was made somebody may have come for it, or for a part."""
        candidate = self._registry.candidate(run_id)
        if candidate is None:
            return None
        now_s = self._loop.time()
        return next(iter(eviction.plan(step, [candidate], now_s, order.stale_after_s, 1)), None)
