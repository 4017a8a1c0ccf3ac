"""What the watchdog knows of memory: the budget, the last readings, the last decision.

`look` gathers everything that a decision is made from; `decide` lets `core.memory.policy` make it,
and says in the log what is new about it. Nothing is done about it here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from msgspec.structs import replace

from tidegate.core.fleet.lifecycle import HOUR_S
from tidegate.core.memory import growth, levels, policy
from tidegate.core.memory.decision import Decision, Inputs, PolicyState
from tidegate.core.memory.report import StepReport
from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.protocol.status import MemoryState, Status, StepState
from tidegate.core.protocol.worker import GuardFigures, Heartbeat
from tidegate.core.runs.intake import largest_body_bytes
from tidegate.core.settings import MIB, Memory
from tidegate.machine import budget, pressure, sample
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import WorkerHandle

USS_EVERY_S = 300.0  # reading it walks every mapping of the worker: 11 to 74 ms
PRESSURE_HOLDS_S = 10.0  # how long a signal of it counts
_log = logging.getLogger(__name__)


class MemoryMonitor:
    """Keep the budget, the last sample and what was decided. `close` it when done."""

    def __init__(self) -> None:
        self.policy_state = PolicyState()
        self.decision: Decision | None = None
        self.sample: sample.Sample | None = None
        self.budget = budget.Budget(bytes=0, source="")
        self.enforces = True
        self.base_bytes = 0
        self.ledger_bytes = 0
        self.journal_bytes = 0  # of a journal that lies in memory
        self.uss_bytes: int | None = None  # of the serving worker, every few minutes
        self.alarms = 0
        self.sample_failures = 0
        self.other_pids: Callable[[], list[int]] = list  # of children that are no workers
        self._settings = Memory()
        self._sampler = sample.Sampler()
        self._pressure = pressure.PressureMeter()
        self._logged: dict[str, str | None] = {}
        self._machine_bytes = _machine_bytes()
        self._uss_due_s = 0.0
        self._pressed = False  # at the last decision
        self._pressed_until_s = float("-inf")
        self._trend = growth.Trend()
        self._finding: growth.Finding | None = None
        self._generation = 0  # whose growth that is
        self._steps: dict[str, StepState] = {}
        self._reports: list[StepReport] = []

    def __repr__(self) -> str:
        return f"<MemoryMonitor level={self.level} budget={self.budget.bytes}>"

    def apply(self, settings: Memory) -> None:
        """Follow the settings, and log a budget that is new."""
        self._settings = settings
        self.enforces = settings.mode == "enforce"
        found = budget.find(settings.budget_bytes)
        if found != self.budget:
            _log.info("memory budget %d MiB: %s", found.bytes // MIB, found.source)
            for reason in found.ignored:
                _log.info("no memory limit of ours: %s", reason)
        self.budget = found
        self._sampler.cgroup = found.cgroup
        if settings.growth != Memory().growth:
            periods = settings.growth
            _log.info(
                "growth is judged over scaled periods: bucket %g s, skip %g s, confirm %g s",
                periods.bucket_s,
                periods.skip_s,
                periods.confirm_s,
            )

    def resume(self, alarms: int, steps: dict[str, StepState]) -> None:
        """Go on counting where an upgrade left off."""
        self.alarms, self._steps = alarms, dict(steps)

    @property
    def steps(self) -> dict[str, StepState]:
        """Return what each step of reclaiming has done."""
        return self._steps

    # --- what comes in between two samples -----------------------------------------------------

    def on_heartbeat(self, worker: WorkerHandle, beat: Heartbeat, now_s: float) -> None:
        """Follow the serving worker's growth: its own pair of resident bytes and ledger."""
        if worker.number != self._generation:
            self._generation, self._trend, self._finding = worker.number, growth.Trend(), None
        if worker.ready_s is None:
            return
        self._trend, finding = growth.observe(
            self._trend,
            self._settings.growth,
            now_s=now_s,
            age_s=now_s - worker.ready_s,
            rss_bytes=beat.rss_bytes,
            ledger_bytes=beat.ledger_bytes,
        )
        self._finding = finding or self._finding

    def on_pressure(self, now_s: float, source: str) -> None:
        """Note that `source`, the service manager or the kernel, says that memory is short."""
        if now_s > self._pressed_until_s:
            _log.warning("memory is short, says %s", source)
        self._pressed_until_s = now_s + PRESSURE_HOLDS_S

    def add_reports(self, reports: list[StepReport]) -> None:
        """Add what the steps of reclaiming did in a worker."""
        for report in reports:
            known = self._steps.get(report.step, StepState(step=report.step))
            self._steps[report.step] = known.plus(report)
        self._reports += reports

    # --- look, then decide --------------------------------------------------------------------

    def read(self, generations: Generations) -> levels.Reading | None:
        """Sample now; None when the machine does not say anything, which is logged once."""
        workers = list(generations)
        try:
            pids = [os.getpid(), *(w.pid for w in workers), *self.other_pids()]
            self.sample = self._sampler.read(pids)
        except sample.SampleError as error:
            self.sample_failures += 1
            self._log_trouble("sample", f"{error}; the memory level stays {self.level}")
            return None
        self.sample_failures += bool(self.sample.failures)
        self._log_trouble("sample", "; ".join(self.sample.failures) or None)
        self.base_bytes = max((w.base_bytes or 0 for w in workers), default=0)
        beats = [w.beat for w in workers if w.beat]
        self.ledger_bytes = sum(beat.ledger_bytes for beat in beats)
        self.journal_bytes = max(map(_in_memory_bytes, beats), default=0)  # all write to the same
        return levels.Reading(
            used_bytes=self.used_bytes,
            held_bytes=sum(
                max(0, self.sample.rss.get(w.pid, 0) - w.base_bytes)
                for w in workers
                if w.base_bytes is not None
            ),
            base_bytes=self.base_bytes,
            ledger_bytes=self.ledger_bytes,
            available_bytes=(
                self._machine_bytes
                if self.sample.available_bytes is None
                else self.sample.available_bytes
            ),
            journal_bytes=self.journal_bytes,
        )

    @property
    def used_bytes(self) -> int:
        """Return what a killer would have counted at the last sample; 0 before the first."""
        return self.sample.used_with(self.journal_bytes) if self.sample else 0

    def look(
        self, generations: Generations, now_s: float, *, reclaiming: bool, evidence_pending: bool
    ) -> Inputs | None:
        """Gather what a decision is made from; None when memory cannot be read at all."""
        reading = self.read(generations)
        if reading is None:
            return None
        serving = generations.serving
        beat = serving.beat if serving else None
        self._read_uss(serving, now_s)
        reports, self._reports = tuple(self._reports), []
        fleet, restarts = generations.fleet, generations.policy
        recent = sum(now_s - planned_s < HOUR_S for planned_s in fleet.planned)
        return Inputs(
            now_s=now_s,
            reading=replace(reading, pressure=self._is_pressed(now_s)),
            limits=levels.BudgetLimits(
                budget_bytes=self.budget.bytes,
                hard=self.budget.hard,
                machine_bytes=self._machine_bytes,
            ),
            enforces=self.enforces,
            generation=serving.number if serving else 0,
            age_s=now_s - serving.ready_s if serving and serving.ready_s is not None else 0.0,
            active_runs=sum(w.beat.runs_active for w in generations if w.beat),
            is_recycling=fleet.recycle is not None or len(fleet.generations) > 1 or fleet.stopping,
            recycles_left=max(0, restarts.recycles_per_hour - recent),
            may_give_up=restarts.gives_up,
            slack_bytes=beat.allocator.malloc_free_bytes if beat else 0,
            relieving=reclaiming,
            relieved=reports,
            evidence_pending=evidence_pending,
            finding=self._finding if serving and serving.number == self._generation else None,
            growth=self._settings.growth,
            recycle_after_s=self._settings.recycle_after_s,
        )

    def decide(self, inputs: Inputs) -> tuple[PolicyState, Decision]:
        """Decide; return the state before and the decision. What is new about it is logged."""
        before, former = self.policy_state, self.decision
        self._pressed = inputs.reading.pressure
        self.policy_state, self.decision = policy.decide(before, inputs)
        self._log_new(former, self.decision)
        return before, self.decision

    @property
    def level(self) -> int:
        """Return the level in force."""
        return self.decision.level if self.decision else 0

    @property
    def ledger_limit_bytes(self) -> int:
        """Return what a worker's ledger may hold; 0 is no limit."""
        return self.decision.ledger_limit_bytes if self.decision and self.enforces else 0

    @property
    def first_ledger_limit_bytes(self) -> int:
        """Return the same for a worker whose base is not known yet: at first what is usual."""
        if not self.enforces:
            return 0
        usual_bytes = levels.usual_ledger_limit_bytes(self.budget.bytes)
        return min(usual_bytes, self.ledger_limit_bytes or usual_bytes)

    @property
    def largest_body_bytes(self) -> int | None:
        """Return what a worker ever has room for; None without a limit, or without a worker yet."""
        limit_bytes = self.ledger_limit_bytes if self.base_bytes else 0
        return largest_body_bytes(limit_bytes) if limit_bytes else None

    def rss_bytes(self, pid: int) -> int | None:
        """Return the resident bytes of one of our processes, as last sampled."""
        return self.sample.rss.get(pid) if self.sample else None

    @property
    def shrinks_buffers(self) -> bool:
        """Tell whether windows and watermarks are to be half as large."""
        return self.enforces and self.decision is not None and self.decision.squeeze

    def figures(self, seen: Status) -> GuardFigures:
        """Pick what of the status goes to /metrics."""
        memory = seen.memory
        return GuardFigures(
            budget_bytes=memory.budget_bytes,
            used_bytes=memory.used_bytes,
            unexplained_bytes=memory.unexplained_bytes,
            growth_bytes_per_h=memory.growth_bytes_per_h,
            limit_in_s=memory.limit_in_s,
            alarms=memory.alarms,
            watchdog_rss_bytes=seen.watchdog.rss_bytes,
            tick_delay_s=seen.guard.tick_delay_s,
            sample_failures=seen.guard.sample_failures,
        )

    def state(self) -> MemoryState:
        """Describe memory for the status."""
        decision, finding = self.decision, self._finding
        per_h = finding.bytes_per_h if finding else None
        limit_in_s = decision.forecast_s if decision else None
        return MemoryState(
            level=self.level,
            budget_bytes=self.budget.bytes,
            budget_source=self.budget.source,
            used_bytes=self.used_bytes,
            base_bytes=self.base_bytes,
            ledger_bytes=self.ledger_bytes,
            unexplained_bytes=decision.unexplained_bytes if decision else 0,
            growth_bytes_per_h=None if per_h is None else int(per_h),
            limit_in_s=limit_in_s,
            mode=self._settings.mode,
            cause=decision.cause if decision else "none",
            pressure=self._pressed,
            worker_uss_bytes=self.uss_bytes,
            shedding=decision.shed if decision and self.enforces else None,
            would=would(decision) if decision and not self.enforces else None,
            refused=decision.refused if decision else None,
            alarms=self.alarms,
            steps=[
                replace(step, skipped=name in self.policy_state.skipped_until_s)
                for name, step in self._steps.items()
            ],
        )

    def close(self) -> None:
        """Give the descriptors back."""
        self._sampler.close()
        self._pressure.close()

    # --- small helpers ----------------------------------------------------------------------------

    def _is_pressed(self, now_s: float) -> bool:
        return now_s <= self._pressed_until_s or pressure.is_high(self._pressure.read())

    def _read_uss(self, serving: WorkerHandle | None, now_s: float) -> None:
        if serving is not None and now_s >= self._uss_due_s:
            self._uss_due_s = now_s + USS_EVERY_S
            self.uss_bytes = self._sampler.uss_bytes(serving.pid)

    def _log_trouble(self, subject: str, text: str | None) -> None:
        """Log a trouble that stays once, and once that it is over."""
        if text == self._logged.get(subject):
            return
        if text is None:
            _log.info("memory figures can be read again")
        else:
            _log.error("%s", text)
        self._logged[subject] = text

    def _log_new(self, former: Decision | None, now: Decision) -> None:
        if now.alarm:
            self.alarms += 1
            _log.warning("%s (%d MiB unexplained)", now.alarm, now.unexplained_bytes // MIB)
        level, was = now.level, former.level if former else 0
        if level != was:
            _log.log(
                logging.WARNING if level > was and level >= policy.SHRINK_LEVEL else logging.INFO,
                "memory level %d, was %d: %.0f %% of %d MiB for runs, ledger %d MiB, %s",
                level,
                was,
                100 * now.ratio,
                now.spendable_bytes // MIB,
                self.ledger_bytes // MIB,
                f"{now.unexplained_bytes // MIB} MiB unexplained ({now.cause})"
                + (", and the system is short of memory" if self._pressed else ""),
            )
        if now.refused and (former is None or former.no_recycle is not now.no_recycle):
            _log.warning("no recycle, though it is called for: %s", now.refused)
        if not self.enforces and (words := would(now)) and words != (former and would(former)):
            _log.warning("observing only; it would %s", words)


def _machine_bytes() -> int:
    """Return the machine's memory; 0 if it does not say: then it is never judged to be full."""
    try:
        return sample.machine_bytes()
    except sample.SampleError as error:
        _log.warning("%s", error)
        return 0


def _in_memory_bytes(beat: Heartbeat) -> int:
    """Return what the journal takes of memory; a disk's page cache is given back by itself."""
    journal = beat.journal
    return journal.bytes if journal is not None and journal.place == "memory" else 0


def would(decision: Decision) -> str | None:
    """Say what a decision asks for: "sweep (stale, tidy), refuse new runs"."""
    deeds = []
    if steps := [step.value for step in decision.steps if step is not ReclaimStep.TRIM]:
        deeds.append(f"sweep ({', '.join(steps)})")
    if decision.shed:
        deeds.append("refuse new runs")
    if decision.recycle:
        deeds.append(f"recycle the worker ({decision.recycle})")
    if decision.cut or decision.give_up:
        deeds.append("end a worker at once")
    return ", ".join(deeds) or None
