"""When a generation starts, serves, drains and is gone, and what is done about it.

One table says what happens to one generation (state x trigger, every cell filled). Around it
stands the `Fleet`: at most two generations, at most one of them not ready, and the policy of
restarts. `step` decides and the watchdog does; nothing here knows a process or a clock.

Time comes in. A tick that is late by more than `gap_s` means that the computer slept or that
we did, and says nothing about a worker: every deadline starts afresh.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from tidegate.core.fleet.events import (
    Beat,
    BecameReady,
    Begin,
    ClockGap,
    Drain,
    Effect,
    Escalate,
    Event,
    Exited,
    Fail,
    GiveUp,
    Kill,
    Over,
    Recycle,
    Recycled,
    Refuse,
    Replace,
    Spawn,
    Stop,
    Tick,
)

HOUR_S = 3600.0


class Timing(Struct, frozen=True, kw_only=True):
    """Every period of the watchdog, in seconds. The defaults serve; tests scale them."""

    tick_s: float = 1.0
    beat_limit_s: float = 10.0  # ten missed beats: a loop that is merely busy turns in 10 s
    start_limit_s: float = 30.0  # imports on a Raspberry Pi's cold SD card take ten
    kill_wait_s: float = 1.0  # for the stacks of a hung worker to be written
    drain_margin_s: float = 2.0  # what a draining worker gets over its limit to say goodbye
    gap_s: float = 5.0  # a tick later than this: the clock stood still, not the worker
    backoff_first_s: float = 0.5
    backoff_max_s: float = 30.0
    settled_s: float = 60.0  # of service, after which the back-off begins anew
    crash_limit: int = 5  # deaths in a row, none of them ready: it will not get better
    park_backoff_max_s: float = 300.0  # for a parked daemon, which never gives up
    reply_s: float = 5.0  # a worker's answer to a question from the command line
    configured_s: float = 10.0  # a worker's answer to a reload


class GenerationState(Enum):
    """Where a generation is. GONE also covers one that was written off but not yet reaped."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


class GenerationTrigger(Enum):
    """What can happen to a generation."""

    READY = "ready"  # it can serve
    RETIRE = "retire"  # it is told to make room: by its successor, or by a stop
    LATE = "late"  # its deadline passed: start limit, heartbeat or drain limit
    EXIT = "exit"  # its process is gone


class GenerationAct(Enum):
    """What a cell of the table asks for."""

    NOTHING = "nothing"
    TAKE_OVER = "take over"  # it serves now; the former generation drains
    DRAIN = "drain"
    KILL = "kill"
    REPLACE = "replace"  # its death was not asked for: another one follows, or it is given up
    DONE = "done"  # its end was wanted


# Short names for the table alone.
_State, _Trigger, _Act = GenerationState, GenerationTrigger, GenerationAct
TABLE: dict[tuple[GenerationState, GenerationTrigger], tuple[GenerationState, GenerationAct]] = {
    (_State.STARTING, _Trigger.READY): (_State.SERVING, _Act.TAKE_OVER),
    (_State.STARTING, _Trigger.RETIRE): (_State.DRAINING, _Act.KILL),  # it holds no stream
    (_State.STARTING, _Trigger.LATE): (_State.GONE, _Act.KILL),
    (_State.STARTING, _Trigger.EXIT): (_State.GONE, _Act.REPLACE),
    (_State.SERVING, _Trigger.READY): (_State.SERVING, _Act.NOTHING),
    (_State.SERVING, _Trigger.RETIRE): (_State.DRAINING, _Act.DRAIN),
    (_State.SERVING, _Trigger.LATE): (_State.GONE, _Act.KILL),
    (_State.SERVING, _Trigger.EXIT): (_State.GONE, _Act.REPLACE),
    (_State.DRAINING, _Trigger.READY): (_State.DRAINING, _Act.NOTHING),
    (_State.DRAINING, _Trigger.RETIRE): (_State.DRAINING, _Act.DRAIN),  # a stop shortens it
    (_State.DRAINING, _Trigger.LATE): (_State.GONE, _Act.KILL),
    (_State.DRAINING, _Trigger.EXIT): (_State.GONE, _Act.DONE),
    (_State.GONE, _Trigger.READY): (_State.GONE, _Act.NOTHING),
    (_State.GONE, _Trigger.RETIRE): (_State.GONE, _Act.NOTHING),
    (_State.GONE, _Trigger.LATE): (_State.GONE, _Act.NOTHING),
    (_State.GONE, _Trigger.EXIT): (_State.GONE, _Act.NOTHING),
}


class Generation(Struct, frozen=True, kw_only=True):
    """One worker as the fleet sees it."""

    number: int
    state: GenerationState
    since_s: float  # when it entered the state
    beat_s: float  # when its loop last proved that it turns
    limit_s: float | None  # when it must have left the state; None: it may stay


class Fleet(Struct, frozen=True, kw_only=True):
    """All generations that live, oldest first, and what the restart policy remembers."""

    generations: tuple[Generation, ...] = ()
    last_number: int = 0
    spawn_at_s: float | None = None  # a restart that waits for its back-off
    restarts: int = 0  # since the last settled service
    unready_deaths: int = 0  # in a row
    recycle: str | None = None  # the reason of the recycle under way
    planned: tuple[float, ...] = ()  # recycles of the guard's within the last hour
    stopping: bool = False
    ticked_s: float | None = None

    def in_state(self, state: GenerationState) -> Generation | None:
        """Find the youngest generation in `state`."""
        return next((g for g in reversed(self.generations) if g.state is state), None)

    def by_number(self, number: int) -> Generation | None:
        """Find the living generation of that number."""
        return next((g for g in self.generations if g.number == number), None)


Step = tuple[Fleet, list[Effect]]


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """The numbers that `step` decides by."""

    timing: Timing = Timing()
    recycle_limit_s: float = 3630.0
    recycles_per_hour: int = 3  # of the guard's own; a person may ask as often as they like
    gives_up: bool = True  # False: parked daemons try for ever, with a longer back-off


class _Moment(Struct, frozen=True):
    """When a decision is made, and by which numbers."""

    now_s: float
    policy: RestartPolicy
    jitter: float


def step(
    fleet: Fleet, event: Event, now_s: float, policy: RestartPolicy, jitter: float = 0.0
) -> Step:
    """Decide the next state, and what has to be done for it to become true.

    `now_s` is monotonic. `jitter` in [0, 1) shortens a back-off by up to a quarter, so that
    daemons which crashed together do not come back together.
    """
    at = _Moment(now_s, policy, jitter)
    match event:
        case Begin():
            return _spawn(fleet, at)
        case Tick():
            return _tick(fleet, at)
        case Beat(number):
            return _changed(fleet, number, beat_s=now_s), []
        case BecameReady(number):
            return _happen(fleet, number, GenerationTrigger.READY, "", at)
        case Exited(number, reason):
            return _happen(fleet, number, GenerationTrigger.EXIT, reason, at)
        case Fail(number, reason, notice):
            return _noticed(
                _happen(fleet, number, GenerationTrigger.LATE, reason, at), notice=notice
            )
        case Escalate(reason):
            return fleet, [GiveUp(reason)]
        case Recycle(reason, planned):
            return _recycle(fleet, reason, planned, at)
        case Stop(limit_s=limit_s):
            return _stop(fleet, limit_s, at)


def is_healthy(fleet: Fleet, now_s: float, timing: Timing) -> bool:
    """Say whether the service manager may be told that all is well.

    It may while a heartbeat is fresh or while a replacement is inside its own deadline; a
    worker that hangs is the watchdog's affair for as long as it deals with it. A stop has its own
    limits.
    """
    if fleet.stopping:
        return True
    if fleet.spawn_at_s is not None and now_s <= fleet.spawn_at_s + timing.gap_s:
        return True
    slack_s = timing.gap_s  # between a deadline and the tick that acts on it
    return any(now_s <= _deadline_s(g, timing) + slack_s for g in fleet.generations)


# --- the events, one function each --------------------------------------------------------


def _happen(
    fleet: Fleet,
    number: int,
    trigger: GenerationTrigger,
    reason: str,
    at: _Moment,
) -> Step:
    generation = fleet.by_number(number)
    if generation is None:
        return fleet, []  # written off before: a late word from the dead
    state, act = TABLE[generation.state, trigger]
    fleet = _entered(fleet, generation, state, at.now_s)
    match act:
        case GenerationAct.NOTHING:
            return fleet, []
        case GenerationAct.TAKE_OVER:
            return _take_over(fleet, number, at)
        case GenerationAct.KILL:
            fleet, effects = _lost(fleet, generation, reason, at)
            return fleet, [Kill(number, reason, stacks=True), *effects]
        case GenerationAct.REPLACE:
            return _lost(fleet, generation, reason, at)
        case GenerationAct.DONE:
            return _rested(fleet)
        case GenerationAct.DRAIN:  # decided by a stop or a take-over, which know the limit
            raise AssertionError("a generation is retired by the fleet")


def _take_over(fleet: Fleet, number: int, at: _Moment) -> Step:
    fleet = replace(fleet, unready_deaths=0)
    for former in fleet.generations:
        if former.number != number and former.state is GenerationState.SERVING:
            limit_s = at.policy.recycle_limit_s
            fleet = _retired(fleet, former, limit_s, at)
            return fleet, [Drain(former.number, limit_s, number)]
    return (fleet, []) if fleet.recycle is None else _rested(fleet)


def _lost(fleet: Fleet, dead: Generation, reason: str, at: _Moment) -> Step:
    """Answer a death that was not asked for. `dead` is as it was before."""
    if fleet.stopping or dead.state is GenerationState.DRAINING:
        return _rested(fleet)
    if dead.state is GenerationState.STARTING and fleet.in_state(GenerationState.SERVING):
        error = f"generation {dead.number} did not start: {reason}"
        return replace(fleet, recycle=None), [Recycled(error)]
    if dead.state is GenerationState.SERVING and fleet.in_state(GenerationState.STARTING):
        return fleet, [Replace(dead.number, reason, 0.0)]  # its successor is on the way
    return _restart(fleet, dead, reason, at)


def _restart(fleet: Fleet, dead: Generation, reason: str, at: _Moment) -> Step:
    timing = at.policy.timing
    deaths = fleet.unready_deaths + (dead.state is GenerationState.STARTING)
    if deaths >= timing.crash_limit and at.policy.gives_up:
        why = f"{deaths} workers in a row died before they were ready; the last: {reason}"
        return replace(fleet, unready_deaths=deaths), [GiveUp(why)]
    settled = dead.state is GenerationState.SERVING and at.now_s - dead.since_s >= timing.settled_s
    restarts = 0 if settled else fleet.restarts
    delay_s = backoff_s(restarts, at.policy, at.jitter)
    fleet = replace(
        fleet, unready_deaths=deaths, restarts=restarts + 1, spawn_at_s=at.now_s + delay_s
    )
    effects: list[Effect] = [Replace(dead.number, reason, delay_s)]
    if delay_s > 0:
        return fleet, effects
    fleet, spawned = _spawn(fleet, at)
    return fleet, effects + spawned


def backoff_s(restarts: int, policy: RestartPolicy, jitter: float) -> float:
    """Count the seconds before a restart after `restarts` earlier ones: none, then doubling."""
    if restarts == 0:
        return 0.0
    timing = policy.timing
    ceiling_s = timing.backoff_max_s if policy.gives_up else timing.park_backoff_max_s
    doublings = min(restarts - 1, 20)  # beyond, the ceiling has long been reached
    return float(min(ceiling_s, timing.backoff_first_s * 2**doublings) * (1 - jitter / 4))


def _rested(fleet: Fleet) -> Step:
    """See whether the generation that ended was the last one of a recycle, or of all."""
    effects: list[Effect] = []
    if (
        fleet.recycle is not None
        and fleet.in_state(GenerationState.SERVING)
        and len(fleet.generations) == 1
    ):
        fleet = replace(fleet, recycle=None)
        effects.append(Recycled(None))
    if fleet.stopping and not fleet.generations:
        effects.append(Over())
    return fleet, effects


def _recycle(fleet: Fleet, reason: str, planned: bool, at: _Moment) -> Step:
    if fleet.stopping:
        return fleet, [Refuse("tidegate is stopping")]
    if fleet.recycle is not None or len(fleet.generations) > 1:
        return fleet, [Refuse("a recycle is under way")]
    if fleet.in_state(GenerationState.SERVING) is None:
        return fleet, [Refuse("no worker is serving, so there is nothing to take over from")]
    if planned:
        within = tuple(t for t in fleet.planned if at.now_s - t < HOUR_S)
        if len(within) >= at.policy.recycles_per_hour:
            return fleet, [Refuse(f"{len(within)} recycles within the hour are the limit")]
        fleet = replace(fleet, planned=(*within, at.now_s))
    return _spawn(replace(fleet, recycle=reason), at)


def _stop(fleet: Fleet, limit_s: float, at: _Moment) -> Step:
    again = fleet.stopping
    fleet = replace(fleet, stopping=True, spawn_at_s=None, recycle=None)
    effects: list[Effect] = []
    for generation in fleet.generations:
        _, act = TABLE[generation.state, GenerationTrigger.RETIRE]
        fleet = _retired(fleet, generation, limit_s, at)
        if again or act is GenerationAct.KILL:
            effects.append(Kill(generation.number, "stopped at once", stacks=False))
        else:
            effects.append(Drain(generation.number, limit_s, None))
    return fleet, effects or [Over()]


def _tick(fleet: Fleet, at: _Moment) -> Step:
    timing = at.policy.timing
    former_s, fleet = fleet.ticked_s, replace(fleet, ticked_s=at.now_s)
    if former_s is not None and at.now_s - former_s > timing.gap_s:
        gap_s = at.now_s - former_s
        return _moved(fleet, gap_s, at.now_s), [ClockGap(gap_s)]
    effects: list[Effect] = []
    for generation in fleet.generations:
        late = _lateness(generation, at.now_s, timing)
        if late is None:
            continue
        fleet, done = _happen(fleet, generation.number, GenerationTrigger.LATE, late, at)
        effects += done
    if fleet.spawn_at_s is not None and at.now_s >= fleet.spawn_at_s:
        fleet, spawned = _spawn(fleet, at)
        effects += spawned
    return fleet, effects


# --- small helpers ------------------------------------------------------------------------


def _noticed(done: Step, *, notice: bool) -> Step:
    """Let a worker that is killed tell its readers why."""
    fleet, effects = done
    return fleet, [replace(e, notice=notice) if isinstance(e, Kill) else e for e in effects]


def _lateness(generation: Generation, now_s: float, timing: Timing) -> str | None:
    """Say why a generation must go now, or None."""
    if generation.limit_s is not None and now_s > generation.limit_s:
        took_s = now_s - generation.since_s
        if generation.state is GenerationState.STARTING:
            return f"not ready after {took_s:.0f} s"
        return f"still draining after {took_s:.0f} s"
    silent_s = now_s - generation.beat_s
    if generation.state is not GenerationState.STARTING and silent_s > timing.beat_limit_s:
        return f"no heartbeat for {silent_s:.0f} s"
    return None


def _deadline_s(generation: Generation, timing: Timing) -> float:
    limit_s = generation.limit_s
    if generation.state is GenerationState.STARTING and limit_s is not None:
        return limit_s
    beat_limit_s = generation.beat_s + timing.beat_limit_s
    return beat_limit_s if limit_s is None else min(limit_s, beat_limit_s)


def _spawn(fleet: Fleet, at: _Moment) -> Step:
    number = fleet.last_number + 1
    newborn = Generation(
        number=number,
        state=GenerationState.STARTING,
        since_s=at.now_s,
        beat_s=at.now_s,
        limit_s=at.now_s + at.policy.timing.start_limit_s,
    )
    generations = (*fleet.generations, newborn)
    return replace(fleet, generations=generations, last_number=number, spawn_at_s=None), [
        Spawn(number)
    ]


def _entered(fleet: Fleet, generation: Generation, state: GenerationState, now_s: float) -> Fleet:
    """Put `generation` in `state`; the gone are no longer counted."""
    if state is GenerationState.GONE:
        rest = tuple(g for g in fleet.generations if g.number != generation.number)
        return replace(fleet, generations=rest)
    if state is generation.state:
        return fleet
    return _changed(
        fleet, generation.number, state=state, since_s=now_s, beat_s=now_s, limit_s=None
    )


def _retired(fleet: Fleet, generation: Generation, limit_s: float, at: _Moment) -> Fleet:
    state, _ = TABLE[generation.state, GenerationTrigger.RETIRE]
    fleet = _entered(fleet, generation, state, at.now_s)
    end_s = at.now_s + limit_s + at.policy.timing.drain_margin_s
    if generation.limit_s is not None and generation.state is GenerationState.DRAINING:
        end_s = min(end_s, generation.limit_s)
    return _changed(fleet, generation.number, limit_s=end_s)


def _moved(fleet: Fleet, gap_s: float, now_s: float) -> Fleet:
    """Start every deadline afresh; none can pass within a heartbeat's limit."""
    moved = tuple(
        replace(
            g,
            beat_s=now_s,
            since_s=g.since_s + gap_s,
            limit_s=None if g.limit_s is None else g.limit_s + gap_s,
        )
        for g in fleet.generations
    )
    spawn_at_s = None if fleet.spawn_at_s is None else now_s
    return replace(fleet, generations=moved, spawn_at_s=spawn_at_s)


def _changed(fleet: Fleet, number: int, **changes: object) -> Fleet:
    generations = tuple(
        replace(g, **changes) if g.number == number else g for g in fleet.generations
    )
    return replace(fleet, generations=generations)
