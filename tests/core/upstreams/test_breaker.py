"""A failing upstream is set aside, tried by one request, and back with the first success."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.upstreams.breaker import (
    FAILURES_TO_OPEN,
    FIRST_ASIDE_S,
    MOST_ASIDE_S,
    TABLE,
    TRIAL_S,
    Breaker,
    BreakerAct,
    BreakerState,
    BreakerTrigger,
    Witness,
)

NOW_S = 1000.0


def breaker_in(state: BreakerState, failures: int = 0) -> Breaker:
    """One that came there by what can really happen, at NOW_S."""
    breaker = Breaker()
    if state is BreakerState.CLOSED:
        for _ in range(failures):
            breaker.failed(NOW_S)
        return breaker
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(NOW_S - FIRST_ASIDE_S)
    if state is BreakerState.HALF_OPEN:
        assert breaker.admit(NOW_S)
    return breaker


def befall(breaker: Breaker, trigger: BreakerTrigger) -> bool | None:
    """Lets it happen; the answer where it was asked."""
    due_s = NOW_S if breaker.due_s is None else breaker.due_s
    match trigger:
        case BreakerTrigger.ASKED_EARLY:
            return breaker.admit(due_s - 0.001)
        case BreakerTrigger.ASKED_DUE:
            return breaker.admit(due_s)
        case BreakerTrigger.SUCCEEDED:
            return breaker.succeeded()
        case BreakerTrigger.FAILED | BreakerTrigger.FAILED_ENOUGH:
            return breaker.failed(NOW_S)
        case BreakerTrigger.REACHED:
            return breaker.reached(NOW_S)
        case BreakerTrigger.GAVE_UP:
            return breaker.gave_up(NOW_S)


@pytest.mark.parametrize(
    ("state", "trigger"),
    list(itertools.product(BreakerState, BreakerTrigger)),
    ids=lambda each: each.value,
)
def test_every_cell_of_the_table_is_what_happens(
    state: BreakerState, trigger: BreakerTrigger
) -> None:
    """The state that follows and what was done are the table's, in each of its cells."""
    enough = trigger is BreakerTrigger.FAILED_ENOUGH
    breaker = breaker_in(state, FAILURES_TO_OPEN - 1 if enough else 0)
    due_s, aside_s = breaker.due_s, breaker.aside_s
    answer = befall(breaker, trigger)
    following, act = TABLE[state, trigger]
    assert breaker.state == following.value
    if trigger in {BreakerTrigger.ASKED_EARLY, BreakerTrigger.ASKED_DUE}:
        assert answer is (act in {BreakerAct.PASS, BreakerAct.TRY})
    match act:
        case BreakerAct.NOTHING | BreakerAct.PASS:
            assert (breaker.due_s, breaker.aside_s) == (due_s, aside_s)
        case BreakerAct.TRY:
            assert due_s is not None
            assert breaker.due_s == due_s + TRIAL_S
        case BreakerAct.SET_ASIDE:
            assert breaker.due_s == NOW_S + FIRST_ASIDE_S
        case BreakerAct.SET_ASIDE_LONGER:
            assert breaker.due_s == NOW_S + min(2 * aside_s, MOST_ASIDE_S)
        case BreakerAct.LET_NEXT_TRY:
            assert breaker.admit(NOW_S)
        case BreakerAct.RESET:
            assert (breaker.due_s, breaker.aside_s) == (None, 0.0)


def test_the_table_has_every_cell() -> None:
    """No state is without an answer to any trigger."""
    assert set(TABLE) == set(itertools.product(BreakerState, BreakerTrigger))


def test_a_success_in_between_begins_the_count_anew() -> None:
    """Only failures in a row set it aside."""
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(NOW_S)
        breaker.failed(NOW_S)
        breaker.succeeded()
    assert breaker.is_closed
    assert breaker.admit(NOW_S)


def test_one_trial_at_a_time() -> None:
    """When it is due one request passes, and the others wait for what becomes of it."""
    breaker = breaker_in(BreakerState.OPEN)
    assert [breaker.admit(NOW_S) for _ in range(5)] == [True] + [False] * 4
    assert breaker.state == "half-open"
    breaker.succeeded()
    assert all(breaker.admit(NOW_S) for _ in range(5))


def test_each_failed_trial_doubles_the_time_up_to_15_s() -> None:
    """5, 10, 15 and again 15 s; after a success it begins with 5 again."""
    breaker, now_s, waits = breaker_in(BreakerState.OPEN), NOW_S, []
    for _ in range(6):
        waits.append(breaker.aside_s)
        assert not breaker.admit(now_s - 0.001)
        assert breaker.admit(now_s)
        breaker.failed(now_s)
        assert breaker.due_s is not None
        now_s = breaker.due_s
    assert waits == [5.0, 10.0, 15.0, 15.0, 15.0, 15.0]
    breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now_s)
    assert breaker.aside_s == FIRST_ASIDE_S


def test_a_trial_that_is_never_heard_of_is_forgotten() -> None:
    """The next one may try when its limit is over."""
    breaker = breaker_in(BreakerState.HALF_OPEN)
    assert not breaker.admit(NOW_S + TRIAL_S - 0.001)
    assert breaker.admit(NOW_S + TRIAL_S)
    assert not breaker.admit(NOW_S + TRIAL_S)


def test_a_trial_whose_client_went_away_decides_nothing() -> None:
    """The next may try at once, and the time has not been doubled."""
    breaker = breaker_in(BreakerState.HALF_OPEN)
    breaker.gave_up(NOW_S)
    assert breaker.state == "open"
    assert breaker.aside_s == FIRST_ASIDE_S
    assert breaker.admit(NOW_S)


# --- what may be a request's own mistake ----------------------------------------------------------

PICTURE = Witness("a", 1)


def test_one_request_s_own_mistake_sets_nothing_aside() -> None:
    """However often one caller repeats it."""
    breaker = Breaker()
    for _ in range(50):
        breaker.failed(NOW_S, PICTURE)
    assert breaker.is_closed
    assert breaker.is_suspect


@pytest.mark.parametrize("other", [Witness("b", 1), Witness("a", 2)])
def test_what_another_request_met_too_is_the_target_s_fault(other: Witness) -> None:
    """Another caller, or another body; three failures in a row as ever."""
    breaker = Breaker()
    breaker.failed(NOW_S, PICTURE)
    breaker.failed(NOW_S, other)
    assert breaker.is_closed
    breaker.failed(NOW_S, PICTURE)
    assert breaker.state == "open"


def test_a_success_in_between_clears_a_suspicion() -> None:
    """And who had met it is forgotten."""
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(NOW_S, PICTURE)
    breaker.succeeded()
    assert not breaker.is_suspect
    for _ in range(5):
        breaker.failed(NOW_S, Witness("b", 1))
    assert breaker.is_closed


def test_a_probe_that_fails_too_confirms_a_suspicion() -> None:
    """Three times one picture and a server that does not even list its models."""
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(NOW_S, PICTURE)
    breaker.confirm(NOW_S)
    assert breaker.state == "open"
    assert breaker.due_s == NOW_S + FIRST_ASIDE_S


def test_one_request_s_own_mistake_decides_no_trial() -> None:
    """The next one may try at once, and the time is not doubled."""
    breaker = breaker_in(BreakerState.HALF_OPEN)
    breaker.failed(NOW_S, PICTURE)
    assert breaker.state == "open"
    assert breaker.aside_s == FIRST_ASIDE_S
    assert breaker.admit(NOW_S)
    breaker.failed(NOW_S, Witness("b", 2))
    assert not breaker.admit(NOW_S)


def test_an_upstream_that_is_reached_is_tried_at_once() -> None:
    """By one request; a trial that is under way is left to decide."""
    breaker = breaker_in(BreakerState.OPEN)
    early_s = NOW_S - 4.0
    assert not breaker.may_pass(early_s)
    breaker.reached(early_s)
    assert breaker.may_pass(early_s)
    assert breaker.admit(early_s)
    breaker.reached(early_s)
    assert not breaker.admit(early_s)


HISTORY = st.lists(
    st.tuples(
        st.sampled_from(["ask", "success", "failure", "gave up"]),
        st.floats(0, 90, allow_nan=False),
    ),
    max_size=80,
)


@given(HISTORY)
def test_no_history_breaks_a_promise(history: list[tuple[str, float]]) -> None:
    """It opens only after failures in a row, lets one trial at a time pass, never waits longer
    than its limits, and one success lets all pass.
    """
    breaker, now_s, in_a_row, trial_s = Breaker(), NOW_S, 0, None
    for what, pause_s in history:
        now_s += pause_s
        was_closed = breaker.is_closed
        if what == "ask":
            passed = breaker.admit(now_s)
            assert passed or not was_closed
            if passed and not was_closed:
                assert trial_s is None or now_s >= trial_s + TRIAL_S
                trial_s = now_s
        else:
            trial_s = None
            if what == "success":
                breaker.succeeded()
                in_a_row = 0
                assert breaker.is_closed
            elif what == "failure":
                breaker.failed(now_s)
                in_a_row += 1
            else:
                breaker.gave_up(now_s)
        assert breaker.is_closed == (in_a_row < FAILURES_TO_OPEN)
        assert breaker.is_closed == (breaker.due_s is None)
        if breaker.due_s is not None:
            assert FIRST_ASIDE_S <= breaker.aside_s <= MOST_ASIDE_S
            assert breaker.due_s <= now_s + max(MOST_ASIDE_S, TRIAL_S)
    assert breaker.admit(now_s + max(MOST_ASIDE_S, TRIAL_S))  # no target is shut out for ever
