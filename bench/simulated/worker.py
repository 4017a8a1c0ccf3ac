"""A worker's memory, as far as it matters to its watchdog.

What runs need comes and goes with the load; what the allocator took from the system it seldom
gives back. So resident memory jumps up, stays, and falls only a little now and then, or when it
is trimmed. On top come what warms up, what jumps, what fragments, and what leaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, sqrt
from random import Random
from typing import NamedTuple

from tidegate.core.memory.report import StepReport
from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.settings import MIB

HOUR_S = 3600.0
PAGE_BYTES = 4096
RUN_S = 180.0  # an answer's mean life
KEPT_S = 600.0  # finished answers stay that long
# Of what is free in the heap, returned by the allocator itself, once in half an hour or so.
GIVE_BACK_EVERY_S, GIVE_BACK_SHARE = 1800.0, 0.3
TRIM_LEAVES = 0.15  # pages with something living in them
# What each step of relief takes, of what finished and of what lives.
FINISHED_SHARE = {ReclaimStep.STALE: 0.5, ReclaimStep.FINISHED: 1.0}
LIVE_SHARE = {ReclaimStep.STALLED: 0.1, ReclaimStep.BACKGROUND: 0.1, ReclaimStep.WINDOWS: 0.3}


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What one worker of a scenario is like. Sizes in MiB unless they say otherwise."""

    base: float = 44.0
    warm: float = 10.0  # caches and arenas that fill in the end,
    warm_h: float = 0.4  # by this time constant
    run_kib: float = 60.0  # buffered by an active run, in the ledger
    overhead_kib: float = 30.0  # of its connections and tasks, in no ledger
    fragments: float = 0.2  # lost between what runs buffer, at most,
    fragments_h: float = 1.0  # by this time constant
    noise: float = 0.3  # mean of what is in use for a moment only
    leak_per_h: float = 0.0
    leak_per_run_kib: float = 0.0


class Pair(NamedTuple):
    """What a heartbeat tells, in bytes."""

    rss_bytes: int
    ledger_bytes: int


class Worker:
    """One process. `advance` it, then read its pair."""

    def __init__(self, habits: Habits, chance: Random) -> None:
        self.habits = habits
        self.age_s = 0.0
        self.active = 0.0
        self.live = self.finished = 0.0  # MiB in the ledger
        self.leaked = self.stepped = 0.0
        self.limit_bytes = 0
        self.base_bytes: int | None = None
        self.born_s = self.beat_s = 0.0
        self.ready_s: float | None = None
        self._chance = chance
        self._rss = habits.base
        self._need = habits.base

    def advance(self, step_s: float, wanted: float, *, leaks: bool) -> None:
        """Advance by `step_s` with that many runs wanted by clients."""
        habits, chance = self.habits, self._chance
        self.age_s += step_s
        turned = 1 - exp(-step_s / RUN_S)
        scatter = sqrt(max(0.0, self.active) * turned) * chance.gauss(0.0, 1.0)
        self.active = max(0.0, self.active + (wanted - self.active) * turned + scatter)
        if wanted == 0 and self.active < 0.5:
            self.active = 0.0
        ended = self.active * step_s / RUN_S * habits.run_kib / 1024
        self.live = self.active * habits.run_kib / 1024
        self.finished = self.finished * exp(-step_s / KEPT_S) + ended
        if self.limit_bytes:
            self.finished = max(0.0, min(self.finished, self.limit_bytes / MIB - self.live))
            self.live = min(self.live, self.limit_bytes / MIB)
        if leaks:
            self.leaked += habits.leak_per_h * step_s / HOUR_S
            self.leaked += habits.leak_per_run_kib / 1024 * self.active * step_s / RUN_S
        self._breathe(step_s)

    def _breathe(self, step_s: float) -> None:
        habits, chance = self.habits, self._chance
        lost = habits.fragments * (1 - exp(-self.age_s / HOUR_S / habits.fragments_h))
        buffers = self.live + self.finished + self.active * habits.overhead_kib / 1024
        warm = habits.warm * (1 - exp(-self.age_s / HOUR_S / habits.warm_h))
        lasting = habits.base + warm + self.stepped + self.leaked
        self._need = (
            lasting
            + buffers * (1 + lost * chance.uniform(0.8, 1.0))
            + chance.expovariate(1.0) * habits.noise
        )
        self._rss = max(self._rss, self._need)
        if chance.random() < step_s / GIVE_BACK_EVERY_S:
            self._rss -= (self._rss - self._need) * GIVE_BACK_SHARE * chance.random()

    @property
    def rss_bytes(self) -> int:
        """Return the resident memory, in whole pages."""
        return int(self._rss * MIB) // PAGE_BYTES * PAGE_BYTES

    @property
    def ledger_bytes(self) -> int:
        """Return what its runs account for."""
        return int((self.live + self.finished) * MIB)

    @property
    def least(self) -> Pair:
        """Return the least of either figure in its heartbeats since it was advanced last."""
        return Pair(self.rss_bytes, self.ledger_bytes)

    @property
    def slack_bytes(self) -> int:
        """Return what is free in its heap."""
        return int((self._rss - self._need) * MIB)

    @property
    def held_bytes(self) -> int:
        """Return what it holds beyond what it had when it became ready."""
        return 0 if self.base_bytes is None else max(0, self.rss_bytes - self.base_bytes)

    def reclaim(self, steps: tuple[ReclaimStep, ...]) -> tuple[StepReport, ...]:
        """Take these steps, and tell what each freed."""
        return tuple(self._reclaim(step) for step in steps)

    def _reclaim(self, step: ReclaimStep) -> StepReport:
        if step is ReclaimStep.TRIM:
            promised = self._rss - self._need
            freed = promised * (1 - TRIM_LEAVES)
            self._rss -= freed
        elif step is ReclaimStep.KEPT:
            too_much = self.finished + self.live - self.limit_bytes / MIB / 2
            promised = freed = min(self.finished, max(0.0, too_much))
            self.finished -= freed
        elif step in FINISHED_SHARE:
            promised = freed = self.finished * FINISHED_SHARE[step]
            self.finished -= freed
        else:
            promised = freed = self.live * LIVE_SHARE[step]
            self.live -= freed
            self.active *= 1 - (LIVE_SHARE[step] if step is ReclaimStep.STALLED else 0)
        return StepReport(
            step=step.value,
            runs=int(freed > 0),
            promised_bytes=int(promised * MIB),
            freed_bytes=int(freed * MIB),
            took_s=0.01,
        )
