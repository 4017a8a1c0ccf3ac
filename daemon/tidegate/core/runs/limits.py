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


def next_expiry(run: Run) -> Expiry | None:
    """Find the limit that will end `run` first if nothing more happens; None once it is over."""
    if run.is_over:
        return None
    expiries = _expiries(run)  # of two at the same time the kinder one, which comes last
    return min(reversed(expiries), key=lambda expiry: expiry.due_s)


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


def _expiries(run: Run) -> list[Expiry]:
    limits = run.limits
    expiries = [
        Expiry(
            run.created_s + limits.total_s,
            "total_s",
            Trigger.EXPIRE,
            f"took longer than total_s = {limits.total_s:g} s",
        )
    ]
    if run.abandoned_s is not None and not run.request.keep_running:
        expiries.append(
            Expiry(
                run.abandoned_s + limits.disconnect_grace_s,
                "disconnect_grace_s",
                Trigger.CANCEL,
                "cancelled: client disconnected",
            )
        )
    if run.state is RunState.QUEUED:
        expiries.append(
            Expiry(
                run.queued_s + limits.queue_s,
                "queue_s",
                Trigger.EXPIRE,
                f"had no free place within queue_s = {limits.queue_s:g} s",
                of_upstream=True,
            )
        )
    if run.paused_s is not None:
        return expiries  # while we do not read, the upstream cannot be late
    attempt = run.attempts[-1] if run.attempts else None
    # An answer that is no stream of events is its own first output.
    if run.state is RunState.CONNECTING and attempt is not None and not run.request.streamed:
        plain_s = limits.plain_s or PLAIN_S
        expiries.append(
            Expiry(
                attempt.started_s + plain_s,
                "plain_s",
                Trigger.EXPIRE,
                f"sent no whole answer within plain_s = {plain_s:g} s",
                of_upstream=True,
            )
        )
    if run.state is RunState.CONNECTING and attempt is not None and run.request.streamed:
        expiries.append(
            Expiry(
                attempt.started_s + limits.first_output_s,
                "first_output_s",
                Trigger.EXPIRE,
                f"sent no output for {limits.first_output_s:g} s",
                of_upstream=True,
            )
        )
    if run.state is RunState.STREAMING and attempt is not None and run.transcript.lacks_only_end():
        whole_s = attempt.last_event_s + _end_within_s(run)
        expiries.append(
            Expiry(
                min(whole_s, run.created_s + limits.total_s),
                "end_within_s",
                Trigger.COMPLETE,
                "was whole, and its upstream said no more",
            )
        )
    elif run.state is RunState.STREAMING and attempt is not None:
        expiries.append(
            Expiry(
                attempt.last_event_s + limits.idle_s,
                "idle_s",
                Trigger.EXPIRE,
                f"idle for {limits.idle_s:g} s",
                of_upstream=True,
            )
        )
    return expiries
