"""Whether a worker's memory grows without end, or only breathes.

The worker sends its resident memory and its ledger as one pair, read in one callback: from two
processes at two instants the difference would be their skew. What no run explains is the
difference of the two, and of each bucket (5 minutes) only the minimum counts, because bursts go
up and come down while a leak also lifts the floor. The first hours of a worker do not count:
caches and arenas fill then.

A window of 48 such minima is a *hit* if all of this holds:

- Mann-Kendall's z is over 3.5: later minima are higher than earlier ones, as a rule;
- the Theil-Sen slope makes more of the window than 4 MiB and 2 % of the resident memory;
- neither half has less than 0.6 of the steepest slope of the three: a warm-up slackens, a step has
  one steep place, a leak goes on (0.6 of the whole window's alone let a warm-up of 3 h pass);
- the resident memory grew as much by itself. What a run gives back the allocator keeps, so when
  the load falls for hours what nobody explains rises for hours, at a level that was reached long
  before. A leak that still fits into such free places costs nothing yet.

Three hits in a row, each `confirm_s` after the one before, confirm it, and one window that is no
hit takes it back. Tried and given up: five rises in a row, Mann-Kendall alone and a plain slope,
which call nearly every healthy day a leak.

Times are those of the buckets. Where beats were missing (the computer slept) there is no bucket;
nothing is made up in between, and growth is spread over the time that really passed.
"""

from __future__ import annotations

from collections import Counter
from math import sqrt

from msgspec import Struct
from msgspec.structs import replace

from tidegate.core import settings
from tidegate.core.settings import MIB

WINDOW_POINTS = 48  # 4 h: long enough to outlast a warm-up's tail, short enough to act within a day
SLOPE_POINTS = 12  # an hour: from fewer a slope says nothing but noise
TREND_Z = 3.5
GROWTH_BYTES, GROWTH_SHARE = 4 * MIB, 0.02
HALF_SHARE = 0.6
CONFIRMING_HITS = 3
HOUR_S = 3600.0


class Point(Struct, frozen=True, array_like=True):
    """A bucket: when it began, and the least that was read in it of either figure."""

    at_s: float
    unexplained_bytes: int
    rss_bytes: int


class Trend(Struct, frozen=True, kw_only=True):
    """What is remembered of one generation; another one begins with an empty one."""

    filling: Point | None = None
    points: tuple[Point, ...] = ()  # oldest first, at most WINDOW_POINTS
    hits: int = 0  # in a row, each confirm_s after the one before; no more than confirm
    hit_s: float = 0.0  # when the last of them was counted


class Finding(Struct, frozen=True, kw_only=True):
    """What a window says, with all that it is judged by. None: too few points for that yet."""

    points: int
    span_s: float  # from the first bucket to the last
    rss_bytes: int  # of the last bucket
    bytes_per_h: float | None  # of what no run explains
    rss_bytes_per_h: float | None
    halves_bytes_per_h: tuple[float, float] | None
    z: float | None
    is_hit: bool  # this window looks like a leak
    is_confirmed: bool  # and so did those before it: an alarm


def observe(
    trend: Trend,
    periods: settings.Growth,
    *,
    now_s: float,
    age_s: float,
    rss_bytes: int,
    ledger_bytes: int,
) -> tuple[Trend, Finding | None]:
    """Take in one pair, of a generation that old. A finding comes with every bucket that closes."""
    if age_s < periods.skip_s:
        return trend, None
    unexplained_bytes = rss_bytes - ledger_bytes
    filling = trend.filling
    if filling is None:
        return replace(trend, filling=Point(now_s, unexplained_bytes, rss_bytes)), None
    if now_s - filling.at_s < periods.bucket_s:
        if unexplained_bytes >= filling.unexplained_bytes and rss_bytes >= filling.rss_bytes:
            return trend, None
        lower = Point(
            filling.at_s,
            min(unexplained_bytes, filling.unexplained_bytes),
            min(rss_bytes, filling.rss_bytes),
        )
        return replace(trend, filling=lower), None
    points = (*trend.points, filling)[-WINDOW_POINTS:]
    finding = _judge(points)
    hits, hit_s = _counted(trend, periods, filling.at_s, is_hit=finding.is_hit)
    trend = Trend(
        filling=Point(now_s, unexplained_bytes, rss_bytes), points=points, hits=hits, hit_s=hit_s
    )
    return trend, replace(finding, is_confirmed=hits >= CONFIRMING_HITS)


def forecast_s(bytes_per_h: float, room_bytes: int) -> float | None:
    """When `room_bytes` will be used up at that growth; None: never."""
    if bytes_per_h <= 0:
        return None
    return max(0, room_bytes) / bytes_per_h * HOUR_S


def _counted(
    trend: Trend, periods: settings.Growth, at_s: float, *, is_hit: bool
) -> tuple[int, float]:
    """How many hits there are in a row, and when the last of them was."""
    if not is_hit:
        return 0, 0.0
    if trend.hits == 0:
        return 1, at_s
    if trend.hits >= CONFIRMING_HITS or at_s - trend.hit_s < periods.confirm_s:
        return trend.hits, trend.hit_s
    return trend.hits + 1, at_s


def _judge(points: tuple[Point, ...]) -> Finding:
    """What the window says by itself, whatever those before it said."""
    last = points[-1]
    finding = Finding(
        points=len(points),
        span_s=last.at_s - points[0].at_s,
        rss_bytes=last.rss_bytes,
        bytes_per_h=None,
        rss_bytes_per_h=None,
        halves_bytes_per_h=None,
        z=None,
        is_hit=False,
        is_confirmed=False,
    )
    if len(points) < SLOPE_POINTS:
        return finding
    series = [(p.at_s, p.unexplained_bytes) for p in points]
    middle = len(series) // 2
    finding = replace(
        finding,
        bytes_per_h=_slope(series),
        rss_bytes_per_h=_slope([(p.at_s, p.rss_bytes) for p in points]),
        halves_bytes_per_h=(_slope(series[:middle]), _slope(series[middle:])),
        z=_mann_kendall([value for _, value in series]),
    )
    return replace(finding, is_hit=_is_hit(finding))


def _is_hit(seen: Finding) -> bool:
    if seen.points < WINDOW_POINTS or seen.z is None or seen.z <= TREND_Z:
        return False
    assert seen.bytes_per_h is not None
    assert seen.rss_bytes_per_h is not None
    assert seen.halves_bytes_per_h is not None
    grown_bytes = min(seen.bytes_per_h, seen.rss_bytes_per_h) * seen.span_s / HOUR_S
    if grown_bytes <= max(GROWTH_BYTES, GROWTH_SHARE * seen.rss_bytes):
        return False
    steepest = max(seen.bytes_per_h, *seen.halves_bytes_per_h)
    return min(seen.halves_bytes_per_h) >= HALF_SHARE * steepest


def _slope(series: list[tuple[float, int]]) -> float:
    """Theil-Sen, per hour: the median of the slopes between all pairs. Outliers do not move it."""
    slopes = sorted(
        (value - former) / (at_s - former_s)
        for i, (at_s, value) in enumerate(series)
        for former_s, former in series[:i]
    )
    middle = len(slopes) // 2
    return (slopes[middle] + slopes[~middle]) / 2 * HOUR_S


def _mann_kendall(values: list[int]) -> float:
    """z: how surely later values are higher; 0 if all are equal. Pages make ties, so they count."""
    score = sum(
        (value > former) - (value < former)
        for i, value in enumerate(values)
        for former in values[:i]
    )
    ties = sum(_weight(count) for count in Counter(values).values())
    variance = (_weight(len(values)) - ties) / 18
    if score == 0:
        return 0.0
    return (score - 1 if score > 0 else score + 1) / sqrt(variance)


def _weight(n: int) -> int:
    return n * (n - 1) * (2 * n + 5)
