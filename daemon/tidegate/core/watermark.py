"""Where a sample of memory falls, as a level from 0 to 5 with hysteresis.

Levels 1 to 4 judge the spendable part: what the workers hold beyond their base (their resident
memory when they became ready), against what the budget leaves after two bases and a reserve.
So an idle worker is level 0 whatever the budget, and the second generation of a recycle never
raises the level. Only level 5 judges raw use, for that is what a killer sees.

The level follows at once upwards; downwards it stays until the use has been under the exit
point for `DWELL_S`, so that it cannot flap.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from tidegate.core.settings import MIB

RESERVE_BYTES = 16 * MIB  # the watchdog's own 13 MiB, and what the kernel rounds up
SPENDABLE_FLOOR_BYTES = 8 * MIB  # a budget that two bases fill still lets two windows live
ENTER = (0.60, 0.70, 0.80, 0.88)  # levels 1 to 4, of the spendable part
EXIT = (0.55, 0.64, 0.73, 0.80)  # at least 5 points below: a sample's noise is 1 or 2
LAST_ENTER, LAST_EXIT = 0.95, 0.90  # level 5, of the budget as a whole
SOFT_EXCESS = 1.5  # a budget nobody enforces is a wish: level 5 only far beyond it,
SOFT_AVAILABLE = 0.05  # or when the machine itself has nearly nothing left
DWELL_S = 10.0
# The ledger may hold 3/4 of the spendable part. It counts the capacity of our buffers, not the
# allocator's slack around them, which was about a fifth after bursts; and between two samples
# the limit alone has to hold the line below level 4.
LEDGER_SHARE = 0.75
UNEXPLAINED_SHARE = 0.25  # of the spendable part: beyond it, a sweep would not help
SWEEP_LEVEL = 2
LAST_READINGS = 3  # at level 5 in a row: the sweeps had their chance


class Limits(Struct, frozen=True, kw_only=True):
    """What memory is judged against. `hard`: the budget was set by somebody, not guessed."""

    budget_bytes: int
    hard: bool
    machine_bytes: int


class Reading(Struct, frozen=True, kw_only=True):
    """One sample, summed up. Bytes."""

    used_bytes: int  # raw: the larger of all our processes' RSS and what the cgroup counts
    held_bytes: int  # by the workers beyond their base
    base_bytes: int  # one worker's at ready; 0 while none has been
    ledger_bytes: int
    available_bytes: int  # on the whole machine


class Watermark(Struct, frozen=True, kw_only=True):
    """The level, and since when the use has been lower."""

    level: int = 0
    lower_since_s: float | None = None
    unexplained_since_s: float | None = None
    last_readings: int = 0  # at level 5, in a row


class Verdict(Struct, frozen=True, kw_only=True):
    """What follows from a sample."""

    ratio: float  # of the spendable part
    spendable_bytes: int
    ledger_limit_bytes: int
    unexplained_bytes: int
    sweep: bool  # release what is stale, on every reading while the level holds
    recycle: bool  # what the ledger does not explain is too much, and has been for a dwell
    cut: bool  # the last resort: a worker has to go


def spendable_bytes(budget_bytes: int, base_bytes: int) -> int:
    """What is left of the budget for runs."""
    return max(SPENDABLE_FLOOR_BYTES, budget_bytes - 2 * base_bytes - RESERVE_BYTES)


def judge(
    mark: Watermark, reading: Reading, limits: Limits, now_s: float
) -> tuple[Watermark, Verdict]:
    """The level after this reading, and what follows from it."""
    spendable = spendable_bytes(limits.budget_bytes, reading.base_bytes)
    ratio = max(0, reading.held_bytes) / spendable
    unexplained = max(0, reading.held_bytes - reading.ledger_bytes)
    raw = _raw_level(mark.level, ratio, reading, limits)
    mark = _level(mark, raw, now_s)
    too_much = mark.level >= SWEEP_LEVEL and unexplained > UNEXPLAINED_SHARE * spendable
    since_s = None
    if too_much:
        since_s = now_s if mark.unexplained_since_s is None else mark.unexplained_since_s
    # No dwell here: only readings that are level 5 themselves may cost a worker its life.
    last_readings = mark.last_readings + 1 if raw == 5 else 0
    cut = last_readings >= LAST_READINGS
    last_readings = 0 if cut else last_readings
    mark = replace(mark, unexplained_since_s=since_s, last_readings=last_readings)
    return mark, Verdict(
        ratio=ratio,
        spendable_bytes=spendable,
        ledger_limit_bytes=int(LEDGER_SHARE * spendable),
        unexplained_bytes=unexplained,
        sweep=mark.level >= SWEEP_LEVEL,
        recycle=since_s is not None and now_s - since_s >= DWELL_S,
        cut=cut,
    )


def _raw_level(level: int, ratio: float, reading: Reading, limits: Limits) -> int:
    """The level this reading alone would give to somebody who stands at `level`."""
    if _is_last(level, reading, limits):
        return 5
    entered = sum(ratio >= point for point in ENTER)
    kept = sum(ratio >= point for point in EXIT[:level])
    return max(entered, kept)


def _is_last(level: int, reading: Reading, limits: Limits) -> bool:
    share = LAST_EXIT if level == 5 else LAST_ENTER
    if limits.hard:
        return reading.used_bytes >= share * limits.budget_bytes
    machine_is_full = reading.available_bytes < SOFT_AVAILABLE * limits.machine_bytes
    over = reading.used_bytes >= share * limits.budget_bytes
    return reading.used_bytes >= SOFT_EXCESS * limits.budget_bytes or (over and machine_is_full)


def _level(mark: Watermark, raw: int, now_s: float) -> Watermark:
    """Up at once; down to `raw` when it has been lower for the dwell."""
    if raw >= mark.level:
        return replace(mark, level=raw, lower_since_s=None)
    since_s = mark.lower_since_s if mark.lower_since_s is not None else now_s
    if now_s - since_s >= DWELL_S:
        return replace(mark, level=raw, lower_since_s=None)
    return replace(mark, lower_since_s=since_s)
