"""Where a run stands and what can befall it.

What happens when is a table, state by trigger, with every cell filled.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where a run stands."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and costs 0.3 us each time

    QUEUED = "queued"
    CONNECTING = "connecting"
    STREAMING = "streaming"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Trigger(Enum):
    """What can befall a run."""

    __hash__ = object.__hash__

    QUEUE = "queue"  # the next try has to wait for a slot
    ATTEMPT = "attempt"  # a try at an upstream begins
    OUTPUT = "output"  # the first output has arrived
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED})

# None: it cannot happen there, and is a mistake of ours. A terminal state absorbs everything:
# late news about an answer that is over changes nothing.
TRANSITIONS: dict[State, dict[Trigger, State | None]] = {
    State.QUEUED: {
        Trigger.QUEUE: State.QUEUED,
        Trigger.ATTEMPT: State.CONNECTING,
        Trigger.OUTPUT: None,
        Trigger.COMPLETE: None,
        Trigger.FAIL: State.FAILED,
        Trigger.CANCEL: State.CANCELLED,
        Trigger.EXPIRE: State.EXPIRED,
    },
    State.CONNECTING: {
        Trigger.QUEUE: State.QUEUED,  # a failover to an upstream that is busy
        Trigger.ATTEMPT: State.CONNECTING,  # the next try, or a failover
        Trigger.OUTPUT: State.STREAMING,
        Trigger.COMPLETE: State.COMPLETED,  # a plain answer, or an empty one
        Trigger.FAIL: State.FAILED,
        Trigger.CANCEL: State.CANCELLED,
        Trigger.EXPIRE: State.EXPIRED,
    },
    State.STREAMING: {
        Trigger.QUEUE: None,
        Trigger.ATTEMPT: None,  # two answers are never spliced together
        Trigger.OUTPUT: State.STREAMING,
        Trigger.COMPLETE: State.COMPLETED,
        Trigger.FAIL: State.FAILED,
        Trigger.CANCEL: State.CANCELLED,
        Trigger.EXPIRE: State.EXPIRED,
    },
    **{state: dict.fromkeys(Trigger, state) for state in TERMINAL},
}


Census = dict[State, int]  # how many runs are held, by state


def empty_census() -> Census:
    """A census of no runs."""
    return dict.fromkeys(State, 0)


def step(state: State, trigger: Trigger) -> State:
    """The state after `trigger`. Raises AssertionError where that cannot happen."""
    after = TRANSITIONS[state][trigger]
    assert after is not None, f"{trigger.value} cannot happen to a run that is {state.value}"
    return after
