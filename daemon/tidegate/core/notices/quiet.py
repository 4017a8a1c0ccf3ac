"""Quiet hours: a part of the day, in local time, in which only errors are told."""

from __future__ import annotations

import re

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def parse_quiet(text: str) -> tuple[int, int]:
    """Read "22:00-07:00" as two minutes of the day, the second one no longer quiet.

    Raises ValueError, whose text completes "quiet: …".
    """
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError('must be two times of the day, "22:00-07:00"')
    from_hour, from_minute, to_hour, to_minute = map(int, found.groups())
    begin, end = 60 * from_hour + from_minute, 60 * to_hour + to_minute
    if begin == end:
        raise ValueError("must begin and end at different times")
    return begin, end


def is_quiet(text: str | None, minute: int) -> bool:
    """Tell whether that minute of the day (0 to 1439) is quiet. `text` has been checked."""
    if text is None:
        return False
    begin, end = parse_quiet(text)
    if begin < end:
        return begin <= minute < end
    return minute >= begin or minute < end
