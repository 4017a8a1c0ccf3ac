"""Where a run stands and what can befall it.

What happens when is a table, state by trigger, with every cell filled.
"""

from __future__ import annotations

from enum import Enum


class RunState(Enum):
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
    """An event that moves a run to another state."""

    __hash__ = object.__hash__

    QUEUE = "queue"  # the next try has to wait for a slot
    ATTEMPT = "attempt"  # a try at an upstream begins
    OUTPUT = "output"  # the first output has arrived
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


TERMINAL = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED})

# None: it cannot happen there, and is a mistake of ours. A terminal state absorbs everything:
# late news about an answer that is over changes nothing.
TRANSITIONS: dict[RunState, dict[Trigger, RunState | None]] = {
    RunState.QUEUED: {
        Trigger.QUEUE: RunState.QUEUED,
        Trigger.ATTEMPT: RunState.CONNECTING,
        Trigger.OUTPUT: None,
        Trigger.COMPLETE: None,
        Trigger.FAIL: RunState.FAILED,
        Trigger.CANCEL: RunState.CANCELLED,
        Trigger.EXPIRE: RunState.EXPIRED,
    },
    RunState.CONNECTING: {
        Trigger.QUEUE: RunState.QUEUED,  # a failover to an upstream that is busy
        Trigger.ATTEMPT: RunState.CONNECTING,  # the next try, or a failover
        Trigger.OUTPUT: RunState.STREAMING,
        Trigger.COMPLETE: RunState.COMPLETED,  # a plain answer, or an empty one
        Trigger.FAIL: RunState.FAILED,
        Trigger.CANCEL: RunState.CANCELLED,
        Trigger.EXPIRE: RunState.EXPIRED,
    },
    RunState.STREAMING: {
        Trigger.QUEUE: None,
        Trigger.ATTEMPT: None,  # two answers are never spliced together
        Trigger.OUTPUT: RunState.STREAMING,
        Trigger.COMPLETE: RunState.COMPLETED,
        Trigger.FAIL: RunState.FAILED,
        Trigger.CANCEL: RunState.CANCELLED,
        Trigger.EXPIRE: RunState.EXPIRED,
    },
    **{state: dict.fromkeys(Trigger, state) for state in TERMINAL},
}


Census = dict[RunState, int]  # how many runs are held, by state


def empty_census() -> Census:
    """Make a census of no runs."""
    return dict.fromkeys(RunState, 0)


def step(state: RunState, trigger: Trigger) -> RunState:
    """Find the state after `trigger`. Raises AssertionError where that cannot happen."""
    after = TRANSITIONS[state][trigger]
    assert after is not None, f"{trigger.value} cannot happen to a run that is {state.value}"
    return after
