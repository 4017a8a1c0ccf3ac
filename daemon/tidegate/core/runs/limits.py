"""A run's clocks: which limit ends it next, and when.

All limits are separate and each ends the run with a reason that names it. A deadline costs
nothing while events flow: an event only moves `last_event_s`, and the deadline that was set
before is computed anew when it comes up.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState, Trigger
from tidegate.core.settings import PLAIN_S

# After the reason why an answer ends only usage and the terminal marker are to come, at once. Some
# upstreams send neither and leave the connection open. No setting: nothing of the answer lacks.
END_WITHIN_S = 5.0


class Expiry(NamedTuple):
    """A limit: when it is reached and how it ends the run."""

    due_s: float
    limit: str  # the setting's name
    trigger: Trigger
    reason: str
    of_upstream: bool = False  # the reason is said of the upstream: 'upstream "box" …'


class _Clock(NamedTuple):
    """What a limit says when it is reached; `{:g}` stands for its seconds."""

    limit: str
    trigger: Trigger
    reason: str
    of_upstream: bool = False


_EXPIRE = Trigger.EXPIRE
_TOTAL = _Clock("total_s", _EXPIRE, "took longer than total_s = {:g} s")
_GRACE = _Clock("disconnect_grace_s", Trigger.CANCEL, "cancelled: client disconnected")
_QUEUE = _Clock("queue_s", _EXPIRE, "had no free place within queue_s = {:g} s", of_upstream=True)
_PLAIN = _Clock(
    "plain_s", _EXPIRE, "sent no whole answer within plain_s = {:g} s", of_upstream=True
)
_FIRST_OUTPUT = _Clock("first_output_s", _EXPIRE, "sent no output for {:g} s", of_upstream=True)
_IDLE = _Clock("idle_s", _EXPIRE, "idle for {:g} s", of_upstream=True)
_END_WITHIN = _Clock("end_within_s", Trigger.COMPLETE, "was whole, and its upstream said no more")


def reached(run: Run, now_s: float) -> Expiry | None:
    """Find the limit that ends `run` now, if there is one."""
    return None if run.is_over or now_s < _next(run)[0] else next_expiry(run)


def next_expiry(run: Run) -> Expiry | None:
    """Find the limit that will end `run` first if nothing more happens; None once it is over."""
    if run.is_over:
        return None
    due_s, clock = _next(run)
    limit_s = getattr(run.limits, clock.limit, None) or PLAIN_S
    return Expiry(
        due_s, clock.limit, clock.trigger, clock.reason.format(limit_s), clock.of_upstream
    )


def next_look_s(run: Run, now_s: float) -> float:
    """Say when to look at the clocks next: a limit may be reached, or its status wait no longer."""
    due_s = now_s if run.is_over else min(_next(run)[0], look_again_s(run, now_s))
    hold_s = run.created_s + run.limits.hold_s
    return min(due_s, hold_s) if hold_s > now_s else due_s


def look_again_s(run: Run, now_s: float) -> float:
    """Say when to ask for the next limit anew, though no deadline has come.

    An answer that has said why it ends has less time than one that goes on, and events set no
    deadlines: so each wait looks as often as the shortest of these is long.
    """
    if run.state is not RunState.STREAMING or run.paused_s is not None:
        return math.inf
    quiet_s = run.attempt.last_event_s + _end_within_s(run)
    return quiet_s if quiet_s > now_s else now_s + _end_within_s(run)


def fits_hold(run: Run, now_s: float, wait_s: float) -> bool:
    """Say whether the status can be held back for so long: later it could not be passed on."""
    return now_s + wait_s <= run.created_s + run.limits.hold_s


def has_time(run: Run, now_s: float, wait_s: float, *, is_loading: bool = False) -> bool:
    """Say whether the limits leave so long: else the upstream's own word is worth more at once."""
    limits, started_s = run.limits, run.attempt.started_s
    due_s = run.created_s + limits.total_s
    if run.request.streamed or is_loading:
        due_s = min(due_s, started_s + limits.first_output_s)
    if not run.request.streamed and limits.plain_s is not None:
        due_s = min(due_s, started_s + limits.plain_s)
    return now_s + wait_s < due_s


def _end_within_s(run: Run) -> float:
    return min(END_WITHIN_S, run.limits.idle_s)


def _next(run: Run) -> tuple[float, _Clock]:
    """Find the clock that stops first; of two at the same time the kinder one, which comes last."""
    limits = run.limits
    due_s, clock = run.created_s + limits.total_s, _TOTAL
    if run.abandoned_s is not None and not run.request.keep_running:
        grace_s = run.abandoned_s + limits.disconnect_grace_s
        if grace_s <= due_s:
            due_s, clock = grace_s, _GRACE
    if run.state is RunState.QUEUED:
        other_s, other = run.queued_s + limits.queue_s, _QUEUE
    elif run.paused_s is not None or not run.attempts:
        return due_s, clock  # while we do not read, the upstream cannot be late
    elif run.state is RunState.CONNECTING and not run.request.streamed:
        # An answer that is no stream of events is its own first output.
        other_s, other = run.attempt.started_s + (limits.plain_s or PLAIN_S), _PLAIN
    elif run.state is RunState.CONNECTING:
        other_s, other = run.attempt.started_s + limits.first_output_s, _FIRST_OUTPUT
    elif run.state is not RunState.STREAMING:
        return due_s, clock
    elif run.transcript.lacks_only_end():
        whole_s = run.attempt.last_event_s + _end_within_s(run)
        other_s, other = min(whole_s, run.created_s + limits.total_s), _END_WITHIN
    else:
        other_s, other = run.attempt.last_event_s + limits.idle_s, _IDLE
    return (other_s, other) if other_s <= due_s else (due_s, clock)
