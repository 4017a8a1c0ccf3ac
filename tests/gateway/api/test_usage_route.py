"""`/v1/usage`: from when on it sums up, and of whom."""

from __future__ import annotations

from datetime import UTC, datetime, timezone

import pytest

from tidegate.gateway.api.usage import moment
from tidegate.gateway.server.errors import Refused

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "ago_s"),
    [("0", 0), ("90", 90), ("90s", 90), ("30min", 1800), ("2h", 7200), ("7d", 604_800)],
)
def test_so_long_ago(text: str, ago_s: float) -> None:
    """In the units that the command line takes, or in seconds."""
    assert moment(text, NOW) == NOW - ago_s


def test_either_end_of_the_calendar_is_a_date() -> None:
    """From the beginning, or nothing so far."""
    assert moment("0001-01-01", NOW) == moment("0001-01-01T00:00:00+14:00", NOW) == 0
    assert moment("9999-12-31", NOW) >= NOW
    assert moment("9999-12-31T23:59:59-12:00", NOW) > NOW


def test_longer_ago_than_time_is_from_the_beginning() -> None:
    """Not before 1970, which no row is."""
    assert moment("9999999999w", NOW) == 0


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("2026-11-22T06:00:00Z", UTC),
        ("2026-11-22T06:00:00+00:00", UTC),
        ("2026-11-22T06:00:00 00:00", UTC),  # a + that was not escaped
        ("2026-11-22T06:00", None),
        ("2026-11-22 06:00", None),
    ],
)
def test_a_date(text: str, zone: timezone | None) -> None:
    """With its zone, or in the gateway's."""
    assert moment(text, NOW) == datetime(2026, 11, 22, 6, tzinfo=zone).timestamp()
    day = datetime(2026, 11, 22)
    assert moment("2026-11-22", NOW) == day.timestamp()
    assert moment("today", day.replace(hour=23).timestamp()) == day.timestamp()


@pytest.mark.parametrize("text", ["", "x", "-1", "7 d", "7y", "1e9", "٣d", "2026-13-01", "T"])
def test_anything_else_is_refused_with_what_may_be_said(text: str) -> None:
    """None of it is taken for a beginning."""
    with pytest.raises(Refused, match="how long ago") as refused:
        moment(text, NOW)
    assert (refused.value.status, refused.value.code) == (400, "bad_since")
