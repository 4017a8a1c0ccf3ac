"""Runs that are no longer held: found in the journal, listed, forgotten.

One that is over becomes a run of the registry again, which every handler then serves as it serves
any other; it is held for a minute unless it is read. One that another worker is giving is left to
that one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from itertools import chain

import msgspec

from tidegate.core.errors import LedgerFull
from tidegate.core.records.history import RunRow
from tidegate.core.records.journal import JournaledRun
from tidegate.core.records.usage import UsageLine
from tidegate.core.runs.run import Run
from tidegate.core.runs.summary import RunSummary
from tidegate.core.settings import Model
from tidegate.gateway.records.recorder import Recorder
from tidegate.gateway.relay.handover import revive
from tidegate.gateway.relay.registry import MOST_PER_TICK, Registry
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.stores.journal_values import DIED, FoundRun
from tidegate.gateway.stores.stores import Stores
from tidegate.gateway.upstreams.pool import MAX_NAME_NOTED

log = logging.getLogger("tidegate.registry")

HELD_S = 60.0  # what was brought back; it can be brought back again


class Recall:
    """Asks the stores for what the registry does not hold."""

    def __init__(
        self,
        registry: Registry,
        recorder: Recorder,
        stores: Stores,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._registry = registry
        self._recorder = recorder
        self._stores = stores
        self._loop = loop

    async def bring_run(self, run_id: str, owner: str | None) -> bool:
        """Have the registry hold the run again; False where it is not ours to give.

        Raises StoreUnavailable, and LedgerFull where there is no room for it.
        """
        if not self._stores.keeps_runs:
            return False
        self._recorder.flush()
        return self._hold(await self._stores.find(run_id, owner))

    async def bring_response(self, response_id: str, owner: str) -> bool:
        """Have the registry hold the run of a response again, as `bring_run` does."""
        if not self._stores.keeps_runs:
            return False
        self._recorder.flush()
        return self._hold(await self._stores.find_response(response_id, owner))

    def _hold(self, found: FoundRun | None) -> bool:
        if found is None or found.is_alive:
            return False
        registry = self._registry
        account = registry.ledger.open()
        limits, now_s = registry.limits(), self._loop.time()
        held_s = min(HELD_S, limits.keep_finished_s)
        try:
            run = revive(
                found.run,
                found.events,
                account,
                msgspec.structs.replace(limits, keep_finished_s=held_s),
                began_s=now_s,  # its readers have as long as those of a new one
                ended_s=now_s,
            )
        except LedgerFull:
            account.close()
            raise
        except ValueError as error:
            account.close()
            log.error("run %s cannot be read back from the journal: %s", found.run.id, error)
            return False
        self._complete(run)
        registry.adopt(Relay(registry, run, [], self._loop))
        return True

    @staticmethod
    def _complete(run: Run) -> None:
        """Tell the time that it took; and where its worker died, why there is no more of it."""
        if run.attempts and run.ended is not None:
            run.attempt.started_s -= max(0.0, run.ended - run.created)
        if run.error_code == DIED and run.request.streamed:
            run.transcript.append_ours(run.error_events())

    # --- listings -------------------------------------------------------------------------------

    async def listed(self, owner: str | None, limit: int) -> list[RunSummary]:
        """List what the journal keeps, newest first. Raises StoreUnavailable."""
        if not self._stores.keeps_runs:
            return []
        self._recorder.flush()
        return [_of_journal(run) for run in await self._stores.list_runs(owner, limit)]

    async def listed_whole(self, limit: int) -> list[RunSummary]:
        """List all that is known, of every owner, newest first. Raises StoreUnavailable."""
        self._recorder.flush()
        kept = await self.listed(None, limit)
        rows = await self._stores.list_rows(None, limit) if self._stores.keeps_rows else []
        held = self._registry.newest(None, limit)
        found: dict[str, RunSummary] = {}
        for summary in chain(held, kept, map(_of_history, rows)):
            found.setdefault(summary.id, summary)
        return sorted(found.values(), key=lambda run: run.created, reverse=True)[:limit]

    async def usage(
        self, by: str, since: float, owner: str | None, models: Iterable[Model]
    ) -> list[UsageLine]:
        """Sum up what was used since then (Unix seconds), by one of `GROUPS`, at today's prices.

        Raises StoreUnavailable.
        """
        prices = {model.name: model.price for model in models}
        self._recorder.flush()
        return await self._stores.usage(by, since, owner, prices)

    # --- forgetting -----------------------------------------------------------------------------

    async def forget(self, run_id: str, owner: str | None) -> None:
        """Have the journal forget a run that is no longer held. Raises StoreUnavailable.

        The history's row stays.
        """
        if self._stores.keeps_runs:
            self._recorder.forget(run_id)
            await self._stores.forget(run_id, owner, rows=False)

    async def forget_whole(self, run_id: str | None) -> int:
        """Forget a run, or all that are over: in memory, journal and history; returns how many.

        Raises StoreUnavailable.
        """
        registry = self._registry
        gone = 0
        for relay in [registry.find(run_id, None)] if run_id else registry.each_finished():
            if relay is not None:
                registry.discard(relay, "forgotten")
                gone += 1
                if gone % MOST_PER_TICK == 0:
                    await asyncio.sleep(0)  # streams go on in between
        self._recorder.forget(run_id)
        return max(gone, await self._stores.forget(run_id, None, rows=True))


def _of_journal(run: JournaledRun) -> RunSummary:
    return RunSummary(
        id=run.id,
        state=run.state,
        reason=run.reason,
        model=run.model[:MAX_NAME_NOTED],
        upstream=run.upstreams[-1] if run.upstreams else None,
        attempts=len(run.upstreams),
        created=run.created,
        ended=run.ended,
        first_seq=run.first_seq,
        next_seq=run.next_seq,
        bytes=0,
        subscribers=0,
        place="journal",
        token=run.token or None,
    )


def _of_history(row: RunRow) -> RunSummary:
    return RunSummary(
        id=row.id,
        state=row.outcome,
        reason=row.code or None,
        model=row.asked[:MAX_NAME_NOTED],
        upstream=row.upstream or None,
        attempts=row.attempts,
        created=row.began,
        ended=row.ended,
        first_seq=0,
        next_seq=0,
        bytes=0,
        subscribers=0,
        place="history",
        token=row.token or None,
    )
