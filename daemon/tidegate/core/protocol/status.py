"""What `tidegate status` shows, as the watchdog answers it."""

from __future__ import annotations

from msgspec import Struct

from tidegate.core.memory.report import StepReport
from tidegate.core.problems import Repair
from tidegate.core.protocol.stores import StoreState
from tidegate.core.upstreams.summary import ModelAside, UpstreamRefusal


class LogState(Struct, frozen=True, kw_only=True):
    """Where a process's lines go: a file, the journal, or whatever standard error is."""

    file: str | None = None
    journal: bool = False
    unit: str | None = None  # of the journal's lines
    user: bool = False  # and whether it is a user's


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
    """What one step of reclaiming has done since the watchdog started."""

    step: str
    times: int = 0
    runs: int = 0
    promised_bytes: int = 0
    freed_bytes: int = 0
    seconds: float = 0.0
    last_freed_bytes: int = 0
    skipped: bool = False  # it was of no use lately, and is left out for a while

    def plus(self, report: StepReport) -> StepState:
        """Add one more report."""
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


class ReceiverState(Struct, frozen=True, kw_only=True):
    """One receiver of notices. Its address is not shown."""

    name: str
    waiting: int = 0  # notices
    error: str | None = None  # why it takes nothing just now
    failing_since: float | None = None  # Unix seconds


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
    journal: StoreState | None = None  # None: no worker has told of it yet
    history: StoreState | None = None
    notify: list[ReceiverState] = []
    flat_s: float = 0.0  # since no growth of memory was seen
