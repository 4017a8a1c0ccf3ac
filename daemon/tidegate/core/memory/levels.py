"""Where a sample of memory falls, as a level from 0 to 5 with hysteresis.

Levels 1 to 4 judge the spendable part: what the workers hold beyond their base (their resident
memory when they became ready), against what the budget leaves after two bases and a reserve.
So an idle worker is level 0 whatever the budget, and the second generation of a recycle never
raises the level. Only level 5 judges raw use, for that is what a killer sees.

The level follows at once upwards, and counts on the fastest rise seen lately to go on until the
next sample; not when no run is active and nothing grows, for else what finished runs keep would
hold a level until they expire. Downwards it stays until the use has been under the exit point for
`DWELL_S`, so that it cannot flap. Pressure is not a ratio: it raises the level to 2 and no further,
because a neighbour who loads a model must not make us refuse clients.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from tidegate.core.settings import MIB

# The least budget with which it can be quiet: what any worker keeps once it has served is then well
# below level 1. At 128 MiB that was all of the spendable part: dead readers left level 3 behind. At
# 160 MiB all attacks of `make attacks` at once took 186.
LEAST_BUDGET_BYTES = 200 * MIB
USUAL_BASE_BYTES = 48 * MIB  # of a worker, where none has been measured yet
RESERVE_BYTES = 16 * MIB  # the watchdog's own 13 MiB, and what the kernel rounds up
SPENDABLE_FLOOR_BYTES = 8 * MIB  # a budget that two bases fill still lets two windows live
ENTER = (0.60, 0.70, 0.80, 0.88)  # levels 1 to 4, of the spendable part
EXIT = (0.55, 0.64, 0.73, 0.80)  # at least 5 points below: a sample's noise is 1 or 2
LAST_ENTER, LAST_EXIT = 0.95, 0.90  # level 5, of the budget as a whole
LAST_LEVEL = 5
PRESSURE_LEVEL = 2
SOFT_EXCESS = 1.5  # a budget that is not enforced is a wish: level 5 only far beyond it,
SOFT_AVAILABLE = 0.05  # or when the machine itself has nearly nothing left
DWELL_S = 10.0
# Head-room: the fastest rise of the last minutes may go on until the next sample. It fades by half
# a minute, and is worth 10 points at most: a burst that is over must not keep clients out. What
# runs hold cannot rise above the ledger's limit, so of that only what is left of it counts.
AHEAD_S = 1.0
AHEAD_SHARE = 0.10
RISE_HALF_LIFE_S = 60.0
GROWS_BYTES = MIB  # from one sample to the next; an idle worker moves by less
# Full of runs, a worker is not yet level 3: windows shrink before a client is refused. The ledger
# counts the capacity of our buffers, not the allocator's slack around them, which was a fifth after
# bursts, nor what any worker that has served keeps beside its runs: 10 to 15 MiB under load.
LEDGER_SLACK = 1.2
WORKER_KEEPS_BYTES = 16 * MIB
# Of what two usual bases leave: a journal in memory takes no more, so that answers have the rest.
JOURNAL_SHARE = 0.25
LEDGER_LEAST_SHARE = 0.30  # of the spendable part, when the budget is hardly more than two bases


class BudgetLimits(Struct, frozen=True, kw_only=True):
    """The sizes that memory is judged against. `hard`: the budget was set, not guessed."""

    budget_bytes: int
    hard: bool
    machine_bytes: int


class Reading(Struct, frozen=True, kw_only=True):
    """One sample, summed up. Bytes."""

    # Raw: the larger of all our processes' RSS with the journal, and what the cgroup counts.
    used_bytes: int
    held_bytes: int  # by the workers beyond their base
    base_bytes: int  # one worker's at ready; 0 while none has been
    ledger_bytes: int
    available_bytes: int  # on the whole machine
    pressure: bool = False  # the kernel or the service manager says that memory is short
    # Of a journal that lies in memory: in no process, and freed by no sweep and no recycle.
    journal_bytes: int = 0


class Watermark(Struct, frozen=True, kw_only=True):
    """The level, since when the use has been lower, and how fast it rose lately."""

    level: int = 0
    lower_since_s: float | None = None
    rise_bytes_per_s: float = 0.0  # of what is held
    loose_bytes_per_s: float = 0.0  # of that, what no ledger explains
    former: Reading | None = None
    read_s: float | None = None  # when that was


class Standing(Struct, frozen=True, kw_only=True):
    """What a reading says, beside the level that it leads to."""

    reading_level: int  # of this reading alone
    ratio: float  # of the spendable part
    ahead_bytes: int  # counted on top: what may come before the next sample
    spendable_bytes: int
    ledger_limit_bytes: int


def spendable_bytes(budget_bytes: int, base_bytes: int, journal_bytes: int = 0) -> int:
    """Compute what is left of the budget for runs."""
    left_bytes = budget_bytes - 2 * base_bytes - RESERVE_BYTES - journal_bytes
    return max(SPENDABLE_FLOOR_BYTES, left_bytes)


def journal_limit_bytes(budget_bytes: int) -> int:
    """Compute what a journal in memory may take of the budget."""
    return int(JOURNAL_SHARE * spendable_bytes(budget_bytes, USUAL_BASE_BYTES))


def ledger_limit_bytes(spendable: int) -> int:
    """Compute what runs may hold of the spendable part."""
    below_shed = (ENTER[2] * spendable - WORKER_KEEPS_BYTES) / LEDGER_SLACK
    return int(max(LEDGER_LEAST_SHARE * spendable, below_shed))


def usual_ledger_limit_bytes(budget_bytes: int) -> int:
    """Estimate the ledger's limit before a worker has been measured."""
    return ledger_limit_bytes(spendable_bytes(budget_bytes, USUAL_BASE_BYTES))


def judge(
    mark: Watermark, reading: Reading, limits: BudgetLimits, now_s: float, *, is_active: bool = True
) -> tuple[Watermark, Standing]:
    """Judge a reading; returns the level after it, and what it says. `is_active`: some run is."""
    spendable = spendable_bytes(limits.budget_bytes, reading.base_bytes, reading.journal_bytes)
    ledger_limit = ledger_limit_bytes(spendable)
    held = max(0, reading.held_bytes)
    former_bytes = mark.former.held_bytes if mark.former is not None else 0
    goes_on = is_active or reading.held_bytes > former_bytes + GROWS_BYTES
    mark = _risen(mark, reading, now_s)
    room = max(0, ledger_limit - reading.ledger_bytes) + int(mark.loose_bytes_per_s * AHEAD_S)
    ahead = min(int(mark.rise_bytes_per_s * AHEAD_S), room, int(AHEAD_SHARE * spendable))
    ahead = ahead if goes_on else 0
    alone = _reading_level(mark.level, (held + ahead) / spendable, reading, limits)
    mark = _level(mark, alone, now_s)
    return mark, Standing(
        reading_level=alone,
        ratio=held / spendable,
        ahead_bytes=ahead,
        spendable_bytes=spendable,
        ledger_limit_bytes=ledger_limit,
    )


def forget_time(mark: Watermark) -> Watermark:
    """Forget what was counted before a gap in the clock: the level stays, its dwell begins anew."""
    return replace(mark, lower_since_s=None, former=None, read_s=None)


def _risen(mark: Watermark, reading: Reading, now_s: float) -> Watermark:
    """Take in the fastest rises seen, which fade."""
    former, rise, loose = mark.former, mark.rise_bytes_per_s, mark.loose_bytes_per_s
    if former is not None and mark.read_s is not None and now_s > mark.read_s:
        elapsed_s = now_s - mark.read_s
        fading = float(0.5 ** (elapsed_s / RISE_HALF_LIFE_S))
        # Two readings close together say little about a second; it is the least we divide by.
        per_s = 1 / max(1.0, elapsed_s)
        rise = max(rise * fading, (reading.held_bytes - former.held_bytes) * per_s)
        loose = max(loose * fading, (_loose_bytes(reading) - _loose_bytes(former)) * per_s)
    return replace(
        mark, rise_bytes_per_s=rise, loose_bytes_per_s=loose, former=reading, read_s=now_s
    )


def _loose_bytes(reading: Reading) -> int:
    return max(0, reading.held_bytes - reading.ledger_bytes)


def _reading_level(level: int, ratio: float, reading: Reading, limits: BudgetLimits) -> int:
    """Find the level this reading alone would give to memory that stands at `level`."""
    if _is_last(level, reading, limits):
        return LAST_LEVEL
    entered = sum(ratio >= point for point in ENTER)
    kept = sum(ratio >= point for point in EXIT[:level])
    pressed = PRESSURE_LEVEL if reading.pressure else 0
    return max(entered, kept, pressed)


def _is_last(level: int, reading: Reading, limits: BudgetLimits) -> bool:
    share = LAST_EXIT if level == LAST_LEVEL else LAST_ENTER
    over = reading.used_bytes >= share * limits.budget_bytes
    if limits.hard:
        return over
    machine_is_full = reading.available_bytes < SOFT_AVAILABLE * limits.machine_bytes
    return reading.used_bytes >= SOFT_EXCESS * limits.budget_bytes or (over and machine_is_full)


def _level(mark: Watermark, alone: int, now_s: float) -> Watermark:
    """Move the level: up at once, down to `alone` when it has been lower for the dwell."""
    if alone >= mark.level:
        return replace(mark, level=alone, lower_since_s=None)
    since_s = mark.lower_since_s if mark.lower_since_s is not None else now_s
    if now_s - since_s >= DWELL_S:
        return replace(mark, level=alone, lower_since_s=None)
    return replace(mark, lower_since_s=since_s)
