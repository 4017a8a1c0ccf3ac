"""Where a run stands and what can befall it.

What happens when is a table, state by happening, with every cell filled.
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


class Happening(Enum):
    """What can befall a run."""

    __hash__ = object.__hash__

    QUEUE = "queue"  # the next try has to wait for a place
    ATTEMPT = "attempt"  # a try at an upstream begins
    OUTPUT = "output"  # the first output has arrived
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED})

# None: it cannot happen there, and is a mistake of ours. A terminal state absorbs everything:
# late news about an answer that is over changes nothing.
TRANSITIONS: dict[State, dict[Happening, State | None]] = {
    State.QUEUED: {
        Happening.QUEUE: State.QUEUED,
        Happening.ATTEMPT: State.CONNECTING,
        Happening.OUTPUT: None,
        Happening.COMPLETE: None,
        Happening.FAIL: State.FAILED,
        Happening.CANCEL: State.CANCELLED,
        Happening.EXPIRE: State.EXPIRED,
    },
    State.CONNECTING: {
        Happening.QUEUE: State.QUEUED,  # a failover to an upstream that is busy
        Happening.ATTEMPT: State.CONNECTING,  # the next try, or a failover
        Happening.OUTPUT: State.STREAMING,
        Happening.COMPLETE: State.COMPLETED,  # a plain answer, or an empty one
        Happening.FAIL: State.FAILED,
        Happening.CANCEL: State.CANCELLED,
        Happening.EXPIRE: State.EXPIRED,
    },
    State.STREAMING: {
        Happening.QUEUE: None,
        Happening.ATTEMPT: None,  # two answers are never spliced together
        Happening.OUTPUT: State.STREAMING,
        Happening.COMPLETE: State.COMPLETED,
        Happening.FAIL: State.FAILED,
        Happening.CANCEL: State.CANCELLED,
        Happening.EXPIRE: State.EXPIRED,
    },
    **{state: dict.fromkeys(Happening, state) for state in TERMINAL},
}


Census = dict[State, int]  # how many runs are held, by state


def empty_census() -> Census:
    """A census of no runs."""
    return dict.fromkeys(State, 0)


def step(state: State, happening: Happening) -> State:
    """The state after `happening`. Raises AssertionError where that cannot happen."""
    after = TRANSITIONS[state][happening]
    assert after is not None, f"{happening.value} cannot happen to a run that is {state.value}"
    return after
