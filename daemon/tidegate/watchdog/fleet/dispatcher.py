"""What workers say, and that they end, passed to the parts that it concerns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.core.fleet import events
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.status import Status
from tidegate.core.settings import MIB
from tidegate.watchdog.control.commands import Commands
from tidegate.watchdog.control.status import Totals
from tidegate.watchdog.faults import Faults
from tidegate.watchdog.guard.evidence import Evidence
from tidegate.watchdog.guard.guard import MemoryGuard
from tidegate.watchdog.guard.monitor import MemoryMonitor
from tidegate.watchdog.listeners import Listeners
from tidegate.watchdog.readiness import Readiness
from tidegate.watchdog.reload import Reloader
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import WorkerHandle

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dispatcher:
    """Pass on each message of a worker, and its exit. `do` is the supervisor's."""

    generations: Generations
    reloader: Reloader
    commands: Commands
    memory_guard: MemoryGuard
    memory: MemoryMonitor
    evidence: Evidence
    readiness: Readiness
    listeners: Listeners
    totals: Totals
    faults: Faults
    status: Callable[[], Status]
    news: Callable[[float], msg.News]
    do: Callable[[events.Event], object]

    def on_message(self, worker: WorkerHandle, message: msg.FromWorker) -> None:
        """Pass on one message."""
        match message:
            case msg.Heartbeat():
                self.do(events.Beat(worker.number))
                former, worker.beat = worker.beat, message
                self.totals.add_beat(former, message)
                self.memory_guard.on_heartbeat(worker, former, message)
                if worker is self.generations.serving:
                    self.memory.on_heartbeat(worker, message, time.monotonic())
                if message.request:
                    self.commands.on_heartbeat(worker.number, message.request)
            case msg.Ready():
                if not self.faults.attempt(
                    "a new worker", lambda: self._became_ready(worker, message)
                ):
                    why = "that it is ready was lost, by a fault of tidegate's own"
                    self.do(events.Fail(worker.number, why))  # it says so only once
            case msg.Configured(request=request, error=error):
                self.reloader.confirmed(worker, request, error)
            case msg.Swept() | msg.RunList() | msg.ModelList() | msg.UsageList() | msg.Forgotten():
                self.commands.on_answer(worker.number, message)
            case msg.Reclaimed():
                self.memory_guard.on_reclaimed(worker, message)
            case msg.Inspected():
                self.evidence.on_inspected(worker, message)
            case msg.AskNews(since=since):
                if not worker.channel.unsent_bytes:
                    self.generations.send(worker, self.news(since))
            case msg.ConfigChanged():
                self.reloader.look_again()
            case msg.Draining():
                worker.accepts = False
            case msg.Failed(reason=reason):
                _log.error("worker %d cannot go on: %s", worker.number, reason)
                worker.failure = reason

    def _became_ready(self, worker: WorkerHandle, ready: msg.Ready) -> None:
        if ready.protocol != msg.PROTOCOL:
            reason = f"it speaks protocol {ready.protocol}, we speak {msg.PROTOCOL}"
            self.do(events.Fail(worker.number, reason))
            return
        attempt = self.faults.attempt
        attempt("measuring a worker", lambda: self._measure_new(worker, ready))
        _log.info("worker %d is ready, %d MiB", worker.number, (worker.base_bytes or 0) // MIB)
        self.do(events.BecameReady(worker.number))
        attempt("a reload", lambda: self.reloader.became_ready(worker))
        attempt("the announcement", lambda: self._announce(worker, ready))

    def _measure_new(self, worker: WorkerHandle, ready: msg.Ready) -> None:
        worker.ready_s = time.monotonic()
        worker.beats_when_asked = ready.beats_when_asked
        worker.remembers = ready.remembers
        self.memory.read(self.generations)
        worker.base_bytes = self.memory.rss_bytes(worker.pid)

    def _announce(self, worker: WorkerHandle, ready: msg.Ready) -> None:
        """Tell the service manager and the terminal that tidegate serves, once."""
        if worker.config.parked is None and not self.generations.fleet.stopping:
            self.readiness.serving(ready, self.listeners.addresses, self.status())

    def reap(self) -> None:
        """See which processes are gone, and which sockets no worker accepts from any more."""
        for worker in self.generations.gone():
            number = worker.number
            self._notify(lambda: self.reloader.worker_gone(worker))  # noqa: B023  (called now)
            self._notify(lambda: self.memory_guard.worker_gone(number))  # noqa: B023
            self._notify(lambda: self.evidence.worker_gone(number))  # noqa: B023
            self.do(events.Exited(number, worker.how_it_ended()))
            self.generations.forget(worker)
            self._notify(lambda: self.commands.worker_gone(number))  # noqa: B023
        if not self.generations.former_accepts():
            self.listeners.close_retired()

    def _notify(self, call: Callable[[], object]) -> None:
        self.faults.attempt("telling of a worker's exit", call)
