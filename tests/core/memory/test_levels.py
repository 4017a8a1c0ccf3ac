"""Levels of memory, with numbers for samples and for time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.core.memory import levels as wm
from tidegate.core.settings import MIB

BASE = 44 * MIB
LIMITS = wm.BudgetLimits(budget_bytes=256 * MIB, hard=True, machine_bytes=8192 * MIB)
SPENDABLE = wm.spendable_bytes(256 * MIB, BASE)


def reading(
    held: int, *, ledger: int = 0, used: int | None = None, free: int = 4096 * MIB
) -> wm.Reading:
    return wm.Reading(
        used_bytes=held + BASE if used is None else used,
        held_bytes=held,
        base_bytes=BASE,
        ledger_bytes=ledger,
        available_bytes=free,
    )


def share(ratio: float, **more: int) -> wm.Reading:
    """A reading that is just above `ratio` of the spendable part."""
    return reading(int(ratio * SPENDABLE) + 1, **more)


def level_after(*steps: tuple[float, float], start: wm.Watermark | None = None) -> list[int]:
    """The level after each (ratio, seconds since the last)."""
    mark, now_s, levels = start or wm.Watermark(), 0.0, []
    for ratio, pause_s in steps:
        now_s += pause_s
        mark, _ = wm.judge(mark, share(ratio), LIMITS, now_s)
        levels.append(mark.level)
    return levels


BUDGETS = [wm.LEAST_BUDGET_BYTES, 200 * MIB, 256 * MIB, 512 * MIB, 1024 * MIB, 8192 * MIB]


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_worker_that_has_served_is_level_0_at_every_budget(budget: int) -> None:
    """What it keeps beside its runs is no reason for a level, whatever its base is."""
    limits = wm.BudgetLimits(budget_bytes=budget, hard=True, machine_bytes=8192 * MIB)
    for base in (BASE, wm.USUAL_BASE_BYTES + 2 * MIB):
        kept = replace(reading(wm.WORKER_KEEPS_BYTES), base_bytes=base)
        mark, standing = wm.judge(wm.Watermark(level=5, lower_since_s=0.0), kept, limits, 10.0)
        assert mark.level == 0
        assert standing.ledger_limit_bytes >= 12 * MIB  # two windows, and as much for requests


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("generations", [1, 2])
def test_idle_is_level_0_and_a_recycle_does_not_raise_it(budget: int, generations: int) -> None:
    """Workers that hold no more than their base are level 0 at every budget."""
    limits = wm.BudgetLimits(budget_bytes=budget, hard=True, machine_bytes=8192 * MIB)
    used = generations * BASE + 13 * MIB
    mark, standing = wm.judge(wm.Watermark(), reading(0, used=used), limits, 0.0)
    assert (mark.level, standing.ratio) == (0, 0.0)
    assert standing.ledger_limit_bytes > 0


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_full_journal_in_memory_raises_no_level_and_leaves_answers_their_room(
    budget: int,
) -> None:
    """At every budget: it takes of the spendable part what no reclaiming could give back."""
    limits = wm.BudgetLimits(budget_bytes=budget, hard=True, machine_bytes=8192 * MIB)
    journal = wm.journal_limit_bytes(budget)
    used = 2 * BASE + 13 * MIB + journal  # also while another worker takes over
    full = replace(reading(wm.WORKER_KEEPS_BYTES, used=used), journal_bytes=journal)
    empty = replace(full, journal_bytes=0)
    mark, standing = wm.judge(wm.Watermark(), full, limits, 0.0)
    assert mark.level == 0
    _, without = wm.judge(wm.Watermark(), empty, limits, 0.0)
    assert standing.spendable_bytes == without.spendable_bytes - journal
    assert 12 * MIB <= standing.ledger_limit_bytes < without.ledger_limit_bytes
    assert standing.ledger_limit_bytes >= 0.5 * without.ledger_limit_bytes


def test_a_journal_larger_than_the_budget_leaves_the_least() -> None:
    """Written by a larger budget's rules, say: two windows still live."""
    huge = replace(reading(0), journal_bytes=1 << 40)
    _, standing = wm.judge(wm.Watermark(), huge, LIMITS, 0.0)
    assert standing.spendable_bytes == wm.SPENDABLE_FLOOR_BYTES
    assert wm.journal_limit_bytes(0) == wm.SPENDABLE_FLOOR_BYTES // 4


@pytest.mark.parametrize(
    ("ratio", "level"),
    [(0.59, 0), (0.60, 1), (0.69, 1), (0.70, 2), (0.80, 3), (0.88, 4), (1.0, 4)],
)
def test_levels_are_entered_at_once(ratio: float, level: int) -> None:
    """One reading at an enter point is enough."""
    assert level_after((ratio, 1.0)) == [level]


@pytest.mark.parametrize(
    ("level", "enter", "leave"), list(zip(range(1, 5), wm.ENTER, wm.EXIT, strict=True))
)
def test_level_is_left_below_its_exit_point_after_the_dwell(
    level: int, enter: float, leave: float
) -> None:
    """Above the exit point it stays for ever; below, it is left after ten seconds."""
    above, below = leave + 0.005, leave - 0.005
    assert level_after((enter, 1), (above, 1), (above, 1000)) == [level] * 3
    assert level_after((enter, 1), (below, 1), (below, 9.9), (below, 0.1))[1:] == [
        level,
        level,
        level - 1,
    ]


def test_points_lie_apart() -> None:
    """Enter and exit differ by at least five points, and both rise."""
    for enter, leave in zip(wm.ENTER, wm.EXIT, strict=True):
        assert enter - leave >= 0.05 - 1e-9
    assert sorted(wm.ENTER) == list(wm.ENTER)
    assert sorted(wm.EXIT) == list(wm.EXIT)


def test_rise_within_the_dwell_starts_it_anew() -> None:
    """It cannot flap: a peak while it waits keeps the level."""
    assert level_after((0.75, 1), (0.6, 1), (0.72, 5), (0.6, 1), (0.6, 9)) == [2] * 5


def test_hard_budget_is_last_at_95_percent_of_raw_use() -> None:
    """A set or enforced budget has level 5 just under it."""
    at = int(0.95 * LIMITS.budget_bytes) + 1
    assert wm.judge(wm.Watermark(), reading(0, used=at), LIMITS, 0.0)[0].level == 5
    assert wm.judge(wm.Watermark(), reading(0, used=at - MIB), LIMITS, 0.0)[0].level == 0


def test_guessed_budget_is_last_only_far_above_or_on_a_full_machine() -> None:
    """Our own guess kills at 1.5 times, or when less than 5 % of the machine is left."""
    soft = wm.BudgetLimits(budget_bytes=256 * MIB, hard=False, machine_bytes=8192 * MIB)

    def is_last(used: int, free: int) -> bool:
        return wm.judge(wm.Watermark(), reading(0, used=used, free=free), soft, 0.0)[0].level == 5

    assert not is_last(300 * MIB, 4096 * MIB)
    assert is_last(385 * MIB, 4096 * MIB)
    assert is_last(300 * MIB, 400 * MIB)
    assert not is_last(100 * MIB, 400 * MIB)  # a neighbour filled the machine, not we


@pytest.mark.parametrize(("ratio", "level"), [(0.0, 2), (0.65, 2), (0.75, 2), (0.85, 3), (0.9, 4)])
def test_pressure_raises_the_level_to_2_and_no_further(ratio: float, level: int) -> None:
    """A neighbour who loads a model does not make us refuse clients."""
    pressed = wm.replace(share(ratio), pressure=True)
    mark, _ = wm.judge(wm.Watermark(), pressed, LIMITS, 0.0)
    assert mark.level == level


def test_a_fast_rise_is_counted_on_until_the_next_sample() -> None:
    """What rose by 8 points in a second is judged 8 points higher, and less so later."""
    mark, _ = wm.judge(wm.Watermark(), share(0.50), LIMITS, 0.0)
    mark, standing = wm.judge(mark, share(0.58), LIMITS, 1.0)
    assert mark.level == 1
    assert standing.ratio == pytest.approx(0.58, abs=0.001)
    assert standing.ahead_bytes == pytest.approx(0.08 * SPENDABLE, rel=0.01)
    mark, later = wm.judge(mark, share(0.30), LIMITS, 1.0 + wm.RISE_HALF_LIFE_S)
    assert later.ahead_bytes == pytest.approx(0.04 * SPENDABLE, rel=0.02)


def test_head_room_is_worth_ten_points_at_most() -> None:
    """A burst that is over does not keep clients out."""
    mark, _ = wm.judge(wm.Watermark(), share(0.0), LIMITS, 0.0)
    mark, standing = wm.judge(mark, share(0.65), LIMITS, 1.0)
    assert standing.ahead_bytes == int(wm.AHEAD_SHARE * SPENDABLE)
    assert mark.level == 2


def test_what_runs_hold_rises_no_further_than_the_ledgers_limit() -> None:
    """A burst that has filled the ledger does not close the door."""
    limit = wm.ledger_limit_bytes(SPENDABLE)
    mark, _ = wm.judge(wm.Watermark(), share(0.30, ledger=int(0.30 * SPENDABLE)), LIMITS, 0.0)
    mark, standing = wm.judge(mark, share(0.62, ledger=limit), LIMITS, 1.0)
    assert standing.ahead_bytes < 0.05 * SPENDABLE
    assert mark.level == 1


def test_a_rise_is_counted_on_only_while_something_grows() -> None:
    """With no run active, 53 % that lie still are below the exit of level 1 and leave it."""
    mark, _ = wm.judge(wm.Watermark(), share(0.1), LIMITS, 0.0)
    mark, standing = wm.judge(mark, share(0.65), LIMITS, 1.0)
    assert (mark.level, standing.ahead_bytes > 0) == (2, True)
    for second in range(2, 40):
        jitter = 200 * 1024 * (second % 2)
        still = reading(int(0.53 * SPENDABLE) + jitter)
        mark, standing = wm.judge(mark, still, LIMITS, float(second), is_active=False)
        assert standing.ahead_bytes == 0
    assert mark.level == 0
    grown = share(0.57)
    _, standing = wm.judge(mark, grown, LIMITS, 40.0, is_active=False)
    assert standing.ahead_bytes > 0  # a body that arrives has no run yet


def test_a_gap_in_the_clock_keeps_the_level_and_begins_its_dwell_anew() -> None:
    """Time that was not seen to pass counts for nothing."""
    mark, _ = wm.judge(wm.Watermark(), share(0.75), LIMITS, 0.0)
    mark, _ = wm.judge(mark, share(0.1), LIMITS, 1.0)
    mark, _ = wm.judge(wm.forget_time(mark), share(0.1), LIMITS, 5000.0)
    assert mark.level == 2


def test_ledger_limit_lies_below_hard_shed() -> None:
    """A ledger at its limit closes no door yet, slack included: windows shrink first."""
    limit = wm.judge(wm.Watermark(), reading(0), LIMITS, 0.0)[1].ledger_limit_bytes
    held = int(limit * 1.19) + 15 * MIB
    assert wm.judge(wm.Watermark(), reading(held, ledger=limit), LIMITS, 0.0)[0].level < 3
    assert 0.5 * SPENDABLE < limit < 0.7 * SPENDABLE
    assert wm.ledger_limit_bytes(24 * MIB) == int(wm.LEDGER_LEAST_SHARE * 24 * MIB)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 20)), max_size=50))
def test_level_never_falls_within_the_dwell(steps: list[tuple[float, float]]) -> None:
    """Whatever the samples, a fall comes at least ten seconds after the last reading so high."""
    mark, now_s = wm.Watermark(), 0.0
    high_s = 0.0
    for ratio, pause_s in steps:
        now_s += pause_s
        former = mark.level
        mark, standing = wm.judge(mark, share(ratio, used=0), LIMITS, now_s)
        if mark.level < former:
            assert now_s - high_s >= wm.DWELL_S
        if mark.lower_since_s is None:
            high_s = now_s
        assert sum(standing.ratio >= point for point in wm.ENTER) <= mark.level <= 4


@given(
    st.floats(0, 1.2),
    st.floats(0, 0.5),
    st.booleans(),
    st.builds(wm.Watermark, level=st.integers(0, 5), rise_bytes_per_s=st.floats(0, 1e8)),
)
def test_more_memory_is_never_a_lower_level(
    ratio: float, more: float, pressure: bool, mark: wm.Watermark
) -> None:
    """Severity is monotone in what is held, in raw use and in pressure."""
    low, high = share(ratio), wm.replace(share(ratio + more), pressure=pressure)
    after_low, _ = wm.judge(mark, low, LIMITS, 1.0)
    after_high, _ = wm.judge(mark, high, LIMITS, 1.0)
    assert after_high.level >= after_low.level
