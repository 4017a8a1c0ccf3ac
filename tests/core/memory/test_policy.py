"""What is done about memory, with numbers for samples and for time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.core.memory import levels as wm
from tidegate.core.memory import policy as ld
from tidegate.core.memory.decision import Decision, Inputs, PolicyState
from tidegate.core.memory.growth import Finding
from tidegate.core.memory.report import StepReport
from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.settings import MIB, Growth

BASE = 44 * MIB
BUDGET = 256 * MIB
LIMITS = wm.BudgetLimits(budget_bytes=BUDGET, hard=True, machine_bytes=8192 * MIB)
SPENDABLE = wm.spendable_bytes(BUDGET, BASE)
LEAK = 6 * MIB


def reading(ratio: float, *, explained: float = 1.0, used: int | None = None) -> wm.Reading:
    """A worker that holds `ratio` of the spendable part; runs explain that share of it."""
    held = int(ratio * SPENDABLE) + 1
    return wm.Reading(
        used_bytes=held + BASE + 13 * MIB if used is None else used,
        held_bytes=held,
        base_bytes=BASE,
        ledger_bytes=int(explained * held),
        available_bytes=4096 * MIB,
    )


def inputs(now_s: float, seen: wm.Reading, **more: Any) -> Inputs:
    """A worker that has served for a day, with recycles left."""
    facts = {"generation": 1, "age_s": 86400.0, "recycles_left": 3, "active_runs": 5} | more
    return Inputs(now_s=now_s, reading=seen, limits=LIMITS, **facts)


def finding(bytes_per_h: float, *, confirmed: bool = True) -> Finding:
    """A bucket's judgement."""
    return Finding(
        points=48,
        span_s=47 * 300.0,
        rss_bytes=100 * MIB,
        ledger_range_bytes=0,
        bytes_per_h=bytes_per_h,
        rss_bytes_per_h=bytes_per_h,
        halves_bytes_per_h=(bytes_per_h, bytes_per_h),
        z=5.0 if confirmed else 0.0,
        is_hit=confirmed,
        is_confirmed=confirmed,
    )


class Played:
    """A policy state and every decision that it made."""

    def __init__(self) -> None:
        self.state = PolicyState()
        self.decisions: list[Decision] = []
        self.now_s = 0.0

    def tick(self, seen: wm.Reading, *, after_s: float = 1.0, **more: Any) -> Decision:
        """One more second."""
        self.now_s += after_s
        self.state, decision = ld.decide(self.state, inputs(self.now_s, seen, **more))
        self.decisions.append(decision)
        return decision

    def ticks(self, count: int, seen: wm.Reading, **more: Any) -> list[Decision]:
        """Some more seconds of the same."""
        return [self.tick(seen, **more) for _ in range(count)]


# --- reclaim --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "steps"),
    [
        (0.5, ()),
        (0.65, (ReclaimStep.TRIM,)),
        (0.75, (ReclaimStep.STALE, ReclaimStep.TRIM)),
        (0.85, (ReclaimStep.STALE, ReclaimStep.STALLED, ReclaimStep.TRIM)),
        (
            0.95,
            (
                ReclaimStep.STALE,
                ReclaimStep.FINISHED,
                ReclaimStep.STALLED,
                ReclaimStep.BACKGROUND,
                ReclaimStep.WINDOWS,
                ReclaimStep.TRIM,
            ),
        ),
    ],
)
def test_each_level_has_its_steps(ratio: float, steps: tuple[ReclaimStep, ...]) -> None:
    """What costs no reader anything comes first, and the trim last."""
    assert Played().tick(reading(ratio)).steps == steps


@pytest.mark.parametrize(
    ("ratio", "squeeze", "shed"),
    [(0.65, False, None), (0.75, True, None), (0.85, True, "memory level 3")],
)
def test_squeeze_and_shed_hold_while_their_level_does(
    ratio: float, squeeze: bool, shed: str | None
) -> None:
    """From level 2 windows are halved, from level 3 new runs are refused."""
    for decision in Played().ticks(3, reading(ratio)):
        assert (decision.squeeze, decision.shed) == (squeeze, shed)


def test_steps_are_repeated_while_the_level_holds() -> None:
    """It acts on the level, not on its change; only the trim has a pause."""
    decisions = Played().ticks(62, reading(0.75))
    assert all(ReclaimStep.STALE in decision.steps for decision in decisions)
    tidied = [n for n, decision in enumerate(decisions) if ReclaimStep.TRIM in decision.steps]
    assert tidied == [0, 30, 60]


def test_nothing_is_ordered_while_an_order_is_carried_out() -> None:
    """A worker is asked again when it has answered."""
    assert Played().tick(reading(0.9), relieving=True).steps == ()


@pytest.mark.parametrize(
    ("ratio", "stale_after_s"), [(0.0, 600), (0.70, 600), (0.79, 315), (0.88, 30), (2.0, 30)]
)
def test_stale_limits_shrink_with_pressure(ratio: float, stale_after_s: float) -> None:
    """Ten minutes when memory begins to be short, half a minute near the top."""
    assert ld.stale_after_s(ratio) == pytest.approx(stale_after_s)


def report(freed_bytes: int, promised_bytes: int = 100) -> tuple[StepReport, ...]:
    return (
        StepReport(
            step="stale", runs=1, promised_bytes=promised_bytes, freed_bytes=freed_bytes, took_s=0.1
        ),
    )


def test_what_is_kept_goes_after_a_minute_at_level_1() -> None:
    """Before, a finished answer is there as long as it was promised."""
    played = Played()
    played.ticks(5, reading(0.5))
    first = played.ticks(60, reading(0.65), active_runs=0)
    assert not any(ReclaimStep.KEPT in decision.steps for decision in first)
    assert ReclaimStep.KEPT in played.tick(reading(0.65), active_runs=0).steps
    played.ticks(30, reading(0.5), active_runs=0)
    assert ReclaimStep.KEPT not in played.tick(reading(0.65), active_runs=0).steps


def test_a_step_that_twice_frees_next_to_nothing_is_skipped_for_a_while() -> None:
    """Under 5 % of what it promised, two times in a row."""
    played = Played()
    assert ReclaimStep.STALE in played.tick(reading(0.75), relieved=report(4)).steps
    assert ReclaimStep.STALE in played.tick(reading(0.75), relieved=report(5)).steps
    assert ReclaimStep.STALE in played.tick(reading(0.75), relieved=report(4)).steps
    decision = played.tick(reading(0.75), relieved=report(0))
    assert decision.skipped == (ReclaimStep.STALE,)
    assert ReclaimStep.STALE not in decision.steps
    assert ReclaimStep.STALE not in played.tick(reading(0.75), after_s=4.0).steps
    while played.tick(reading(0.75), after_s=4.0).skipped:
        assert played.now_s < 400
    assert played.now_s >= ld.SKIP_S


def test_a_step_with_nothing_to_do_is_not_useless() -> None:
    """A promise of nothing is kept."""
    played = Played()
    for _ in range(5):
        assert played.tick(reading(0.75), relieved=report(0, promised_bytes=0)).skipped == ()


# --- unexplained memory ---------------------------------------------------------------------------


def test_unexplained_memory_is_trimmed_documented_looked_at_again_and_recycled() -> None:
    """In this order, and before any new run is refused."""
    played = Played()
    decisions = played.ticks(10, reading(0.75, explained=0.2))
    assert ReclaimStep.TRIM in decisions[0].steps
    assert [n for n, d in enumerate(decisions) if d.evidence == "recycle: memory"] == [5]
    assert [n for n, d in enumerate(decisions) if d.recycle == "memory"] == [6]
    assert all(d.shed is None for d in decisions)
    assert decisions[0].cause == "unaccounted"


def test_explained_memory_never_causes_a_recycle() -> None:
    """However full it is."""
    for ratio in (0.75, 0.85, 0.95, 1.2):
        assert all(d.recycle is None for d in Played().ticks(600, reading(ratio, explained=0.8)))


def test_a_level_below_2_never_causes_a_recycle() -> None:
    """A quarter of the spendable part may be unexplained as long as there is room."""
    assert all(d.recycle is None for d in Played().ticks(60, reading(0.6, explained=0.0)))


def test_what_every_worker_keeps_is_no_reason_to_recycle() -> None:
    """At a small budget a quarter of the spendable part is less than a new worker would keep."""
    limits = wm.BudgetLimits(budget_bytes=128 * MIB, hard=True, machine_bytes=8192 * MIB)
    held = 16 * MIB
    seen = replace(reading(0.0), held_bytes=held, ledger_bytes=0, used_bytes=held + BASE)
    state, decisions = PolicyState(), []
    for second in range(60):
        state, decision = ld.decide(state, replace(inputs(float(second), seen), limits=limits))
        decisions.append(decision)
    assert held > ld.UNEXPLAINED_SHARE * decisions[0].spendable_bytes
    assert all(d.recycle is None for d in decisions)


def test_free_places_in_the_allocator_are_trimmed_until_that_is_of_no_use() -> None:
    """Slack is no leak; but if a trim does not get it back, only a recycle does."""
    played, slack = Played(), int(0.5 * SPENDABLE)
    decisions = played.ticks(100, reading(0.75, explained=0.0), slack_bytes=slack)
    assert {d.cause for d in decisions} == {"slack"}
    assert all(d.recycle is None for d in decisions)
    useless = (StepReport(step="tidy", runs=0, promised_bytes=slack, freed_bytes=0, took_s=0.1),)
    for _ in range(2):
        played.tick(reading(0.75, explained=0.0), slack_bytes=slack, relieved=useless)
    decisions = played.ticks(10, reading(0.75, explained=0.0), slack_bytes=slack)
    assert decisions[0].cause == "unaccounted"
    assert any(d.recycle == "memory" for d in decisions)


def test_what_is_gone_at_the_second_look_is_not_recycled() -> None:
    """It looks again just before it does harm."""
    played = Played()
    played.ticks(6, reading(0.75, explained=0.0))
    assert played.state.harm is not None
    assert played.tick(reading(0.75, explained=0.9)).recycle is None
    assert played.state.harm is None


def test_harm_waits_for_its_evidence_but_not_for_ever() -> None:
    """A disk that hangs does not keep a full worker alive."""
    played = Played()
    played.ticks(6, reading(0.75, explained=0.0))
    waiting = played.ticks(5, reading(0.75, explained=0.0), evidence_pending=True)
    assert [d.recycle for d in waiting] == [None, None, "memory", None, None]


def test_a_worker_that_does_not_answer_is_recycled_all_the_same() -> None:
    """A trim that was ordered has five seconds to show."""
    played = Played()
    played.tick(reading(0.75, explained=0.0))
    decisions = played.ticks(10, reading(0.75, explained=0.0), relieving=True)
    assert any(d.recycle == "memory" for d in decisions)


def test_one_recycle_at_a_time() -> None:
    """While a generation drains nothing more is asked for."""
    decisions = Played().ticks(120, reading(0.75, explained=0.0), is_recycling=True)
    assert all(d.recycle is None and d.refused is None for d in decisions)


def test_a_spent_budget_closes_the_door_and_says_so() -> None:
    """Then the service manager decides."""
    decision = Played().ticks(20, reading(0.75, explained=0.0), recycles_left=0)[-1]
    assert decision.recycle is None
    assert decision.refused == "the hour's recycles are spent"
    assert decision.shed is not None
    assert "recycles are spent" in decision.shed


def test_a_second_worker_needs_room() -> None:
    """Its base must fit into what is left below level 5, which would end one of the two."""
    full = reading(0.75, explained=0.0, used=int(wm.LAST_ENTER * BUDGET) - BASE + MIB)
    decision = Played().ticks(20, full)[-1]
    assert decision.recycle is None
    assert decision.refused == "no room for a second worker, 43 MiB are left of 44"


@pytest.mark.parametrize("budget", [wm.LEAST_BUDGET_BYTES, 256 * MIB, 1024 * MIB])
def test_at_level_2_there_is_room_for_a_second_worker_at_every_budget(budget: int) -> None:
    """The spendable part leaves it out from the beginning."""
    held = max(17 * MIB, int(0.80 * wm.spendable_bytes(budget, BASE)))
    seen = wm.Reading(
        used_bytes=held + BASE + wm.RESERVE_BYTES,
        held_bytes=held,
        base_bytes=BASE,
        ledger_bytes=0,
        available_bytes=4096 * MIB,
    )
    state, decided = PolicyState(), []
    for second in range(20):
        given_now = inputs(float(second), seen)
        limits = wm.BudgetLimits(budget_bytes=budget, hard=True, machine_bytes=8192 * MIB)
        state, decision = ld.decide(state, replace(given_now, limits=limits))
        decided.append(decision)
    assert any(d.recycle == "memory" for d in decided)
    assert all(d.refused is None for d in decided)


# --- growth and age -------------------------------------------------------------------------------


def test_confirmed_growth_is_told_once() -> None:
    """And again when it had stopped and comes back."""
    played = Played()
    slow = finding(0.01 * MIB)
    told = [d.alarm for d in played.ticks(5, reading(0.1, explained=0.0), finding=slow)]
    assert [bool(alarm) for alarm in told] == [True, False, False, False, False]
    played.tick(reading(0.1, explained=0.0), finding=finding(0, confirmed=False))
    assert played.tick(reading(0.1, explained=0.0), finding=slow).alarm
    assert all(d.recycle is None for d in played.decisions)


def test_a_leak_that_fills_the_room_within_a_day_is_recycled_in_a_quiet_minute() -> None:
    """Not while runs are active, as long as there is time."""
    played = Played()
    leak = finding(LEAK)
    busy = played.ticks(600, reading(0.2, explained=0.0), finding=leak)
    assert all(d.recycle is None for d in busy)
    assert busy[0].forecast_s == pytest.approx(0.8 * SPENDABLE / LEAK * 3600, rel=0.01)
    quiet = played.ticks(3, reading(0.2, explained=0.0), finding=leak, active_runs=0)
    assert [d.recycle for d in quiet] == [None, "growth", None]
    assert quiet[0].evidence == "recycle: growth"


def test_a_quiet_minute_is_not_waited_for_longer_than_an_hour() -> None:
    """A gateway that is always busy is recycled all the same: that cuts no stream."""
    played = Played()
    played.ticks(3595, reading(0.2, explained=0.0), finding=finding(LEAK))
    assert any(
        d.recycle == "growth"
        for d in played.ticks(10, reading(0.2, explained=0.0), finding=finding(LEAK))
    )


def test_a_leak_that_takes_longer_than_a_day_is_told_and_left() -> None:
    """Nothing is recycled for what a week's restart would cure."""
    decisions = Played().ticks(7200, reading(0.1, explained=0.0), finding=finding(MIB))
    assert all(d.recycle is None for d in decisions)
    assert decisions[0].alarm


def test_growth_with_no_way_out_is_level_4() -> None:
    """Under ten minutes to go and no recycle left: what can go, goes."""
    fast = finding(20 * SPENDABLE)
    decision = Played().ticks(3, reading(0.5, explained=0.0), finding=fast, recycles_left=0)[-1]
    assert decision.level == 4
    assert ReclaimStep.BACKGROUND in decision.steps
    assert decision.shed is not None


def test_periods_scale_with_the_bucket() -> None:
    """What waits an hour with buckets of five minutes waits twelve seconds with one of one."""
    played = Played()
    scaled = {"finding": finding(600 * LEAK), "growth": Growth(bucket_s=1, skip_s=2, confirm_s=3)}
    decisions = played.ticks(20, reading(0.2, explained=0.0), **scaled)
    assert next(n for n, d in enumerate(decisions) if d.recycle) <= 14


def test_an_old_worker_is_recycled_in_a_quiet_minute() -> None:
    """If an age is set at all."""
    old = {"age_s": 90000.0, "active_runs": 0}
    assert all(d.recycle is None for d in Played().ticks(5, reading(0.1), **old))
    young = Played().ticks(5, reading(0.1), recycle_after_s=90001.0, **old)
    assert all(d.recycle is None for d in young)
    decisions = Played().ticks(3, reading(0.1), recycle_after_s=86400.0, **old)
    assert [d.recycle for d in decisions] == [None, "age", None]


# --- the last level -------------------------------------------------------------------------------

FULL = reading(0.9, used=int(0.96 * BUDGET))


def test_the_last_resort_takes_three_readings_in_a_row() -> None:
    """The second orders the evidence, the third looks again; one lower reading begins anew."""
    played = Played()
    seen = [FULL, FULL, reading(0.5), FULL, FULL, FULL, FULL]
    decisions = [played.tick(each) for each in seen]
    assert [d.cut for d in decisions] == [None] * 5 + ["memory", None]
    assert decisions[4].evidence == "cut: memory"


def test_cuts_that_do_not_help_are_the_service_managers_affair() -> None:
    """After as many as recycles are allowed, if a service manager would start us again."""

    def last(may_give_up: bool) -> tuple[int, int]:
        played = Played()
        for _ in range(600):
            played.tick(FULL, recycles_left=0, may_give_up=may_give_up)
        cuts = sum(d.cut is not None for d in played.decisions)
        return cuts, sum(d.give_up is not None for d in played.decisions)

    cuts, gave_up = last(may_give_up=True)
    assert cuts == 1
    assert gave_up >= 1
    cuts, gave_up = last(may_give_up=False)
    assert cuts > 3
    assert gave_up == 0


# --- from one generation to the next --------------------------------------------------------------


@pytest.mark.parametrize("seen_between", [True, False])
def test_a_worker_that_was_ended_takes_its_level_with_it(seen_between: bool) -> None:
    """The next one serves at once: what it holds is judged, and nothing that was before."""
    played = Played()
    assert played.ticks(3, reading(0.9, used=BUDGET))[-1].level == 5
    if seen_between:
        assert played.tick(reading(0.0, used=60 * MIB), generation=0).level == 0
    decision = played.tick(reading(0.02), generation=2)
    assert (decision.level, decision.shed) == (0, None)
    assert played.tick(reading(0.85), generation=2).level == 3


def test_a_recycle_that_was_planned_keeps_the_level_while_the_former_worker_drains() -> None:
    """Both hold memory, and a level is left only after its dwell."""
    played = Played()
    assert played.tick(reading(0.85)).level == 3
    for decision in played.ticks(9, reading(0.5), generation=2, is_recycling=True):
        assert decision.level == 3
    assert played.ticks(3, reading(0.5), generation=2)[-1].level == 0


def test_a_record_without_a_generation_decides_as_it_did() -> None:
    """What a former version wrote down says nothing of whose level it was."""
    before = PolicyState(mark=wm.Watermark(level=3))
    raw = msgspec.json.decode(msgspec.json.encode(before))
    del raw["generation"], raw["raised_s"]
    read = msgspec.convert(raw, PolicyState)
    _, decision = ld.decide(read, inputs(1.0, reading(0.5), generation=2))
    assert decision.level == 3


def test_a_gap_in_the_clock_never_harms() -> None:
    """What was counted before means nothing after it."""
    played = Played()
    for _ in range(20):
        assert played.tick(FULL).cut is None
        assert played.tick(FULL, after_s=3600.0).cut is None
        assert played.state.harm is None


def test_observing_decides_the_same_and_says_it_once_an_hour() -> None:
    """A rehearsal: no order is carried out, so what is called for stays called for."""
    played = Played()
    decisions = played.ticks(4000, reading(0.75, explained=0.0), enforces=False)
    assert sum(d.recycle is not None for d in decisions) == 2


# --- always ---------------------------------------------------------------------------------------

READINGS = st.builds(
    reading,
    st.floats(0, 1.3),
    explained=st.floats(0, 1),
    used=st.one_of(st.none(), st.integers(0, 2 * BUDGET)),
)
FACTS = st.fixed_dictionaries(
    {
        "recycles_left": st.integers(0, 3),
        "is_recycling": st.booleans(),
        "relieving": st.booleans(),
        "evidence_pending": st.booleans(),
        "active_runs": st.integers(0, 3),
        "slack_bytes": st.sampled_from([0, SPENDABLE]),
        "finding": st.sampled_from([None, finding(0, confirmed=False), finding(LEAK)]),
        "relieved": st.sampled_from([(), report(0), report(100)]),
        "generation": st.sampled_from([0, 1, 2]),
    }
)


@settings(deadline=None)
@given(st.lists(st.tuples(READINGS, FACTS, st.sampled_from([1.0, 1.0, 2.0, 30.0])), max_size=60))
def test_no_harm_without_evidence_and_a_second_look(
    steps: list[tuple[wm.Reading, dict[str, Any], float]],
) -> None:
    """Whatever happens, each harm has its evidence ordered before, and one who repeats agrees."""
    played, ordered = Played(), {"recycle": False, "cut": False}
    for seen, facts, after_s in steps:
        before = played.state
        decision = played.tick(seen, after_s=after_s, **facts)
        again = ld.decide(before, inputs(played.now_s, seen, **facts))
        assert again == (played.state, decision)
        for kind, done in (("recycle", decision.recycle), ("cut", decision.cut)):
            if done or (kind == "cut" and decision.give_up):
                assert ordered[kind], f"{kind} without evidence"
                ordered[kind] = False
        if decision.evidence and ":" in decision.evidence:
            ordered[decision.evidence.split(":")[0]] = True
        if after_s > ld.GAP_S:
            assert not (decision.recycle)
            assert not (decision.cut)
        if decision.recycle:
            assert facts["recycles_left"]
            assert not facts["is_recycling"]
            assert facts["generation"]
        assert len(decision.steps) <= len(ReclaimStep)


@settings(deadline=None)
@given(READINGS, FACTS, st.floats(0, 0.5))
def test_severity_is_monotone(seen: wm.Reading, facts: dict[str, Any], more: float) -> None:
    """More memory never means fewer steps, an open door or a longer patience."""
    worse = replace(
        seen,
        held_bytes=seen.held_bytes + int(more * SPENDABLE),
        used_bytes=seen.used_bytes + int(more * SPENDABLE),
    )
    first, second = Played().tick(seen, **facts), Played().tick(worse, **facts)
    assert second.level >= first.level
    assert set(second.steps) >= set(first.steps) - {ReclaimStep.TRIM}
    assert second.stale_after_s <= first.stale_after_s
    assert second.squeeze >= first.squeeze
    assert second.shed or not first.shed


@settings(deadline=None)
@given(st.lists(st.tuples(READINGS, FACTS), max_size=10))
def test_what_is_written_down_decides_the_same_when_read_back(
    steps: list[tuple[wm.Reading, dict[str, Any]]],
) -> None:
    """State, inputs and decision survive JSON."""
    played = Played()
    for seen, facts in steps:
        before = msgspec.json.encode(played.state)
        decision = played.tick(seen, **facts)
        asked = msgspec.json.encode(inputs(played.now_s, seen, **facts))
        _, again = ld.decide(
            msgspec.json.decode(before, type=PolicyState),
            msgspec.json.decode(asked, type=Inputs),
        )
        assert msgspec.json.encode(again) == msgspec.json.encode(decision)
