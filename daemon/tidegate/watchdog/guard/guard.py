"""The memory guard at work: a sample's journey from its reading to what is done about it.

    read (`machine`) -> decide (`core.memory.policy`) -> tell the workers -> reclaim, recycle, kill
    -> what each step freed comes back, and is an input of the next decision

Once a second, and never waiting: evidence is gathered while the loop turns, and a worker that
does not answer is not asked again before its time is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from tidegate.core.fleet import events
from tidegate.core.memory.decision import Decision
from tidegate.core.memory.report import StepReport
from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.status import GuardState
from tidegate.core.settings import MIB
from tidegate.core.text import count
from tidegate.logs.pace import Pace
from tidegate.watchdog.guard.chronicle import SWEPT, Chronicle
from tidegate.watchdog.guard.decision_log import DecisionLog
from tidegate.watchdog.guard.evidence import Evidence
from tidegate.watchdog.guard.monitor import MemoryMonitor
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import WorkerHandle

RECLAIM_LIMIT_S = 10.0  # an answer that takes longer is not waited for
WORST_KEPT_S = 3600.0
_log = logging.getLogger(__name__)


class Freed(msgspec.Struct, kw_only=True):
    """What one step freed of one worker since that was last logged."""

    pace: Pace = msgspec.field(default_factory=Pace)
    times: int = 0
    runs: int = 0
    promised_bytes: int = 0
    freed_bytes: int = 0
    took_s: float = 0.0

    def __str__(self) -> str:
        often = f", {self.times} times" if self.times > 1 else ""
        return (
            f"freed {self.freed_bytes} of {self.promised_bytes} bytes promised, "
            f"{count(self.runs, 'run')}, in {1000 * self.took_s:.0f} ms{often}"
        )


class MemoryGuard:
    """Carry out what was decided. `tick` it once a second."""

    def __init__(
        self,
        *,
        memory: MemoryMonitor,
        generations: Generations,
        evidence: Evidence,
        decisions: DecisionLog,
        chronicle: Chronicle,
        send_state: Callable[[], None],
        do: Callable[[events.Event], list[events.Effect]],
    ) -> None:
        self._memory = memory
        self._generations = generations
        self._evidence = evidence
        self._decisions = decisions
        self._chronicle = chronicle
        self._send_state = send_state
        self._do = do
        self._awaited: dict[int, tuple[int, float]] = {}  # by generation: request, deadline
        self._request = 0
        self._ticks = 0
        self._delay_s = self._cost_s = 0.0
        self._worst_s, self._worst_at_s = 0.0, 0.0
        self._freed: dict[tuple[int, str], Freed] = {}  # by generation and step

    def __repr__(self) -> str:
        return f"<MemoryGuard {self._memory!r} awaits={sorted(self._awaited)}>"

    def tick(self, now_s: float, delay_s: float) -> None:
        """Look, decide, tell, act. `delay_s` tells how late this tick is."""
        started_s = time.perf_counter()
        self._note_tick(now_s, delay_s)
        self._log_freed(now_s)
        inputs = self._memory.look(
            self._generations,
            now_s,
            reclaiming=self._is_reclaiming(now_s),
            evidence_pending=self._evidence.is_pending,
        )
        if inputs is None:
            self._send_state()  # of the level that was
            return
        former = self._memory.level
        before, decision = self._memory.decide(inputs)
        self._note(former, decision)
        self._evidence.sampled(inputs, decision)
        self._decisions.note(time.time(), before, inputs, decision)
        self._send_state()
        if decision.evidence:
            self._evidence.gather("guard", decision.evidence)
        if self._memory.enforces:
            self._act(decision, now_s)
        self._cost_s = time.perf_counter() - started_s

    def _note(self, former: int, decision: Decision) -> None:
        """Note for the page what is new."""
        if decision.alarm:
            self._chronicle.note("growth", decision.alarm)
        if decision.level != former:
            text = f"memory level {decision.level}, was {former}"
            self._chronicle.note("level", text + (": " + decision.shed if decision.shed else ""))

    def _act(self, decision: Decision, now_s: float) -> None:
        if decision.steps:
            self._reclaim(decision, now_s)
        if decision.recycle:
            self._recycle(decision)
        if decision.cut:
            self._kill()
        if decision.give_up:
            self._do(events.Escalate(decision.give_up))

    def _reclaim(self, decision: Decision, now_s: float) -> None:
        """Order the steps on every tick while the level holds, once the last order is answered."""
        for worker in self._generations.ready():
            if worker.channel.unsent_bytes:
                continue
            self._request += 1
            self._awaited[worker.number] = (self._request, now_s + RECLAIM_LIMIT_S)
            order = msg.Reclaim(
                request=self._request,
                steps=[step.value for step in decision.steps if _knows(worker, step)],
                stale_after_s=decision.stale_after_s,
                reason=f"memory level {decision.level}",
            )
            self._generations.send(worker, order)

    def on_reclaimed(self, worker: WorkerHandle, answer: msg.Reclaimed) -> None:
        """Log and count what each step freed; the next decision judges it."""
        request, _ = self._awaited.get(worker.number, (0, 0.0))
        if request == answer.request:
            del self._awaited[worker.number]
        self._add_reports(worker, answer.steps)

    def on_heartbeat(
        self, worker: WorkerHandle, before: msg.Heartbeat | None, beat: msg.Heartbeat
    ) -> None:
        """Count what the ledger's own limit took since the heartbeat `before` as a step too."""
        former = before.at_limit if before else None
        if beat.at_limit is None or not beat.at_limit.freed_bytes:
            return
        if report := _since(former, beat.at_limit):
            self._add_reports(worker, [report])

    def _add_reports(self, worker: WorkerHandle, reports: list[StepReport]) -> None:
        self._memory.add_reports(reports)
        now_s = time.monotonic()
        for report in reports:
            if report.runs or report.freed_bytes >= MIB:
                freed = self._freed.setdefault((worker.number, report.step), Freed())
                freed.times += 1
                freed.runs += report.runs
                freed.promised_bytes += report.promised_bytes
                freed.freed_bytes += report.freed_bytes
                freed.took_s += report.took_s
                freed.pace.grew(now_s)
        self._log_freed(now_s)

    def _log_freed(self, now_s: float, *, at_once: bool = False) -> None:
        for (number, step), freed in self._freed.items():
            if freed.times and (at_once or now_s >= freed.pace.due_s):
                _log.info("worker %d: step %s %s", number, step, freed)
                if step in SWEPT:
                    what = f"swept {freed.runs} {SWEPT[step]}, {_mib(freed.freed_bytes)} back"
                    self._chronicle.note("sweep", what)
                freed.pace.logged(now_s)
                self._freed[number, step] = Freed(pace=freed.pace)

    def close(self) -> None:
        """Have what was decided and done last written down."""
        self._log_freed(time.monotonic(), at_once=True)
        self._decisions.close()

    def worker_gone(self, number: int) -> None:
        """Note that generation `number` will answer no more."""
        self._awaited.pop(number, None)
        self._log_freed(time.monotonic(), at_once=True)
        self._freed = {key: freed for key, freed in self._freed.items() if key[0] != number}

    def _is_reclaiming(self, now_s: float) -> bool:
        self._awaited = {n: each for n, each in self._awaited.items() if each[1] > now_s}
        return bool(self._awaited)

    def _recycle(self, decision: Decision) -> None:
        assert decision.recycle is not None
        _log.warning(
            "recycling (%s): %d MiB that no run explains",
            decision.recycle,
            decision.unexplained_bytes // MIB,
        )
        effects = self._do(events.Recycle(decision.recycle, planned=True))
        for refused in (e.error for e in effects if isinstance(e, events.Refuse)):
            _log.warning("no recycle after all: %s", refused)

    def _kill(self) -> None:
        """Kill the draining generation, or else the serving one, as the last resort.

        While one is already being ended its memory still counts, and another must not pay for it.
        """
        if any(worker.condemned for worker in self._generations):
            return
        victim = self._generations.draining or self._generations.serving
        if victim is not None:
            self._do(events.Fail(victim.number, "memory is at the last level", notice=True))

    # --- the guard is guarded ---------------------------------------------------------------------

    def state(self) -> GuardState:
        """Return the guard's own health, for the status."""
        return GuardState(
            ticks=self._ticks,
            tick_delay_s=self._delay_s,
            worst_tick_delay_s=self._worst_s,
            tick_cost_s=self._cost_s,
            sample_failures=self._memory.sample_failures,
            bundles=self._evidence.written,
        )

    def _note_tick(self, now_s: float, delay_s: float) -> None:
        self._ticks += 1
        self._delay_s = delay_s
        if delay_s >= self._worst_s or now_s - self._worst_at_s > WORST_KEPT_S:
            self._worst_s, self._worst_at_s = delay_s, now_s


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.1f} MiB"


def _knows(worker: WorkerHandle, step: ReclaimStep) -> bool:
    """Tell whether a worker, which may be of the version before, can take a step."""
    return step is not ReclaimStep.KEPT or worker.known is None


def _since(former: StepReport | None, now: StepReport) -> StepReport | None:
    """Subtract the former of two reports that add up; None when nothing was freed between them."""
    if former is None:
        return now
    if former.freed_bytes == now.freed_bytes:
        return None
    return StepReport(
        step=now.step,
        runs=now.runs - former.runs,
        promised_bytes=now.promised_bytes - former.promised_bytes,
        freed_bytes=now.freed_bytes - former.freed_bytes,
        took_s=now.took_s - former.took_s,
    )
