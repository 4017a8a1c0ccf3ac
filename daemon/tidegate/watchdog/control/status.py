"""What `tidegate status` shows, and the counts that outlive the workers.

A worker's heartbeat counts since the worker's start. The totals add what is new in each, so
that a recycle or a death loses nothing that was ever reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Struct

from tidegate.core.fleet.lifecycle import Fleet, State
from tidegate.core.problems import Repair
from tidegate.core.protocol.worker import (
    Heartbeat,
    ModelAside,
    StepReport,
    UpstreamRefusal,
    UpstreamStatus,
)
from tidegate.core.settings import MIB
from tidegate.core.words import count
from tidegate.logs.file import LogState

RESTARTS_KEPT = 20
FAILING = {"failing", "set aside"}  # states of an upstream that somebody should look at
RECENT_S = 60.0  # a restart so lately that clients may still feel it


class WorkerState(Struct, frozen=True, kw_only=True):
    """One worker. Heartbeat figures are 0 until the first one."""

    pid: int
    generation: int
    state: str
    rss_bytes: int
    loop_lag_ms: float
    heartbeat_age_s: float


class WatchdogState(Struct, frozen=True, kw_only=True):
    """The watchdog itself."""

    pid: int
    rss_bytes: int
    log: LogState | None = None  # None: it does not say


class StepState(Struct, frozen=True, kw_only=True):
    """What one step of relief has done since the watchdog started."""

    step: str
    times: int = 0
    runs: int = 0
    promised_bytes: int = 0
    freed_bytes: int = 0
    seconds: float = 0.0
    last_freed_bytes: int = 0
    skipped: bool = False  # it was of no use lately, and is left out for a while

    def plus(self, report: StepReport) -> StepState:
        """With one more report added."""
        return StepState(
            step=self.step,
            times=self.times + 1,
            runs=self.runs + report.runs,
            promised_bytes=self.promised_bytes + report.promised_bytes,
            freed_bytes=self.freed_bytes + report.freed_bytes,
            seconds=self.seconds + report.took_s,
            last_freed_bytes=report.freed_bytes,
            skipped=self.skipped,
        )


class MemoryState(Struct, frozen=True, kw_only=True):
    """Where memory stands. What has not been measured yet is null."""

    level: int = 0
    budget_bytes: int = 0
    budget_source: str = ""
    used_bytes: int = 0
    base_bytes: int = 0
    ledger_bytes: int = 0
    unexplained_bytes: int = 0
    growth_bytes_per_h: int | None = None
    limit_in_s: float | None = None  # until the part for runs is used up at that growth
    mode: str = "enforce"
    cause: str = "none"  # of what is held: none, explained, slack or unaccounted
    pressure: bool = False
    worker_uss_bytes: int | None = None  # what is the serving worker's alone; every 5 minutes
    shedding: str | None = None  # why new runs are refused
    would: str | None = None  # what would be done now if it did not only observe
    refused: str | None = None  # why a recycle that is called for does not take place
    alarms: int = 0  # confirmed growth, since the watchdog started
    steps: list[StepState] = []


class GuardState(Struct, frozen=True, kw_only=True):
    """The guard's own health, since the watchdog started."""

    ticks: int = 0
    tick_delay_s: float = 0.0  # how late the last tick was
    worst_tick_delay_s: float = 0.0  # within the last hour
    tick_cost_s: float = 0.0  # what the last tick's sample and decision took
    sample_failures: int = 0
    bundles: int = 0


class RunCounts(Struct, frozen=True, kw_only=True):
    """Runs held now, and all there ever were."""

    active: int
    finished: int
    total: int


class SweptState(Struct, frozen=True, kw_only=True):
    """What sweeps released since the watchdog started."""

    runs: int
    bytes: int
    last_reason: str | None


class Restart(Struct, frozen=True, kw_only=True):
    """A worker that was replaced because it died. `exit` is negative for a signal."""

    at: float  # Unix seconds
    reason: str
    exit: int | None


class UpstreamState(Struct, frozen=True, kw_only=True):
    """One upstream, over all workers."""

    name: str
    state: str
    active: int
    queued: int
    last_error: str | None
    aside: list[ModelAside] = []  # models that are left alone for a while
    refusals: list[UpstreamRefusal] = []  # what it refuses until the config is changed


class Status(Struct, frozen=True, kw_only=True):
    """`tidegate status --json`."""

    state: str
    version: str
    uptime_s: float
    generation: int | None
    listen: list[str]
    workers: list[WorkerState]
    worker: WorkerState | None
    watchdog: WatchdogState
    memory: MemoryState
    runs: RunCounts
    swept: SweptState
    recycles: int
    restarts: list[Restart]
    upstreams: list[UpstreamState]
    guard: GuardState = GuardState()
    reason: str | None = None  # why it is parked, or degraded
    repairs: list[Repair] = []  # open problems, the worst first
    manager: str | None = None  # "systemd" or "launchd", if that started it


@dataclass(slots=True)
class Totals:
    """Counts since the watchdog started."""

    runs: int = 0
    swept_runs: int = 0
    swept_bytes: int = 0
    swept_last_reason: str | None = None
    recycles: dict[str, int] = field(default_factory=dict)  # by reason
    restart_count: int = 0
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
        """A new generation took over."""
        self.recycles[reason] = self.recycles.get(reason, 0) + 1

    def add_restart(self, restart: Restart) -> None:
        """A worker died and is replaced."""
        self.restart_count += 1
        self.restarts = [*self.restarts, restart][-RESTARTS_KEPT:]


def troubles(
    *,
    shedding: str | None,
    refused: str | None,
    upstreams: list[UpstreamState],
    last_restart: Restart | None,
    now: float,
) -> list[str]:
    """What somebody may notice though it serves, in words; `now` in Unix seconds."""
    found = [f"new runs are refused: {shedding}"] if shedding else []
    if refused and not shedding:
        found.append(f"a recycle is called for, but {refused}")
    if last_restart is not None and now - last_restart.at < RECENT_S:
        found.append(f"a worker was lost: {last_restart.reason}")
    failing = ", ".join(upstream.name for upstream in upstreams if upstream.state in FAILING)
    return [*found, f"failing upstreams: {failing}"] if failing else found


def name_state(fleet: Fleet, *, parked: bool, troubled: bool) -> str:
    """The daemon's state in one word.

    `degraded` means that it serves, but that somebody may notice something: see `troubles`.
    `recycling` lasts until the former generation is gone, and steps back behind `degraded` once
    the new one serves. `draining` is a stop that still finishes streams, `stopping` its end.
    """
    if parked:
        return "parked"
    draining = fleet.in_state(State.DRAINING) is not None
    if fleet.stopping:
        return "draining" if draining else "stopping"
    if fleet.in_state(State.SERVING) is None:
        return "starting"
    if fleet.in_state(State.STARTING) is not None:
        return "recycling"
    if troubled:
        return "degraded"
    return "recycling" if draining else "serving"


def merge_upstreams(lists: list[list[UpstreamStatus]]) -> list[UpstreamState]:
    """One line for each upstream; the list of the serving worker comes first and has the word."""
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
    """`systemctl status` in one line: "level 1, 212 of 1024 MB, 3 runs, up 9 d"."""
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
    """The largest unit that fits: "9 d", "4 h", "12 min", "under 1 min"."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= length_s:
            return f"{int(age_s // length_s)} {unit}"
    return "under 1 min"
