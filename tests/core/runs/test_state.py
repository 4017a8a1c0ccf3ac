"""The table of a run's states: what may happen when, and that each has a way out."""

import pytest

from tidegate.core.runs.state import TERMINAL, TRANSITIONS, RunState, Trigger, step


def test_every_cell_of_the_table_is_filled() -> None:
    """Each state says what each trigger does to it."""
    assert set(TRANSITIONS) == set(RunState)
    for row in TRANSITIONS.values():
        assert set(row) == set(Trigger)


@pytest.mark.parametrize("trigger", list(Trigger))
@pytest.mark.parametrize("state", list(RunState))
def test_every_cell_is_walked(state: RunState, trigger: Trigger) -> None:
    """A cell leads to its state; an impossible one is named as a mistake; an end stays an end."""
    after = TRANSITIONS[state][trigger]
    if after is None:
        with pytest.raises(AssertionError, match=trigger.value):
            step(state, trigger)
    else:
        assert step(state, trigger) is after
    if state in TERMINAL:
        assert after is state
    else:
        assert (after in TERMINAL) == (
            trigger in {Trigger.COMPLETE, Trigger.FAIL, Trigger.CANCEL, Trigger.EXPIRE}
            and after is not None
        )


def test_every_living_state_can_fail_be_cancelled_and_expire() -> None:
    """No state is a trap: each one has a way out that needs no one's cooperation."""
    for state in set(RunState) - TERMINAL:
        for trigger in (Trigger.FAIL, Trigger.CANCEL, Trigger.EXPIRE):
            assert step(state, trigger) in TERMINAL
