"""The watchdog's view of everything: the status for people, the state updates for the workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from tidegate import __version__
from tidegate.core.fleet.lifecycle import GenerationState
from tidegate.core.problems import Repair
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.status import (
    GuardState,
    LogState,
    ReceiverState,
    RunCounts,
    Status,
    SweptState,
    WatchdogState,
    WorkerState,
)
from tidegate.core.settings import MIB
from tidegate.logs import handler
from tidegate.managers.launchd import activation
from tidegate.managers.systemd import notify
from tidegate.watchdog.control import status
from tidegate.watchdog.guard.chronicle import Chronicle
from tidegate.watchdog.guard.monitor import MemoryMonitor
from tidegate.watchdog.guard.samples import Samples
from tidegate.watchdog.listeners import Listeners
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import WorkerHandle

LEAST_LEDGER_BYTES = 4 * MIB  # a new generation can always begin, however full the former one is


def _manager() -> str | None:
    """Name the service manager that started this process, if one did."""
    if notify.is_service():
        return "systemd"
    return "launchd" if activation.is_job() else None


class Overview(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Describe the parts and change none."""

    generations: Generations
    listeners: Listeners
    memory: MemoryMonitor
    totals: status.Totals
    samples: Samples
    chronicle: Chronicle
    repairs: Callable[[], list[Repair]]
    receivers: Callable[[], list[ReceiverState]] = list
    started_s: float = msgspec.field(default_factory=time.monotonic)
    manager: str | None = msgspec.field(default_factory=_manager)
    log: LogState = msgspec.field(default_factory=handler.state)

    def now(self, parked: str | None, guard: GuardState) -> Status:
        """Make the status as `tidegate status --json` shows it. `parked` says why it is parked."""
        now_s = time.monotonic()
        serving = self.generations.serving
        workers = [self._worker_state(worker, now_s) for worker in self.generations]
        number = serving.number if serving else None
        beats = [w.beat for w in reversed(list(self.generations)) if w.beat is not None]
        upstreams = status.merge_upstreams([beat.upstreams for beat in beats])
        restarts = self.totals.restarts
        memory = self.memory.state()
        troubles = status.troubles(
            shedding=memory.shedding,
            refused=memory.refused,
            upstreams=upstreams,
            last_restart=restarts[-1] if restarts else None,
            now=time.time(),
        )
        state = status.name_state(
            self.generations.fleet, parked=parked is not None, troubled=bool(troubles)
        )
        return Status(
            state=state,
            version=__version__,
            uptime_s=now_s - self.started_s,
            generation=number,
            listen=self.listeners.addresses,
            workers=workers,
            worker=next((w for w in workers if w.generation == number), None),
            watchdog=WatchdogState(
                pid=os.getpid(),
                rss_bytes=self.memory.rss_bytes(os.getpid()) or 0,
                log=self.log,
            ),
            memory=memory,
            runs=RunCounts(
                active=sum(beat.runs_active for beat in beats),
                finished=sum(beat.runs_finished for beat in beats),
                total=self.totals.runs,
            ),
            swept=SweptState(
                runs=self.totals.swept_runs,
                bytes=self.totals.swept_bytes,
                last_reason=self.totals.swept_last_reason,
            ),
            recycles=sum(self.totals.recycles.values()),
            restarts=restarts,
            upstreams=upstreams,
            guard=guard,
            repairs=self.repairs(),
            reason=parked or (troubles[0] if state == "degraded" else None),
            manager=self.manager,
            journal=next((b.journal for b in beats if b.journal and not parked), None),
            history=next((b.history for b in beats if b.history and not parked), None),
            notify=self.receivers(),
            flat_s=self._flat_s(now_s - self.started_s),
        )

    def state_update(self, number: int, seen: Status) -> msg.StateUpdate:
        """Make what generation `number` needs to know of what was `seen`, and of the other one."""
        peer = self.generations.peer(number)
        return msg.StateUpdate(
            level=seen.memory.level,
            ledger_limit_bytes=_share(self.memory.ledger_limit_bytes, peer),
            squeeze=self.memory.shrinks_buffers,
            shed=seen.memory.shedding,
            recycles=self.totals.recycles,
            guard=self.memory.figures(seen),
            repairs=seen.repairs,
            peer_socket=str(peer.socket_path) if peer else None,
            peer_active=_active(peer),
        )

    def news(self, since: float, seen: Status) -> msg.News:
        """Make what a page shows of what was `seen`, and of what is newer than `since`."""
        return msg.News(
            state=seen.state,
            reason=seen.reason,
            memory=seen.memory,
            flat_s=seen.flat_s,
            listen=seen.listen,
            points=self.samples.points(since),
            deeds=self.chronicle.deeds(since),
        )

    def first_ledger_limit_bytes(self, number: int) -> int:
        """Return what generation `number` may hold until its first update; 0 is no limit."""
        return _share(self.memory.first_ledger_limit_bytes, self.generations.peer(number))

    def _flat_s(self, uptime_s: float) -> float:
        grew = self.chronicle.last("growth")
        return uptime_s if grew is None else min(uptime_s, time.time() - grew)

    def _worker_state(self, worker: WorkerHandle, now_s: float) -> WorkerState:
        generation = self.generations.fleet.by_number(worker.number)
        state = generation.state if generation else GenerationState.GONE
        return WorkerState(
            pid=worker.pid,
            generation=worker.number,
            state=state.value,
            rss_bytes=self.memory.rss_bytes(worker.pid) or 0,
            loop_lag_ms=worker.beat.loop_lag_ms if worker.beat else 0.0,
            heartbeat_age_s=now_s - generation.beat_s if generation else 0.0,
        )


def _share(limit_bytes: int, peer: WorkerHandle | None) -> int:
    """Return what the other generation leaves of a limit for all ledgers; 0 stays no limit."""
    if not limit_bytes or peer is None or peer.beat is None:
        return limit_bytes
    return max(LEAST_LEDGER_BYTES, limit_bytes - peer.beat.ledger_bytes)


def _active(peer: WorkerHandle | None) -> dict[str, int]:
    """Count the requests that the other generation had on each upstream when it last beat."""
    if peer is None or peer.beat is None:
        return {}
    return {upstream.name: upstream.active for upstream in peer.beat.upstreams if upstream.active}
