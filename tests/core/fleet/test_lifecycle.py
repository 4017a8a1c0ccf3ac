"""Generations and restarts, on virtual time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.fleet import events
from tidegate.core.fleet import lifecycle as life
from tidegate.core.fleet.lifecycle import GenerationAct, GenerationState, GenerationTrigger, Timing

POLICY = life.RestartPolicy()
TIMING = Timing()


@dataclass
class Rig:
    """A fleet with a clock, and all effects it had so far."""

    policy: life.RestartPolicy = POLICY
    fleet: life.Fleet = field(default_factory=life.Fleet)
    now_s: float = 1000.0
    effects: list[events.Effect] = field(default_factory=list)

    def do(self, event: events.Event, jitter: float = 0.0) -> list[events.Effect]:
        self.fleet, effects = life.step(self.fleet, event, self.now_s, self.policy, jitter)
        self.effects += effects
        return effects

    def serving(self) -> Rig:
        self.do(events.Begin())
        self.do(events.BecameReady(1))
        return self

    def tick_for(self, seconds: float, *beating: int) -> list[events.Effect]:
        """One tick a second, with a heartbeat of each of `beating` before it."""
        seen: list[events.Effect] = []
        for _ in range(int(seconds)):
            self.now_s += 1.0
            for number in beating:
                self.do(events.Beat(number))
            seen += self.do(events.Tick())
        return seen

    def states(self) -> dict[int, str]:
        return {g.number: g.state.value for g in self.fleet.generations}


def test_every_cell_is_filled() -> None:
    """Whatever happens in whatever state, the table knows what follows."""
    assert set(life.TABLE) == set(itertools.product(GenerationState, GenerationTrigger))


def test_nothing_comes_back() -> None:
    """No cell leads to an earlier state, and the gone stay gone."""
    order = list(GenerationState)
    for (state, _), (following, act) in life.TABLE.items():
        assert order.index(following) >= order.index(state)
        assert state is not GenerationState.GONE or act is GenerationAct.NOTHING


def test_first_generation_serves_when_it_is_ready() -> None:
    """A worker is started, and serves from its word on."""
    rig = Rig()
    assert rig.do(events.Begin()) == [events.Spawn(1)]
    assert rig.states() == {1: "starting"}
    assert rig.do(events.BecameReady(1)) == []
    assert rig.states() == {1: "serving"}


def test_worker_that_beats_is_left_alone() -> None:
    """With a heartbeat a second nothing ever happens."""
    assert Rig().serving().tick_for(1000, 1) == []


def test_silent_worker_is_killed_and_replaced_at_once() -> None:
    """Ten seconds without a heartbeat: stacks, kill, replacement."""
    rig = Rig().serving()
    assert rig.tick_for(10) == []
    assert rig.tick_for(1) == [
        events.Kill(1, "no heartbeat for 11 s", stacks=True),
        events.Replace(1, "no heartbeat for 11 s", 0.0),
        events.Spawn(2),
    ]


def test_start_has_a_limit() -> None:
    """A worker that is not ready after 30 s is replaced, however often it beats."""
    rig = Rig()
    rig.do(events.Begin())
    assert rig.tick_for(30, 1) == []
    assert events.Kill(1, "not ready after 31 s", stacks=True) in rig.tick_for(1, 1)


@pytest.mark.parametrize("asleep_s", [5.1, 60.0, 1e6])
def test_clock_gap_starts_every_deadline_afresh(asleep_s: float) -> None:
    """A late tick kills no worker, nor does anything within a period after it."""
    rig = Rig().serving()
    rig.do(events.Recycle("asked"))
    rig.tick_for(1, 1)
    rig.now_s += asleep_s
    assert rig.do(events.Tick()) == [events.ClockGap(pytest.approx(asleep_s))]
    assert rig.tick_for(9) == []


def test_late_tick_within_the_gap_is_no_gap() -> None:
    """A tick up to 5 s late judges as usual."""
    rig = Rig().serving()
    rig.tick_for(8)
    rig.now_s += 4.9
    assert any(isinstance(effect, events.Kill) for effect in rig.do(events.Tick()))


def test_recycle_starts_the_next_before_the_former_drains() -> None:
    """Start, ready, drain with the successor's name, gone: in this order."""
    rig = Rig().serving()
    assert rig.do(events.Recycle("asked")) == [events.Spawn(2)]
    assert rig.states() == {1: "serving", 2: "starting"}
    assert rig.do(events.BecameReady(2)) == [events.Drain(1, POLICY.recycle_limit_s, 2)]
    assert rig.states() == {1: "draining", 2: "serving"}
    assert rig.do(events.Exited(1, "exited (0)")) == [events.Recycled(None)]
    assert rig.do(events.Recycle("again")) == [events.Spawn(3)]


def test_second_recycle_is_refused_until_the_former_is_gone() -> None:
    """There are never more than two generations."""
    rig = Rig().serving()
    rig.do(events.Recycle("asked"))
    assert isinstance(rig.do(events.Recycle("asked"))[0], events.Refuse)
    rig.do(events.BecameReady(2))
    assert isinstance(rig.do(events.Recycle("asked"))[0], events.Refuse)


def test_recycle_whose_start_fails_changes_nothing() -> None:
    """The former generation goes on and the next recycle may try again."""
    rig = Rig().serving()
    rig.do(events.Recycle("asked"))
    (effect,) = rig.do(events.Exited(2, "exited (1)"))
    assert effect == events.Recycled("generation 2 did not start: exited (1)")
    assert rig.states() == {1: "serving"}
    assert rig.do(events.Recycle("asked")) == [events.Spawn(3)]


def test_death_during_a_recycle_waits_for_the_successor() -> None:
    """If the former dies, the successor that is starting is its replacement."""
    rig = Rig().serving()
    rig.do(events.Recycle("asked"))
    assert rig.do(events.Exited(1, "killed")) == [events.Replace(1, "killed", 0.0)]
    assert rig.do(events.BecameReady(2)) == [events.Recycled(None)]


def test_drain_has_a_limit() -> None:
    """A former generation that is still there after the limit and its margin is killed."""
    rig = Rig(policy=life.RestartPolicy(recycle_limit_s=20.0)).serving()
    rig.do(events.Recycle("asked"))
    rig.do(events.BecameReady(2))
    assert rig.tick_for(22, 1, 2) == []
    assert rig.tick_for(1, 1, 2) == [
        events.Kill(1, "still draining after 23 s", stacks=True),
        events.Recycled(None),
    ]


def test_planned_recycles_have_a_budget() -> None:
    """The guard gets three an hour; a person asking is not counted and not limited."""
    rig = Rig().serving()
    for number in range(2, 5):
        assert rig.do(events.Recycle("memory", planned=True)) == [events.Spawn(number)]
        rig.do(events.BecameReady(number))
        rig.do(events.Exited(number - 1, "exited (0)"))
    (refusal,) = rig.do(events.Recycle("memory", planned=True))
    assert refusal == events.Refuse("3 recycles within the hour are the limit")
    assert rig.do(events.Recycle("asked")) == [events.Spawn(5)]
    rig.do(events.Exited(5, "exited (1)"))
    rig.now_s += life.HOUR_S
    assert rig.do(events.Recycle("memory", planned=True)) == [events.Spawn(6)]


def test_back_off_doubles_to_its_ceiling_and_service_ends_it() -> None:
    """0, 0.5, 1, 2 … 30 s between deaths soon after ready; at once after a minute of service."""
    rig = Rig()
    rig.do(events.Begin())
    delays = []
    for number in range(1, 11):
        rig.do(events.BecameReady(number))
        replaced = rig.do(events.Exited(number, "exited (1)"))[0]
        assert isinstance(replaced, events.Replace)
        delays.append(replaced.delay_s)
        rig.tick_for(replaced.delay_s + 1)
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    rig.do(events.BecameReady(11))
    rig.tick_for(60, 11)
    assert rig.do(events.Exited(11, "x")) == [events.Replace(11, "x", 0.0), events.Spawn(12)]


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_back_off_stays_in_its_bounds(restarts: int, jitter: float) -> None:
    """Jitter shortens by at most a quarter, and nothing is longer than the ceiling."""
    full_s = life.backoff_s(restarts, POLICY, 0.0)
    assert 0.75 * full_s <= life.backoff_s(restarts, POLICY, jitter) <= full_s <= 30.0


def crash(rig: Rig, times: int) -> list[events.Effect]:
    """Workers that die before they are ready, one after the other."""
    seen: list[events.Effect] = []
    for _ in range(times):
        while rig.fleet.in_state(GenerationState.STARTING) is None:
            rig.now_s += 0.5
            seen += rig.do(events.Tick())
        seen += rig.do(events.Exited(rig.fleet.last_number, "exited (1)"))
    return seen


def test_crash_loop_gives_up_after_five() -> None:
    """Five deaths without a ready between them end the daemon."""
    rig = Rig()
    rig.do(events.Begin())
    assert not any(isinstance(effect, events.GiveUp) for effect in crash(rig, 4))
    assert isinstance(crash(rig, 1)[-1], events.GiveUp)


def test_ready_in_between_is_no_crash_loop() -> None:
    """One that became ready starts the count anew."""
    rig = Rig()
    rig.do(events.Begin())
    crash(rig, 4)
    rig.tick_for(10)
    rig.do(events.BecameReady(rig.fleet.last_number))
    rig.do(events.Exited(rig.fleet.last_number, "exited (1)"))
    assert not any(isinstance(effect, events.GiveUp) for effect in crash(rig, 4))


def test_workers_that_hang_at_their_start_are_a_crash_loop_too() -> None:
    """However long each takes to be given up: five in a row are enough."""
    rig = Rig()
    rig.do(events.Begin())
    limit_s = life.Timing().start_limit_s
    rig.tick_for(4 * limit_s)
    assert not any(isinstance(effect, events.GiveUp) for effect in rig.effects)
    rig.tick_for(2 * limit_s)
    given_up = [effect for effect in rig.effects if isinstance(effect, events.GiveUp)]
    assert "not ready after" in given_up[0].reason


def test_parked_daemon_never_gives_up() -> None:
    """It tries with a back-off of up to five minutes instead."""
    rig = Rig(policy=life.RestartPolicy(gives_up=False))
    rig.do(events.Begin())
    effects = crash(rig, 15)
    assert not any(isinstance(effect, events.GiveUp) for effect in effects)
    assert max(e.delay_s for e in effects if isinstance(e, events.Replace)) == 300.0


def test_stop_drains_and_is_over_when_all_are_gone() -> None:
    """A stop drains the serving one, kills the starting one, and ends after both."""
    rig = Rig().serving()
    rig.do(events.Recycle("asked"))
    assert rig.do(events.Stop(limit_s=30.0)) == [
        events.Drain(1, 30.0, None),
        events.Kill(2, "stopped at once", stacks=False),
    ]
    assert rig.do(events.Exited(2, "killed")) == []
    assert rig.do(events.Exited(1, "exited (0)")) == [events.Over()]


def test_second_stop_ends_at_once() -> None:
    """A second stop does not wait for streams."""
    rig = Rig().serving()
    rig.do(events.Stop(limit_s=30.0))
    assert rig.do(events.Stop(limit_s=30.0)) == [events.Kill(1, "stopped at once", stacks=False)]


def test_stop_shortens_a_drain_and_never_lengthens_it() -> None:
    """A generation that drains for a recycle gets the stop's limit, if that is sooner."""
    rig = Rig(policy=life.RestartPolicy(recycle_limit_s=10.0)).serving()
    rig.do(events.Recycle("asked"))
    rig.do(events.BecameReady(2))
    rig.do(events.Stop(limit_s=60.0))
    kills = [e.number for e in rig.tick_for(13, 1, 2) if isinstance(e, events.Kill)]
    assert kills == [1]


def test_stop_without_workers_is_over() -> None:
    """Between a death and its restart there is nothing to wait for, and nothing is started."""
    rig = Rig().serving()
    rig.do(events.Exited(1, "x"))
    rig.do(events.Exited(2, "x"))
    assert rig.fleet.spawn_at_s is not None
    assert rig.do(events.Stop(limit_s=30.0)) == [events.Over()]
    assert rig.tick_for(60) == []


def test_condemned_worker_is_killed_and_replaced() -> None:
    """What the guard condemns goes like one that hangs."""
    rig = Rig().serving()
    assert rig.do(events.Fail(1, "memory"))[0] == events.Kill(1, "memory", stacks=True)
    assert rig.states() == {2: "starting"}


def test_word_from_a_generation_that_is_gone_is_ignored() -> None:
    """A late message of a written-off worker changes nothing."""
    rig = Rig().serving()
    for event in (
        events.Beat(7),
        events.BecameReady(7),
        events.Exited(7, "x"),
        events.Fail(7, "x"),
    ):
        assert rig.do(event) == []
    assert rig.states() == {1: "serving"}


def test_it_is_healthy_while_a_worker_is_inside_its_deadline() -> None:
    """systemd is told all is well for a fresh heartbeat or a replacement in time, else not."""
    rig = Rig().serving()
    assert life.is_healthy(rig.fleet, rig.now_s + 9, TIMING)
    assert not life.is_healthy(
        rig.fleet, rig.now_s + 16, TIMING
    )  # nothing was done about the silence
    rig.do(events.Exited(1, "x"))
    assert life.is_healthy(rig.fleet, rig.now_s + 29, TIMING)
    assert not life.is_healthy(rig.fleet, rig.now_s + 36, TIMING)
    assert not life.is_healthy(life.Fleet(), rig.now_s, TIMING)


EVENTS = st.one_of(
    st.just(events.Tick()),
    st.builds(events.BecameReady, st.integers(1, 8)),
    st.builds(events.Beat, st.integers(1, 8)),
    st.builds(events.Exited, st.integers(1, 8), st.just("x")),
    st.builds(events.Fail, st.integers(1, 8), st.just("x")),
    st.builds(events.Recycle, st.just("x"), st.booleans()),
    st.just(events.Stop(limit_s=3.0)),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 8)), max_size=60))
def test_the_fleet_keeps_its_promises(story: list[tuple[events.Event, float]]) -> None:
    """At most two generations, one not ready; none is left when over; none is idle for ever."""
    rig = Rig()
    rig.do(events.Begin())
    for event, pause_s in story:
        rig.now_s += pause_s
        effects = rig.do(event)
        generations = rig.fleet.generations
        states = [g.state for g in generations]
        assert len(generations) <= 2
        assert states.count(GenerationState.STARTING) <= 1
        assert states.count(GenerationState.SERVING) <= 1
        assert GenerationState.GONE not in states
        gave_up = any(isinstance(effect, events.GiveUp) for effect in rig.effects)
        if not generations:
            assert rig.fleet.stopping or rig.fleet.spawn_at_s is not None or gave_up
        if any(isinstance(effect, events.Over) for effect in effects):
            assert generations == ()
        if rig.fleet.stopping:
            assert not any(isinstance(effect, events.Spawn) for effect in effects)
        if gave_up:
            break
