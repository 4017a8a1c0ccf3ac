"""The same workers under a plain rule, or under no rule at all."""

from __future__ import annotations

from random import Random

from simulated.naive import (
    LIMIT_EVERY_S,
    LIMIT_SHARE,
    SAMPLE_S,
    FiveRises,
    PlainSlope,
)
from simulated.scenarios import Load, Scenario
from simulated.worker import Worker
from simulated.world import HOUR_S, STEP_S, Told
from tidegate.core.settings import MIB


def watched(scenario: Scenario, seed: int) -> dict[str, Told]:
    """Note what the rules of growth would say. They do not act; the system kills the worker."""
    rules = (FiveRises(), PlainSlope())
    told = {rule.name: Told(hours=scenario.hours) for rule in rules}
    chance = Random(f"{scenario.name} {seed}")
    load = Load(scenario, chance)
    worker = scenario.worker(chance)
    for n in range(int(scenario.hours * HOUR_S / STEP_S)):
        at_h = n * STEP_S / HOUR_S
        _live(worker, load, at_h)
        if worker.rss_bytes > scenario.budget * MIB:  # out of memory
            for each in told.values():
                each.kills.append("out of memory")
                each.cut += int(worker.active)
            worker = scenario.worker(chance)
        if n % int(SAMPLE_S / STEP_S) == 0:
            for rule in rules:
                if rule.sees(worker.rss_bytes):
                    told[rule.name].alarms_h.append(at_h - load.leak_from_h)
    return told


def restarted(scenario: Scenario, seed: int) -> Told:
    """Restart the worker over a limit, which cuts what it was streaming."""
    told = Told(hours=scenario.hours)
    chance = Random(f"{scenario.name} {seed}")
    load = Load(scenario, chance)
    worker = scenario.worker(chance)
    for n in range(int(scenario.hours * HOUR_S / STEP_S)):
        at_h = n * STEP_S / HOUR_S
        _live(worker, load, at_h)
        due = n % int(LIMIT_EVERY_S / STEP_S) == 0
        if due and worker.rss_bytes > LIMIT_SHARE * scenario.budget * MIB:
            told.alarms_h.append(at_h - load.leak_from_h)
            told.recycles += 1
            told.cut += int(worker.active)
            worker = scenario.worker(chance)
    return told


def _live(worker: Worker, load: Load, at_h: float) -> None:
    wanted = load.wanted(at_h, STEP_S)
    worker.stepped += load.stepped(STEP_S)
    worker.advance(STEP_S, wanted, leaks=load.leaks(at_h))
