"""What `tidegate status` shows, and the counts that outlive the workers.

A worker's heartbeat counts since the worker's start. The totals add what is new in each, so
that a recycle or a death loses nothing that was ever reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate.core.fleet.lifecycle import Fleet, GenerationState
from tidegate.core.protocol.status import Restart, Status, UpstreamState
from tidegate.core.protocol.worker import Heartbeat
from tidegate.core.settings import MIB
from tidegate.core.text import count
from tidegate.core.upstreams.summary import UpstreamStatus

RESTARTS_KEPT = 20
FAILING = {"failing", "set aside"}  # states of an upstream that the owner should look at
RECENT_S = 60.0  # a restart so lately that clients may still feel it


@dataclass(slots=True)
class Totals:
    """Counts since the watchdog started."""

    runs: int = 0
    swept_runs: int = 0
    swept_bytes: int = 0
    swept_last_reason: str | None = None
    recycles: dict[str, int] = field(default_factory=dict)  # by reason
    restarts: list[Restart] = field(default_factory=list)  # the latest, oldest first

    def add_beat(self, former: Heartbeat | None, beat: Heartbeat) -> None:
        """Add what `beat` counts beyond the same worker's `former` one."""
        self.runs += beat.runs_total - (former.runs_total if former else 0)
        swept_runs = beat.swept_runs - (former.swept_runs if former else 0)
        self.swept_runs += swept_runs
        self.swept_bytes += beat.swept_bytes - (former.swept_bytes if former else 0)
        if swept_runs:
            self.swept_last_reason = beat.swept_last_reason

    def add_recycle(self, reason: str) -> None:
        """Count that a new generation took over."""
        self.recycles[reason] = self.recycles.get(reason, 0) + 1

    def add_restart(self, restart: Restart) -> None:
        """Note that a worker died and is replaced."""
        self.restarts = [*self.restarts, restart][-RESTARTS_KEPT:]


def troubles(
    *,
    shedding: str | None,
    refused: str | None,
    upstreams: list[UpstreamState],
    last_restart: Restart | None,
    now: float,
) -> list[str]:
    """List what clients may notice though it serves, as text; `now` in Unix seconds."""
    found = [f"new runs are refused: {shedding}"] if shedding else []
    if refused and not shedding:
        found.append(f"a recycle is called for, but {refused}")
    if last_restart is not None and now - last_restart.at < RECENT_S:
        found.append(f"a worker was lost: {last_restart.reason}")
    failing = ", ".join(upstream.name for upstream in upstreams if upstream.state in FAILING)
    return [*found, f"failing upstreams: {failing}"] if failing else found


def name_state(fleet: Fleet, *, parked: bool, troubled: bool) -> str:
    """Name the daemon's state in one word.

    `degraded` means that it serves, but that clients may notice something: see `troubles`.
    `recycling` lasts until the former generation is gone, and steps back behind `degraded` once
    the new one serves. `draining` is a stop that still finishes streams, `stopping` its end.
    """
    if parked:
        return "parked"
    draining = fleet.in_state(GenerationState.DRAINING) is not None
    if fleet.stopping:
        return "draining" if draining else "stopping"
    if fleet.in_state(GenerationState.SERVING) is None:
        return "starting"
    if fleet.in_state(GenerationState.STARTING) is not None:
        return "recycling"
    if troubled:
        return "degraded"
    return "recycling" if draining else "serving"


def merge_upstreams(lists: list[list[UpstreamStatus]]) -> list[UpstreamState]:
    """Merge to one entry an upstream; the serving worker's list comes first and decides."""
    merged: dict[str, UpstreamState] = {}
    for upstream in (upstream for upstreams in lists for upstream in upstreams):
        known = merged.get(upstream.name)
        merged[upstream.name] = UpstreamState(
            name=upstream.name,
            state=known.state if known else upstream.state,
            active=upstream.active + (known.active if known else 0),
            queued=upstream.queued + (known.queued if known else 0),
            last_error=known.last_error if known else upstream.last_error,
            aside=known.aside if known else upstream.aside,
            refusals=known.refusals if known else upstream.refusals,
        )
    return list(merged.values())


def status_line(status: Status) -> str:
    """Write the line for `systemctl status`: "level 1, 212 of 1024 MB, 3 runs, up 9 d"."""
    memory = status.memory
    if status.state == "parked":
        return f"parked: {status.reason}"
    figures = (
        f"level {memory.level}, {memory.used_bytes // MIB} of {memory.budget_bytes // MIB} MB, "
        f"{count(status.runs.active, 'run')}, up {show_age(status.uptime_s)}"
    )
    if status.state == "serving":
        return figures
    why = f" ({status.reason})" if status.reason else ""
    return f"{status.state}{why}, {figures}"


def show_age(age_s: float) -> str:
    """Write an age in the largest unit that fits: "9 d", "4 h", "12 min", "under 1 min"."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= length_s:
            return f"{int(age_s // length_s)} {unit}"
    return "under 1 min"
