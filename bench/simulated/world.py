"""A virtual machine around virtual workers, with the shipped code in charge.

That is growth, the memory policy and the fleet.

Time goes in steps of a minute while nothing is going on, for weeks are long, and in the real
ticks of a second as soon as the level, the fleet or a plan is anything but at rest. What the code
counts between two ticks is told to it as if each of the quiet seconds had been ticked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from msgspec.structs import replace

from simulated.scenarios import Load, Scenario
from simulated.worker import Worker
from tidegate.core import settings
from tidegate.core.fleet import events
from tidegate.core.fleet import lifecycle as life
from tidegate.core.memory import growth, levels, policy
from tidegate.core.memory.decision import PolicyState
from tidegate.core.memory.report import StepReport
from tidegate.core.settings import MIB

HOUR_S = 3600.0
STEP_S, TICK_S = 60.0, 1.0
START_S = 3.0  # from a worker's start until it serves
WATCHDOG_BYTES = 13 * MIB
MACHINE_BYTES, AVAILABLE_BYTES = 8192 * MIB, 4096 * MIB
CALM_RATIO = 0.55  # a minute's runs are not what is missing to level 1
BEGIN_S = 1000.0  # a clock that begins at 0 hides mistakes


@dataclass(kw_only=True)
class Told:
    """The outcome of one world."""

    hours: float = 0.0
    alarms_h: list[float] = field(default_factory=list)  # since the leak began, or the start
    recycles: int = 0
    kills: list[str] = field(default_factory=list)
    cut: int = 0  # streams that ended because a process did
    gaps: int = 0
    flaps: int = 0  # levels that fell within the dwell
    worst_level: int = 0
    refused_h: float = 0.0  # with the door closed
    spawned: int = 0
    gave_up: str | None = None


class World:
    """Workers of one scenario, watched. `run` it to its end."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.told = Told(hours=scenario.hours)
        self.now_s = BEGIN_S
        self.policy = life.RestartPolicy()
        self.fleet = life.Fleet()
        self.policy_state = PolicyState()
        self.workers: dict[int, Worker] = {}
        self.is_reachable = True  # False: no worker starts well
        self._chance = Random(f"{scenario.name} {seed}")
        self.load = Load(scenario, self._chance)
        self._trend, self._trend_of = growth.Trend(), 0
        self._finding: growth.Finding | None = None
        self._periods = settings.Growth()
        self._reports: tuple[StepReport, ...] = ()
        self._shed = False
        self._limits = levels.BudgetLimits(
            budget_bytes=scenario.budget * MIB, hard=True, machine_bytes=MACHINE_BYTES
        )
        self._level, self._rose_s = 0, float("-inf")
        self._was_quiet = False
        self.do(events.Begin())

    def run(self) -> Told:
        """Run the scenario to its end."""
        end_s = BEGIN_S + self.scenario.hours * HOUR_S
        nap_h, nap_for_h = self.load.next_nap_h(0.0)
        while self.now_s < end_s and self.told.gave_up is None:
            if self.scenario.sleeps and self.at_h >= nap_h:
                self.sleep(nap_for_h * HOUR_S)
                nap_h, nap_for_h = self.load.next_nap_h(self.at_h)
            elif self._is_quiet():
                self._pass(STEP_S)
                self._was_quiet = True
                if self._hear():
                    self.tick()  # a bucket closed, which may be news
            else:
                self.second()
        return self.told

    def second(self, *, beats: bool = True) -> None:
        """Run one tick of real time, with or without the workers' heartbeats."""
        self._pass(TICK_S)
        if beats:
            self._hear()
        self.tick()

    def crash(self, reason: str, number: int | None = None) -> None:
        """Crash a worker's process; without a number, the one that serves."""
        if number is None:
            number = next(n for n, worker in self.workers.items() if worker is self.serving)
        del self.workers[number]
        self.do(events.Exited(number, reason))

    @property
    def at_h(self) -> float:
        """Return the hours since the start."""
        return (self.now_s - BEGIN_S) / HOUR_S

    @property
    def serving(self) -> Worker | None:
        """Return the worker that new runs go to."""
        generation = self.fleet.in_state(life.GenerationState.SERVING)
        return self.workers.get(generation.number) if generation else None

    def sleep(self, gap_s: float) -> None:
        """Let a computer sleep while its clock goes on; the watchdog wakes first, without beats."""
        if self._was_quiet:
            self._catch_up(self.now_s)
        self.now_s += gap_s
        self.tick()

    def do(self, event: events.Event) -> list[events.Effect]:
        """Let the fleet decide, and make it true."""
        self.fleet, effects = life.step(self.fleet, event, self.now_s, self.policy)
        for effect in effects:
            self._follow(effect)
        return effects

    def tick(self) -> None:
        """Do what the watchdog does once a second."""
        if self._was_quiet:
            self._catch_up(self.now_s - TICK_S)
        self.do(events.Tick())
        inputs = self._inputs()
        self.policy_state, decision = policy.decide(self.policy_state, inputs)
        self._reports = ()
        self._note(decision)
        self._obey(decision)

    # --- time passes ------------------------------------------------------------------------------

    def _is_quiet(self) -> bool:
        """Tell whether a minute can pass in which there was nothing to decide."""
        now, generations = self.policy_state, self.fleet.generations
        serving = self.serving
        if serving is None or len(generations) > 1 or self._reports:
            return False
        if now.mark.level or now.harm or now.planned_s is not None:
            return False
        base = serving.base_bytes or 0
        spendable = levels.spendable_bytes(self._limits.budget_bytes, base)
        return serving.held_bytes < CALM_RATIO * spendable

    def _catch_up(self, now_s: float) -> None:
        """Catch up, as if the quiet time had been ticked second by second."""
        generations = tuple(replace(g, beat_s=now_s) for g in self.fleet.generations)
        self.fleet = replace(self.fleet, ticked_s=now_s, generations=generations)
        mark = levels.Watermark(former=self._reading(), read_s=now_s)  # level 0, no rise
        self.policy_state = replace(self.policy_state, ticked_s=now_s, mark=mark)
        self._was_quiet = False

    def _pass(self, step_s: float) -> None:
        self.now_s += step_s
        wanted = 0.0 if self._shed else self.load.wanted(self.at_h, step_s)
        serving, leaks = self.serving, self.load.leaks(self.at_h)
        stepped = self.load.stepped(step_s)
        for worker in list(self.workers.values()):
            worker.advance(step_s, wanted if worker is serving else 0.0, leaks=leaks)
        if serving is not None:
            serving.stepped += stepped
        self.told.refused_h += step_s / HOUR_S * self._shed

    def _hear(self) -> bool:
        """Take heartbeats, readiness and ends; True when a bucket closed."""
        serving, is_news = self.serving, False
        for number, worker in list(self.workers.items()):
            if worker.ready_s is None:
                if self.is_reachable and self.now_s - worker.born_s >= START_S:
                    worker.ready_s, worker.base_bytes = self.now_s, worker.rss_bytes
                    self.do(events.BecameReady(number))
                continue
            self.do(events.Beat(number))
            generation = self.fleet.by_number(number)
            if (
                generation
                and generation.state is life.GenerationState.DRAINING
                and worker.active < 1
            ):
                del self.workers[number]
                self.do(events.Exited(number, "drained"))
            elif worker is serving:
                is_news = self._observe(number, worker)
        return is_news

    def _observe(self, number: int, worker: Worker) -> bool:
        if number != self._trend_of:
            self._trend_of, self._trend, self._finding = number, growth.Trend(), None
        assert worker.ready_s is not None
        self._trend, finding = growth.observe(
            self._trend,
            self._periods,
            now_s=self.now_s,
            age_s=self.now_s - worker.ready_s,
            rss_bytes=worker.least.rss_bytes,
            ledger_bytes=worker.least.ledger_bytes,
        )
        self._finding = finding or self._finding
        return finding is not None

    # --- what is decided, and done ----------------------------------------------------------------

    def _reading(self) -> levels.Reading:
        workers = list(self.workers.values())
        return levels.Reading(
            used_bytes=sum(w.rss_bytes for w in workers) + WATCHDOG_BYTES,
            held_bytes=sum(w.held_bytes for w in workers),
            base_bytes=max((w.base_bytes or 0 for w in workers), default=0),
            ledger_bytes=sum(w.ledger_bytes for w in workers),
            available_bytes=AVAILABLE_BYTES,
        )

    def _inputs(self) -> policy.Inputs:
        workers = list(self.workers.values())
        generation = self.fleet.in_state(life.GenerationState.SERVING)
        serving = self.serving
        planned = sum(self.now_s - at_s < HOUR_S for at_s in self.fleet.planned)
        fleet = self.fleet
        return policy.Inputs(
            now_s=self.now_s,
            reading=self._reading(),
            limits=self._limits,
            generation=generation.number if generation else 0,
            age_s=self.now_s - serving.ready_s if serving and serving.ready_s else 0.0,
            active_runs=sum(int(w.active) for w in workers),
            is_recycling=fleet.recycle is not None or len(fleet.generations) > 1,
            recycles_left=max(0, self.policy.recycles_per_hour - planned),
            may_give_up=True,
            slack_bytes=serving.slack_bytes if serving else 0,
            relieved=self._reports,
            finding=self._finding if generation and generation.number == self._trend_of else None,
            growth=self._periods,
        )

    def _note(self, decision: policy.Decision) -> None:
        told = self.told
        if decision.alarm:
            since_h = self.load.leak_from_h if self.scenario.leaks else 0.0
            told.alarms_h.append(self.at_h - since_h)
        level = self.policy_state.mark.level
        if level > self._level:
            self._rose_s = self.now_s
        elif level < self._level and self.now_s - self._rose_s < levels.DWELL_S:
            told.flaps += 1
        self._level = level
        told.worst_level = max(told.worst_level, level)

    def _obey(self, decision: policy.Decision) -> None:
        self._shed = decision.shed is not None
        for worker in self.workers.values():
            worker.limit_bytes = decision.ledger_limit_bytes
        if decision.steps and (serving := self.serving):
            self._reports = serving.reclaim(decision.steps)
        if decision.recycle:
            refused = self.do(events.Recycle(decision.recycle, planned=True))
            self.told.recycles += not any(isinstance(e, events.Refuse) for e in refused)
        if decision.cut:
            victim = self.fleet.in_state(life.GenerationState.DRAINING) or self.fleet.in_state(
                life.GenerationState.SERVING
            )
            if victim:
                self.do(events.Fail(victim.number, decision.cut, notice=True))
        if decision.give_up:
            self.do(events.Escalate(decision.give_up))

    def _follow(self, effect: events.Effect) -> None:
        told = self.told
        match effect:
            case events.Spawn(number):
                worker = self.scenario.worker(self._chance)
                worker.born_s = self.now_s
                self.workers[number] = worker
                told.spawned += 1
            case events.Kill(number=number, reason=reason):
                told.kills.append(reason)
                if worker_gone := self.workers.pop(number, None):
                    told.cut += int(worker_gone.active)
            case events.ClockGap():
                told.gaps += 1
            case events.GiveUp(reason):
                told.gave_up = reason
            case _:
                pass  # drains end by themselves; the rest is for the log
