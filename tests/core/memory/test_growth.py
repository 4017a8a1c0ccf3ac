"""What counts as a leak, told on series of minutes and days that take milliseconds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from tidegate.core.memory.growth import (
    CONFIRMING_HITS,
    GROWTH_BYTES,
    GROWTH_SHARE,
    SLOPE_POINTS,
    WINDOW_POINTS,
    Finding,
    Trend,
    forecast_s,
    observe,
)
from tidegate.core.settings import MIB, Growth

HOUR_S = 3600.0
PERIODS = Growth()
BASE = 60 * MIB
PAGE = 4096
PER_BUCKET = 10  # pairs in five minutes: enough for a minimum

Shape = Callable[[float], float]  # hours of age -> MiB beyond the base


def play(
    shape: Shape,
    *,
    hours: float,
    noise_mib: float = 0.0,
    ledger: Shape = lambda _: 0.0,
    seed: int = 0,
) -> list[Finding]:
    """What is found in a worker whose unexplained memory has that shape."""
    chance = random.Random(seed)
    step_s = PERIODS.bucket_s / PER_BUCKET
    trend, found = Trend(), []
    for n in range(int(hours * HOUR_S / step_s)):
        age_s = n * step_s
        age_h = age_s / HOUR_S
        held_mib = shape(age_h) + chance.expovariate(1.0) * noise_mib
        ledger_bytes = int(ledger(age_h) * MIB)
        rss_bytes = (BASE + int(held_mib * MIB)) // PAGE * PAGE + ledger_bytes
        trend, finding = observe(
            trend,
            PERIODS,
            now_s=1e5 + age_s,
            age_s=age_s,
            rss_bytes=rss_bytes,
            ledger_bytes=ledger_bytes,
        )
        found += [finding] if finding else []
    return found


def feed(values: Iterable[int], *, step_s: float = PERIODS.bucket_s) -> list[Finding]:
    """What is found when each value is one bucket."""
    found, trend = [], Trend()
    for n, value in enumerate([*values, 0]):  # the last one only closes the bucket before it
        trend, finding = observe(
            trend,
            PERIODS,
            now_s=n * step_s,
            age_s=1e6,
            rss_bytes=value,
            ledger_bytes=0,
        )
        found += [finding] if finding else []
    return found


def alarm_h(found: list[Finding]) -> float | None:
    """The age at which it was confirmed."""
    first = next((n for n, finding in enumerate(found) if finding.is_confirmed), None)
    return None if first is None else (PERIODS.skip_s + (first + 1) * PERIODS.bucket_s) / HOUR_S


def breathing(mib: float, shift_h: float = 0.0) -> Shape:
    """More by day, less by night."""
    return lambda h: mib * (1 - math.cos(2 * math.pi * (h + shift_h) / 24)) / 2


HEALTHY: dict[str, Shape] = {
    "flat": lambda _: 0.0,
    "warm-up of hours": lambda h: 60 * (1 - math.exp(-h / 3)),
    "warm-up of minutes": lambda h: 200 * (1 - math.exp(-h / 0.3)),
    "one step": lambda h: 80.0 if h > 7.3 else 0.0,
    "a step every five hours": lambda h: 9.0 * (h // 5),
    "sawtooth of an hour": lambda h: 40 * (h % 1),
    "sawtooth of three hours": lambda h: 40 * (h % 3) / 3,
    "falling": lambda h: 80 - h,
    "a creep too small to matter": lambda h: 0.4 * h,
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("seed", range(3))
def test_healthy_days(name: str, seed: int) -> None:
    """Two days that level off, jump or come back are no alarm, with and without noise."""
    noise_mib = (0.0, 0.5, 3.0)[seed]
    found = play(HEALTHY[name], hours=48, noise_mib=noise_mib, seed=seed)
    assert alarm_h(found) is None


@pytest.mark.parametrize(("mib_per_h", "limit_h"), [(3, 8.0), (10, 7.2), (50, 7.2)])
@pytest.mark.parametrize("seed", range(3))
def test_leaks(mib_per_h: float, limit_h: float, seed: int) -> None:
    """A leak on noise is confirmed within hours, warm-up and all."""
    found = play(lambda h: mib_per_h * h, hours=12, noise_mib=1.0, seed=seed)
    confirmed_h = alarm_h(found)
    assert confirmed_h is not None
    assert confirmed_h <= limit_h
    assert found[-1].bytes_per_h == pytest.approx(mib_per_h * MIB, rel=0.2)


def test_a_slow_leak_is_measured_even_if_it_is_never_alarming() -> None:
    """At 1 MiB/h a window grows by 4 MiB, which is no hit; the slope is right all the same."""
    found = play(lambda h: h, hours=24, noise_mib=0.5)
    assert found[-1].bytes_per_h == pytest.approx(MIB, rel=0.3)


def test_a_leak_after_a_plateau() -> None:
    """Once the leak fills most of the window it is found, however long all was well before."""
    found = play(lambda h: max(0.0, 3 * (h - 40)), hours=52, noise_mib=0.5)
    confirmed_h = alarm_h(found)
    assert confirmed_h is not None
    assert 42 < confirmed_h <= 46


def test_a_leak_that_ends_is_no_longer_alarming() -> None:
    """The alarm holds while hits go on, and is taken back when there was none for half an hour."""
    found = play(lambda h: 5 * min(h, 10), hours=24, noise_mib=0.2)
    confirmed = [finding.is_confirmed for finding in found]
    first, last = confirmed.index(True), len(confirmed) - confirmed[::-1].index(True)
    assert all(confirmed[first:last])
    assert not any(confirmed[last:])
    waited = round(PERIODS.confirm_s / PERIODS.bucket_s)
    assert [f.is_hit for f in found[last - waited : last + 1]] == [True, *[False] * waited]


def test_what_runs_explain_is_no_growth() -> None:
    """A ledger that grows for a day, and resident memory with it, is no leak."""
    found = play(lambda _: 5.0, hours=24, noise_mib=0.5, ledger=lambda h: 12 * h)
    assert alarm_h(found) is None


@pytest.mark.parametrize("shift_h", range(0, 24, 3))
def test_what_runs_give_back_is_no_growth(shift_h: int) -> None:
    """When load falls for hours the allocator keeps the memory: unexplained, but nothing grew."""
    load = breathing(120, shift_h)
    found = play(
        lambda h: 150 - load(h), hours=72, noise_mib=0.5, ledger=load
    )  # resident memory stays where it is
    assert alarm_h(found) is None


def test_a_leak_under_a_breathing_load() -> None:
    """A load that comes and goes by the day does not hide a leak."""
    found = play(lambda h: 4 * h, hours=30, noise_mib=0.5, ledger=breathing(20))
    assert alarm_h(found) is not None


def test_the_first_hours_do_not_count() -> None:
    """Nothing is judged, nor even remembered, before a generation is old enough."""
    trend, finding = observe(
        Trend(), PERIODS, now_s=9.0, age_s=PERIODS.skip_s - 1, rss_bytes=BASE, ledger_bytes=0
    )
    assert (trend, finding) == (Trend(), None)
    trend, _ = observe(
        Trend(), PERIODS, now_s=9.0, age_s=PERIODS.skip_s, rss_bytes=BASE, ledger_bytes=0
    )
    assert trend.filling is not None


def test_findings_come_with_closed_buckets_and_slopes_after_an_hour() -> None:
    """Every bucket brings a finding; its figures come once there are enough of them."""
    found = feed(range(BASE, BASE + 3 * WINDOW_POINTS))
    assert [f.points for f in found] == [min(n + 1, WINDOW_POINTS) for n in range(len(found))]
    assert [f.bytes_per_h is not None for f in found[: SLOPE_POINTS + 1]] == [
        *[False] * (SLOPE_POINTS - 1),
        True,
        True,
    ]


def test_only_the_minimum_of_a_bucket_counts() -> None:
    """Bursts within a bucket leave no trace."""
    trend = Trend()
    for n, rss in enumerate([BASE + 7, BASE, BASE + 90 * MIB]):
        trend, finding = observe(
            trend, PERIODS, now_s=float(n), age_s=1e6, rss_bytes=rss, ledger_bytes=3
        )
        assert finding is None
    trend, finding = observe(
        trend, PERIODS, now_s=PERIODS.bucket_s, age_s=1e6, rss_bytes=BASE, ledger_bytes=0
    )
    assert finding is not None
    assert (finding.rss_bytes, trend.points[-1].unexplained_bytes) == (BASE, BASE - 3)


def with_gap(values: list[int], *, gap_at: int, gap_s: float) -> list[Finding]:
    """One value a bucket, and no beats for a while after `gap_at` of them."""
    trend, found, now_s = Trend(), [], 0.0
    for n, value in enumerate([*values, 0]):
        now_s += gap_s if n == gap_at else PERIODS.bucket_s
        trend, finding = observe(
            trend, PERIODS, now_s=now_s, age_s=1e6, rss_bytes=value, ledger_bytes=0
        )
        found += [finding] if finding else []
    return found


@pytest.mark.parametrize("gap_at", [5, 24, 43])
def test_a_gap_makes_no_slope(gap_at: int) -> None:
    """A lid closed for a night makes no points; slopes are over the time that really passed."""
    step = int(3 * MIB * PERIODS.bucket_s / HOUR_S)
    gap_s = 12 * HOUR_S
    # Grown at the same rate through the gap: exactly that rate is measured.
    lost = int(3 * MIB * (gap_s - PERIODS.bucket_s) / HOUR_S)
    values = [BASE + n * step + (lost if n >= gap_at else 0) for n in range(WINDOW_POINTS)]
    last = with_gap(values, gap_at=gap_at, gap_s=gap_s)[-1]
    assert last.points == WINDOW_POINTS
    assert last.bytes_per_h == pytest.approx(3 * MIB, rel=0.01)
    # Flat before and after it, but higher: a step, no hit.
    values = [BASE + n % 3 * PAGE + (30 * MIB if n >= gap_at else 0) for n in range(WINDOW_POINTS)]
    assert not any(f.is_hit for f in with_gap(values, gap_at=gap_at, gap_s=gap_s))


def test_a_leak_is_found_across_gaps() -> None:
    """A leak that stands still while the computer sleeps is found all the same."""
    step = int(6 * MIB * PERIODS.bucket_s / HOUR_S)
    values = [BASE + n * step for n in range(3 * WINDOW_POINTS)]
    found = with_gap(values, gap_at=30, gap_s=10 * HOUR_S)
    assert any(f.is_confirmed for f in found)


def test_a_gap_between_hits_confirms_nothing() -> None:
    """Three hits are needed; one before and one after a night are two."""
    step = int(6 * MIB * PERIODS.bucket_s / HOUR_S)
    values = [BASE + n * step for n in range(WINDOW_POINTS + 2)]
    found = with_gap(values, gap_at=WINDOW_POINTS, gap_s=10 * HOUR_S)
    assert not any(f.is_confirmed for f in found)


def test_three_hits_half_an_hour_apart() -> None:
    """The first window that is full may be a hit; the alarm comes an hour after it."""
    step = int(6 * MIB * PERIODS.bucket_s / HOUR_S)
    found = feed(BASE + n * step for n in range(2 * WINDOW_POINTS))
    first = next(n for n, f in enumerate(found) if f.is_hit)
    confirmed = next(n for n, f in enumerate(found) if f.is_confirmed)
    assert first == WINDOW_POINTS - 1
    wait_s = (CONFIRMING_HITS - 1) * PERIODS.confirm_s
    assert (confirmed - first) * PERIODS.bucket_s == wait_s


def test_periods_scale() -> None:
    """With a bucket of half a second an alarm takes half a minute."""
    periods = Growth(bucket_s=0.5, skip_s=2.0, confirm_s=3.0)
    trend, alarm_s = Trend(), None
    for n in range(400):
        now_s = n / 10
        trend, finding = observe(
            trend,
            periods,
            now_s=now_s,
            age_s=now_s,
            rss_bytes=BASE + n * MIB // 4,
            ledger_bytes=0,
        )
        if finding and finding.is_confirmed and alarm_s is None:
            alarm_s = now_s
    assert alarm_s == pytest.approx(2.0 + WINDOW_POINTS * 0.5 + 6.0, abs=1.0)


def test_the_forecast() -> None:
    """What is left lasts as long as the growth needs to fill it; without growth for ever."""
    assert forecast_s(2 * MIB, 6 * MIB) == pytest.approx(3 * HOUR_S)
    assert forecast_s(2 * MIB, 0) == 0
    assert forecast_s(2 * MIB, -5) == 0
    assert forecast_s(0, MIB) is None
    assert forecast_s(-1.5, MIB) is None


# --- for any series -----------------------------------------------------------------------------

windows = st.lists(
    st.integers(BASE, BASE + 64 * MIB), min_size=WINDOW_POINTS, max_size=WINDOW_POINTS
)
any_series = st.lists(st.integers(0, 2**40), max_size=2 * WINDOW_POINTS)


def last_of(values: Iterable[int]) -> Finding:
    return feed(values)[-1]


@given(windows, st.integers(0, 2**30))
@example_settings(max_examples=30, deadline=None)
def test_the_level_does_not_matter(values: list[int], offset: int) -> None:
    """A slope is that of the changes: the same on top of any level."""
    low, high = last_of(values), last_of(v + offset for v in values)
    assert high.bytes_per_h == low.bytes_per_h
    assert high.z == low.z


@given(windows, st.integers(2, 9))
@example_settings(max_examples=30, deadline=None)
def test_slopes_scale_with_the_data(values: list[int], factor: int) -> None:
    """Thrice the growth has thrice the slope, and is as sure as the growth was."""
    small, large = last_of(values), last_of(v * factor for v in values)
    assert small.bytes_per_h is not None
    assert large.bytes_per_h == pytest.approx(factor * small.bytes_per_h, abs=1e-6)
    assert large.z == small.z


@given(st.integers(int(0.13 * MIB), MIB), st.integers(0, 40 * MIB), st.data())
@example_settings(max_examples=30, deadline=None)
def test_steady_growth_always_hits(step: int, start: int, data: st.DataObject) -> None:
    """Whatever rises in every bucket, by about the same and by enough, is a hit."""
    swing = st.integers(0, step // 8)
    values = [BASE + start + n * step + data.draw(swing) for n in range(WINDOW_POINTS)]
    if (values[-1] - values[0]) * 0.8 > max(GROWTH_BYTES, GROWTH_SHARE * values[-1]):
        assert last_of(values).is_hit


@given(any_series)
@example_settings(max_examples=50, deadline=None)
def test_little_growth_never_hits(series: list[int]) -> None:
    """Never a hit where the window spans less than 6 MiB, or less than 2 % of what is resident."""
    values = [BASE + v % GROWTH_BYTES for v in series]
    assert not any(f.is_hit for f in feed(values))
    large = 100 * GROWTH_BYTES
    values = [large + v % int(GROWTH_SHARE * large) for v in series]
    assert not any(f.is_hit for f in feed(values))


@given(any_series)
@example_settings(max_examples=30, deadline=None)
def test_any_series_is_judged(series: list[int]) -> None:
    """Every bucket gets a finding with finite figures, and what is remembered stays bounded."""
    trend = Trend()
    for n, value in enumerate(series):
        trend, finding = observe(
            trend,
            PERIODS,
            now_s=n * PERIODS.bucket_s,
            age_s=1e6,
            rss_bytes=value,
            ledger_bytes=series[-1 - n],
        )
        assert len(trend.points) <= WINDOW_POINTS
        assert (finding is None) == (n == 0)
        if finding and finding.bytes_per_h is not None:
            assert finding.z is not None
            assert math.isfinite(finding.bytes_per_h)
            assert math.isfinite(finding.z)
    assert len(msgspec.json.encode(trend)) < 4096


@given(any_series, st.integers(0, 2 * WINDOW_POINTS))
@example_settings(max_examples=30, deadline=None)
def test_memory_survives_json(series: list[int], cut: int) -> None:
    """What is remembered can be written down and read again at any time; nothing changes by it."""
    trend = Trend()
    for n, value in enumerate(series[:cut]):
        trend, _ = observe(
            trend,
            PERIODS,
            now_s=n * 301.5,
            age_s=1e6,
            rss_bytes=value,
            ledger_bytes=0,
        )
    assert msgspec.json.decode(msgspec.json.encode(trend), type=Trend) == trend


@given(st.sets(st.integers(0, WINDOW_POINTS - 1), min_size=2), st.integers(0, 3))
@example_settings(max_examples=30, deadline=None)
def test_equal_values_are_neither_up_nor_down(raised: set[int], levels: int) -> None:
    """Ties count for nothing: a series of few levels is judged by the levels alone."""
    values = [BASE + (MIB * (levels + 1) if n in raised else 0) for n in range(WINDOW_POINTS)]
    forth, back = last_of(values), last_of(reversed(values))
    assert forth.z == pytest.approx(-(back.z or 0.0))
    assert forth.bytes_per_h == pytest.approx(-(back.bytes_per_h or 0.0))
    assert not forth.is_hit


def test_a_flat_line_has_no_trend() -> None:
    """All equal: z is 0, as is the slope, and nothing is divided by."""
    last = last_of([BASE] * WINDOW_POINTS)
    assert (last.z, last.bytes_per_h, last.is_hit) == (0.0, 0.0, False)
