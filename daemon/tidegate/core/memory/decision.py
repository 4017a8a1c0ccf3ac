"""A decision about memory: what it is made from, what is remembered, and what comes of it.

They are written to the decision log as they are, and `tidegate replay` reads old ones: fields keep
their names, and a new one has a default.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from tidegate.core import settings
from tidegate.core.memory.growth import Finding
from tidegate.core.memory.levels import BudgetLimits, Reading, Watermark
from tidegate.core.memory.report import StepReport
from tidegate.core.memory.steps import ReclaimStep

RECYCLE, CUT = "recycle", "cut"


class NoRecycle(Enum):
    """What can stand against a recycle; the reason in a decision begins with these words."""

    SPENT = "the hour's recycles are spent"
    NO_ROOM = "no room for a second worker"


class Disruption(Struct, frozen=True, kw_only=True):
    """An act that costs readers something, and why. It waits for its evidence."""

    kind: str  # RECYCLE or CUT
    reason: str  # "memory", "growth", "age": the metric's label
    since_s: float


class Inputs(Struct, frozen=True, kw_only=True):
    """Everything that a decision is made from. Times are monotonic, sizes bytes."""

    now_s: float
    reading: Reading
    limits: BudgetLimits
    enforces: bool = True  # False: decided all the same, but not acted upon
    generation: int = 0  # the one that serves; 0: none
    age_s: float = 0.0  # since it became ready
    active_runs: int = 0
    is_recycling: bool = False
    recycles_left: int = 0  # within this hour
    may_give_up: bool = False  # a service manager would start us again
    slack_bytes: int = 0  # free in the worker's allocator
    relieving: bool = False  # the last steps ordered are not over yet
    relieved: tuple[StepReport, ...] = ()  # what steps did since the last decision
    evidence_pending: bool = False
    finding: Finding | None = None  # of the serving generation's last closed bucket
    growth: settings.Growth = settings.Growth()
    recycle_after_s: float = 0.0  # age at which a worker is recycled; 0: never


class PolicyState(Struct, frozen=True, kw_only=True):
    """What is remembered from one decision to the next."""

    mark: Watermark = Watermark()
    generation: int | None = None  # whose level that is; None: written by a version without it
    raised_s: float | None = None  # since when it is level 1 or above
    ticked_s: float | None = None
    tidied_s: float | None = None
    useless: dict[str, int] = {}  # how often in a row a step freed next to nothing
    skipped_until_s: dict[str, float] = {}
    unexplained_since_s: float | None = None
    last_readings: int = 0  # at level 5, in a row
    harm: Disruption | None = None
    harmed_s: dict[str, float] = {}  # when each kind was done last
    cuts_s: tuple[float, ...] = ()  # within the last hour
    planned_s: float | None = None  # since when a recycle waits for a quiet minute
    evidence_s: float | None = None  # when level 2 was last documented
    alarmed: bool = False  # the growth under way has been told


class Decision(Struct, frozen=True, kw_only=True):
    """What is to be done now. `None` and `()`: nothing of that kind."""

    level: int
    ratio: float  # held, of the spendable part
    spendable_bytes: int
    ledger_limit_bytes: int
    unexplained_bytes: int
    cause: str  # of what is held: "none" | "explained" | "slack" | "unaccounted"
    forecast_s: float | None  # until the spendable part is used up at the growth measured
    steps: tuple[ReclaimStep, ...]
    skipped: tuple[ReclaimStep, ...]  # due, but of no use lately
    stale_after_s: float
    squeeze: bool
    shed: str | None  # new runs are refused, because
    alarm: str | None  # growth was confirmed just now
    evidence: str | None  # a bundle is to be written, because
    recycle: str | None  # the next generation is to start, because
    cut: str | None  # a generation has to go at once, because
    give_up: str | None  # the service manager is to decide, because
    refused: str | None  # why a recycle that is called for does not take place

    @property
    def no_recycle(self) -> NoRecycle | None:
        """What speaks against the recycle, without its figures: they change each second."""
        reason = self.refused or ""
        return next((each for each in NoRecycle if reason.startswith(each.value)), None)
