"""Hours in which a worker hangs, a computer sleeps, nothing starts, or an idle one is recycled."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from simulated.scenarios import Scenario
from simulated.worker import Habits
from simulated.world import TICK_S, World
from tidegate.core.fleet import events
from tidegate.core.memory.levels import DWELL_S

IDLE = Habits(warm=2.0, noise=0.1)
BUDGETS = (128, 256, 1024)


def judge() -> Iterable[tuple[str, str | None]]:
    """Yield each promise, and how it was broken, if it was."""
    for budget in BUDGETS:
        yield f"idle at {budget} MiB is level 0, also while recycled", idle(budget)
    yield "a clock gap kills no worker, whatever the fleet is at", naps()
    yield "a short stall is borne, a hang is ended and replaced", stalls()
    yield "what never starts is given up", crash_loop()
    yield "a storm of clients makes no level flap", storm()


def _world(name: str, *, budget: int = 256, habits: Habits = IDLE, runs: float = 0.0) -> World:
    world = World(Scenario(name=name, budget=budget, habits=habits, runs=runs), 0)
    _live(world, 10)
    return world


def _live(world: World, seconds: float, *, beats: bool = True) -> None:
    """Run real ticks, with or without the workers' heartbeats."""
    for _ in range(int(seconds / TICK_S)):
        world.second(beats=beats)


def idle(budget: int) -> str | None:
    """Recycle an idle worker a few times."""
    world = _world("idle", budget=budget)
    for n in range(4):
        world.do(events.Recycle("asked for"))
        _live(world, 60)
        if world.told.spawned != n + 2:
            return f"recycle {n + 1} did not take place"
    worst = world.told.worst_level
    return f"level {worst}" if worst else None


def naps() -> str | None:
    """Sleep for seconds to hours, at any moment: serving, starting, draining, full of runs."""
    chance = Random(1)
    world = _world("naps", runs=20.0)
    for n in range(150):
        if n % 3 == 0:
            world.do(events.Recycle("asked for"))
        _live(world, chance.choice((0, 1, 2, 4, 30, 200)))
        world.sleep(chance.choice((6.0, 11.0, 61.0, 3600.0, 12 * 3600.0)))
    if world.told.gaps < 150:
        return f"{150 - world.told.gaps} gaps went unnoticed"
    return "; ".join(world.told.kills) or None


def stalls() -> str | None:
    """Go without heartbeats for less than the limit, then for good."""
    world = _world("stalls", runs=3.0)
    limit_s = world.policy.timing.beat_limit_s
    for _ in range(20):
        _live(world, limit_s - 1, beats=False)
        _live(world, 5)
    if world.told.kills:
        return f"killed for a stall: {world.told.kills[0]}"
    _live(world, limit_s + 2, beats=False)
    if len(world.told.kills) != 1:
        return f"{len(world.told.kills)} kills for one hang"
    _live(world, 10)
    return None if world.serving else "no worker took over"


def crash_loop() -> str | None:
    """Have a worker die as it starts, and each that follows."""
    world = _world("crash loop")
    world.is_reachable = False
    world.crash("it began")
    for _ in range(600):
        world.second()
        for number in list(world.workers):
            world.crash("no such file", number)
        if world.told.gave_up:
            break
    if world.told.gave_up is None:
        return f"{world.told.spawned} workers in ten minutes, and no end"
    limit = world.policy.timing.crash_limit
    return None if world.told.spawned <= limit + 1 else f"only after {world.told.spawned} workers"


def storm() -> str | None:
    """Have hundreds of clients come and go every few minutes, for two hours, near the top."""
    scenario = Scenario(name="storm", runs=150.0, hours=2.0, bursts_per_day=200.0, burst_runs=500.0)
    told = World(scenario, 0).run()
    if told.worst_level < 3:
        return f"it was no storm: level {told.worst_level}"
    if told.cut:
        return f"{told.cut} streams were cut"
    return f"{told.flaps} levels fell within {DWELL_S:g} s" if told.flaps else None
