"""Quiet hours."""

from __future__ import annotations

import pytest

from tidegate.core.notices.quiet import is_quiet, parse_quiet


@pytest.mark.parametrize(
    ("hours", "quiet", "loud"),
    [
        ("22:00-07:00", ["22:00", "23:59", "00:00", "06:59"], ["21:59", "07:00", "12:00"]),
        ("12:30-14:00", ["12:30", "13:59"], ["12:29", "14:00", "00:00"]),
    ],
)
def test_they_may_go_over_midnight(hours: str, quiet: list[str], loud: list[str]) -> None:
    """From the first minute on, until before the second."""
    for times, expected in ((quiet, True), (loud, False)):
        for time in times:
            hour, _, minute = time.partition(":")
            assert is_quiet(hours, 60 * int(hour) + int(minute)) is expected, time
    assert not is_quiet(None, 0)


@pytest.mark.parametrize("text", ["", "22-7", "22:00-24:00", "22:60-07:00", "22:00-22:00", "x"])
def test_what_is_no_part_of_a_day_is_refused(text: str) -> None:
    """With how it is written."""
    with pytest.raises(ValueError, match="must"):
        parse_quiet(text)
