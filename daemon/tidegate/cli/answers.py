"""What a running tidegate answers, as far as the screen shows it.

The answers are read leniently: an unknown field is skipped, so that an older command can ask a
newer daemon in the middle of an upgrade.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from tidegate.core.message import RunSummary


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """One worker in `status`."""

    pid: int
    generation: int
    state: str
    rss_bytes: int = 0
    loop_lag_ms: float = 0.0
    heartbeat_age_s: float | None = None


class WatchdogStatus(Struct, frozen=True, kw_only=True):
    """The watchdog in `status`."""

    pid: int
    rss_bytes: int = 0


class MemoryStatus(Struct, frozen=True, kw_only=True):
    """The memory guard in `status`."""

    level: int = 0
    budget_bytes: int = 0
    budget_source: str = ""
    used_bytes: int = 0
    ledger_bytes: int = 0
    unexplained_bytes: int = 0
    mode: str = "enforce"


class RunCounts(Struct, frozen=True, kw_only=True):
    """The runs in `status`."""

    active: int = 0
    finished: int = 0
    total: int = 0


class SweptStatus(Struct, frozen=True, kw_only=True):
    """What was swept, in `status`."""

    runs: int = 0
    bytes: int = 0
    last_reason: str | None = None


class Restart(Struct, frozen=True, kw_only=True):
    """A worker that ended when it should not have."""

    at: float | str
    reason: str
    exit: int | str | None = None


class UpstreamState(Struct, frozen=True, kw_only=True):
    """One upstream in `status`."""

    name: str
    state: str
    active: int = 0
    queued: int = 0
    last_error: str | None = None


class Status(Struct, frozen=True, kw_only=True):
    """`tidegate status --json`, as far as the screen shows it."""

    state: str
    version: str
    uptime_s: float
    listen: list[str]
    watchdog: WatchdogStatus
    workers: list[WorkerStatus] = []
    memory: MemoryStatus = MemoryStatus()
    runs: RunCounts = RunCounts()
    swept: SweptStatus = SweptStatus()
    recycles: int = 0
    restarts: list[Restart] = []
    upstreams: list[UpstreamState] = []


class RunListing(Struct, frozen=True, kw_only=True):
    """`tidegate runs --json`."""

    data: list[RunSummary]


class SweepResult(Struct, frozen=True, kw_only=True):
    """The answer to `tidegate sweep`."""

    runs: int
    bytes: int
    reasons: dict[str, int] = {}


def read_status(answer: msgspec.Raw) -> Status:
    """The status in a control reply."""
    return msgspec.json.decode(answer, type=Status)


def read_runs(answer: msgspec.Raw) -> list[RunSummary]:
    """The runs in a control reply."""
    return msgspec.json.decode(answer, type=RunListing).data


def read_sweep(answer: msgspec.Raw) -> SweepResult:
    """What was swept, in a control reply."""
    return msgspec.json.decode(answer, type=SweepResult)
