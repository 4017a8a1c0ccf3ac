"""The scenarios of a worker, by name. Healthy ones last a week a seed, others as long as needed.

None is tuned to a rule: sizes are those of a home server (some runs at a time, some tens of MiB)
and of one that is larger than most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from random import Random

from simulated import recorded
from simulated.worker import Habits, Worker

HOUR_S = 3600.0
DAY_H, WEEK_H = 24.0, 168.0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A worker, its load, and its mishaps. Times in hours, sizes in MiB."""

    name: str
    habits: Habits = field(default_factory=Habits)
    budget: int = 256
    hours: float = WEEK_H
    runs: float = 4.0  # at a time, by day
    night: float = 1.0  # share of it by night; 1: no breathing
    weekend: float = 1.0  # share of it on two days of seven
    bursts_per_day: float = 0.0  # of some minutes,
    burst_runs: float = 0.0  # that many more
    steps_per_week: float = 0.0  # something loaded for good,
    step: float = 0.0  # that large
    leaks: bool = False
    leak_from_h: tuple[float, float] = (0.0, 0.0)  # within these
    is_recorded: bool = False  # memory is what was measured; runs only end and are cut
    sleeps: bool = False  # a lid that is closed at night and now and then
    is_alarming: bool = False  # an alarm is right
    detect_within_h: float | None = None  # in every seed, of the leak's beginning

    def worker(self, chance: Random) -> Worker:
        """Make a new worker."""
        if self.is_recorded:
            return recorded.Replayed(self.habits, chance, recorded.load())
        return Worker(self.habits, chance)

    def shortened(self, hours: float) -> Scenario:
        """Return the same scenario for a while only."""
        return replace(self, hours=min(self.hours, hours))


class Load:
    """How many runs clients want, and what else happens, at a time. Drawn once a seed."""

    def __init__(self, scenario: Scenario, chance: Random) -> None:
        self.scenario = scenario
        self.shift_h = chance.uniform(0.0, DAY_H)
        self.leak_from_h = chance.uniform(*scenario.leak_from_h)
        self._chance = chance
        self._mood = 0.0
        self._burst_until_h = 0.0

    def wanted(self, at_h: float, step_s: float) -> float:
        """Return the mean number of runs wanted now: by the day, the half hour, and bursts."""
        scenario, chance = self.scenario, self._chance
        turned = 1 - math.exp(-step_s / 1800.0)
        self._mood += -self._mood * turned + 0.35 * math.sqrt(turned) * chance.gauss(0.0, 1.0)
        local_h = at_h + self.shift_h
        day = (1 - math.cos(2 * math.pi * local_h / DAY_H)) / 2
        share = scenario.night + (1 - scenario.night) * day
        if int(local_h / DAY_H) % 7 >= 5:
            share *= scenario.weekend
        if chance.random() < scenario.bursts_per_day * step_s / HOUR_S / DAY_H:
            self._burst_until_h = at_h + chance.uniform(0.05, 0.4)
        burst = scenario.burst_runs if at_h < self._burst_until_h else 0.0
        return scenario.runs * share * math.exp(self._mood) + burst

    def stepped(self, step_s: float) -> float:
        """Return what is loaded for good in this step, nearly always nothing."""
        rate = self.scenario.steps_per_week * step_s / HOUR_S / WEEK_H
        return self.scenario.step * self._chance.uniform(0.3, 1.0) * (self._chance.random() < rate)

    def leaks(self, at_h: float) -> bool:
        """Tell whether the worker leaks now."""
        return self.scenario.leaks and at_h >= self.leak_from_h

    def next_nap_h(self, at_h: float) -> tuple[float, float]:
        """Say when the lid is closed next, and for how long."""
        awake_h = self._chance.expovariate(1 / 5.0) + 0.1
        long = self._chance.random() < 0.4
        return at_h + awake_h, self._chance.uniform(6, 12) if long else self._chance.uniform(
            0.02, 2
        )


def healthy() -> list[Scenario]:
    """List the scenarios in which every alarm is wrong."""
    large = Habits(base=48, warm=30, warm_h=0.8, noise=2.0)
    return [
        Scenario(name="idle", runs=0.0, budget=128, habits=Habits(warm=2, noise=0.1)),
        Scenario(name="steady", runs=6.0),
        Scenario(name="breathes by the day", runs=25.0, night=0.05),
        Scenario(name="breathes, quiet weekend", runs=40.0, night=0.05, weekend=0.2),
        Scenario(
            name="large, breathes", runs=250.0, night=0.1, habits=large, budget=1024, weekend=0.6
        ),
        Scenario(name="bursts", runs=3.0, bursts_per_day=8.0, burst_runs=120.0),
        Scenario(name="warms up for hours", runs=8.0, habits=Habits(warm=40, warm_h=2.0)),
        Scenario(name="steps", runs=5.0, steps_per_week=4.0, step=8.0),
        Scenario(
            name="fragments",
            runs=30.0,
            night=0.3,
            bursts_per_day=4.0,
            burst_runs=60.0,
            habits=Habits(fragments=0.5, fragments_h=2.0),
        ),
        Scenario(
            name="sleeps at night", runs=12.0, night=0.2, sleeps=True, habits=Habits(noise=1.0)
        ),
        Scenario(name="as recorded", runs=20.0, is_recorded=True),
    ]


def leaking() -> list[Scenario]:
    """List the scenarios in which an alarm is right, but for the smallest leak."""
    days = 4 * DAY_H
    return [
        Scenario(
            name="leak 1 MiB/h", habits=Habits(leak_per_h=1.0), leaks=True, is_alarming=True,
            hours=days,
        ),
        Scenario(
            name="leak 3 MiB/h", habits=Habits(leak_per_h=3.0), leaks=True, is_alarming=True,
            hours=days, detect_within_h=8.0,
        ),
        Scenario(
            name="leak 3 MiB/h, after days", habits=Habits(leak_per_h=3.0), leaks=True,
            is_alarming=True, leak_from_h=(24.0, 72.0), hours=days + 2 * DAY_H,
            detect_within_h=8.0,
        ),
        Scenario(
            name="leak 3 MiB/h, breathes", habits=Habits(leak_per_h=3.0), leaks=True,
            is_alarming=True, runs=25.0, night=0.05, hours=days, leak_from_h=(24.0, 48.0),
        ),
        Scenario(
            name="leak 10 MiB/h", habits=Habits(leak_per_h=10.0), leaks=True, is_alarming=True,
            hours=DAY_H, detect_within_h=8.0,
        ),
        Scenario(
            name="leak 3 MiB/h, as recorded", habits=Habits(leak_per_h=3.0), leaks=True,
            is_alarming=True, runs=20.0, is_recorded=True, hours=days, detect_within_h=8.0,
        ),
        Scenario(
            name="leak with each run", habits=Habits(leak_per_run_kib=40.0), leaks=True,
            is_alarming=True, runs=10.0, night=0.3, hours=days,
        ),
    ]  # fmt: skip
