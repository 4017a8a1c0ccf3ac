"""Whether a worker's memory grows without end, or only breathes.

The worker sends its resident memory and its ledger as one pair, read in one callback: from two
processes at two instants the difference would be their skew. What no run explains is the
difference of the two, and of each bucket (5 minutes) only the minimum counts, because bursts go
up and come down while a leak also lifts the floor. The first hours of a worker do not count:
caches and arenas fill then.

A window of 48 such minima is a *hit* if all of this holds:

- Mann-Kendall's z is over 3.5: later minima are higher than earlier ones, as a rule;
- the Theil-Sen slope makes more of the window than 6 MiB, than 2 % of the resident memory, and
  than how far the ledger went up and down: connections, tasks and gaps between buffers come with
  every load, and against those of a large one a small leak shows only by night;
- neither half has less than 0.6 of the steepest slope of the three: a warm-up slackens, a step has
  one steep place, a leak goes on (0.6 of the whole window's alone let a warm-up of 3 h pass);
- the resident memory grew as much by itself. What a run gives back the allocator keeps, so when
  the load falls for hours what no run explains rises for hours, at a level that was reached long
  before. A leak that still fits into such free places costs nothing yet.

Three hits, each `confirm_s` after the one counted before, confirm it. So long without any hit, and
it is taken back; fewer misses are noise, and would only make one leak into several alarms.

Tried and given up: five rises in a row, Mann-Kendall alone and a plain slope, which call nearly
every healthy day a leak; and 4 MiB, which one slow warm-up in ten passed.

Times are those of the buckets. Where beats were missing (the computer slept) there is no bucket;
nothing is made up in between, and growth is spread over the time that really passed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from math import sqrt

from msgspec import Struct
from msgspec.structs import replace

from tidegate.core import settings
from tidegate.core.settings import MIB

WINDOW_POINTS = 48  # 4 h: long enough to outlast a warm-up's tail, short enough to act within a day
SLOPE_POINTS = 12  # an hour: from fewer a slope says nothing but noise
TREND_Z = 3.5
GROWTH_BYTES, GROWTH_SHARE = 6 * MIB, 0.02
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
    hits: int = 0  # each confirm_s after the one before, and no more than confirm
    counted_s: float = 0.0  # when the last of them was
    hit_s: float = 0.0  # when the last hit of all was


class Finding(Struct, frozen=True, kw_only=True):
    """What a window says, with all that it is judged by. None: too few points for that yet."""

    points: int
    span_s: float  # from the first bucket to the last
    rss_bytes: int  # of the last bucket
    ledger_range_bytes: int  # how far what runs explain went up and down
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
    trend = replace(
        _counted(trend, periods, filling.at_s, is_hit=finding.is_hit),
        filling=Point(now_s, unexplained_bytes, rss_bytes),
        points=points,
    )
    return trend, replace(finding, is_confirmed=trend.hits >= CONFIRMING_HITS)


def forecast_s(bytes_per_h: float, room_bytes: int) -> float | None:
    """Forecast the seconds until `room_bytes` is used up at that growth; None: never."""
    if bytes_per_h <= 0:
        return None
    return max(0, room_bytes) / bytes_per_h * HOUR_S


def _counted(trend: Trend, periods: settings.Growth, at_s: float, *, is_hit: bool) -> Trend:
    """Count this window's hit or miss."""
    if not is_hit:
        is_over = at_s - trend.hit_s >= periods.confirm_s
        return replace(trend, hits=0) if is_over else trend
    is_first = trend.hits == 0
    if not is_first and at_s - trend.counted_s < periods.confirm_s:
        return replace(trend, hit_s=at_s)
    hits = min(trend.hits + 1, CONFIRMING_HITS)
    return replace(trend, hits=hits, counted_s=at_s, hit_s=at_s)


def _judge(points: tuple[Point, ...]) -> Finding:
    """Judge the window by itself, whatever those before it said."""
    last = points[-1]
    explained = [point.rss_bytes - point.unexplained_bytes for point in points]
    finding = Finding(
        points=len(points),
        span_s=last.at_s - points[0].at_s,
        rss_bytes=last.rss_bytes,
        ledger_range_bytes=max(explained) - min(explained),
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
    slopes = _slopes(series)
    finding = replace(
        finding,
        bytes_per_h=_median(slopes),
        rss_bytes_per_h=_median(_slopes([(p.at_s, p.rss_bytes) for p in points])),
        halves_bytes_per_h=(_median(_slopes(series[:middle])), _median(_slopes(series[middle:]))),
        z=_mann_kendall(slopes, series),
    )
    return replace(finding, is_hit=_is_hit(finding))


def _is_hit(seen: Finding) -> bool:
    if seen.points < WINDOW_POINTS or seen.z is None or seen.z <= TREND_Z:
        return False
    assert seen.bytes_per_h is not None
    assert seen.rss_bytes_per_h is not None
    assert seen.halves_bytes_per_h is not None
    grown_bytes = min(seen.bytes_per_h, seen.rss_bytes_per_h) * seen.span_s / HOUR_S
    least_bytes = max(GROWTH_BYTES, GROWTH_SHARE * seen.rss_bytes, seen.ledger_range_bytes)
    if grown_bytes <= least_bytes:
        return False
    steepest = max(seen.bytes_per_h, *seen.halves_bytes_per_h)
    return min(seen.halves_bytes_per_h) >= HALF_SHARE * steepest


def _slopes(series: list[tuple[float, int]]) -> list[float]:
    """Compute the slopes between all pairs, per second, the least first."""
    slopes: list[float] = []
    for i, (at_s, value) in enumerate(series):
        slopes += [(value - former) / (at_s - former_s) for former_s, former in series[:i]]
    slopes.sort()
    return slopes


def _median(slopes: list[float]) -> float:
    """Compute Theil-Sen's slope, per hour: outliers do not move it."""
    middle = len(slopes) // 2
    return (slopes[middle] + slopes[~middle]) / 2 * HOUR_S


def _mann_kendall(slopes: list[float], series: list[tuple[float, int]]) -> float:
    """Compute z, how surely later values are higher. Whole pages make ties, which are neither."""
    score = len(slopes) - bisect_right(slopes, 0.0) - bisect_left(slopes, 0.0)
    ties = sum(_weight(count) for count in Counter(value for _, value in series).values())
    variance = (_weight(len(series)) - ties) / 18
    if score == 0:
        return 0.0
    return (score - 1 if score > 0 else score + 1) / sqrt(variance)


def _weight(n: int) -> int:
    return n * (n - 1) * (2 * n + 5)
