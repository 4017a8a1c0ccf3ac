"""When a run's memory is to go, whatever became of its end.

This is the net beneath the clocks. It looks only at the record, and needs no timer, task or
callback of the run to have worked: a run older than `total_s + grace_s` is released even if its
end never took place. The registry keeps one deadline a run and asks again when it comes up.
"""

from __future__ import annotations

from typing import NamedTuple

from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState


class RetentionVerdict(NamedTuple):
    """Why a run is released."""

    kind: str  # "stuck" | "finished" | "abandoned" | "cancelled": the metrics' label
    reason: str


def due_s(run: Run) -> float:
    """Say the earliest moment at which `verdict` may say something else than None."""
    stuck_s = _stuck_s(run)
    if run.ended_s is None:
        if run.abandoned_s is None or run.request.keep_running:
            return stuck_s
        return min(stuck_s, run.abandoned_s + run.limits.disconnect_grace_s + run.limits.grace_s)
    kept_s = run.limits.keep_finished_s
    if run.state is RunState.CANCELLED and not run.request.background:
        kept_s = min(kept_s, run.limits.close_flush_s)  # its readers have the reason by then
    if run.readers:  # the end of it is still being read, but not for ever
        return max(run.ended_s + kept_s, stuck_s)
    return run.ended_s + kept_s


def verdict(run: Run, now_s: float) -> RetentionVerdict | None:
    """Say why `run` is to be released now, or None if its time has not come."""
    if now_s < due_s(run):
        return None
    limits = run.limits
    if run.ended_s is not None:
        if run.state is RunState.CANCELLED:
            return RetentionVerdict("cancelled", "cancelled")
        return RetentionVerdict("finished", f"finished {now_s - run.ended_s:.0f} s ago")
    age_s = now_s - run.created_s
    if now_s >= _stuck_s(run):
        return RetentionVerdict(
            "stuck",
            f"swept: stuck for {age_s:.0f} s,"
            f" past total_s {limits.total_s:g} + grace_s {limits.grace_s:g}",
        )
    return RetentionVerdict(
        "abandoned", f"swept: abandoned, and its end did not come for {age_s:.0f} s"
    )


def _stuck_s(run: Run) -> float:
    return run.created_s + run.limits.total_s + run.limits.grace_s
