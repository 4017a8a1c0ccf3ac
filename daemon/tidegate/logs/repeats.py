"""Decides which log lines are written, and which are only counted.

Two rules. A line that says the same as the one before it is counted. Of one kind of line, where
words with a digit in them count as equal, `MOST_A_MINUTE` are written in a minute; the others are
counted. The first of anything is written at once, so no error hides; a count is said before
another line is written, after a minute at the latest, and at the end. A count of one is said by
writing the line itself.

So a flood costs a line a minute and the log keeps what led to it, while a restart in a loop, an
upstream that comes and goes, or twenty recycles are still told one by one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgspec import Struct

EVERY_S = 60.0
MOST_A_MINUTE = 30
MOST_KINDS = 200  # beyond it all further kinds count as one: a log is bounded in any case
# Words with a digit: ids, sizes, durations, addresses. Looked for at a word's beginning only, or a
# long word without one would cost its length squared.
_VARIABLE = re.compile(r"(?<!\S)[^\s\d]*\d\S*")
_LOOKED_AT = 300  # characters of a line


class LogLine(Struct, frozen=True):
    """A line for the log."""

    level: int
    text: str
    at: float  # Unix seconds


@dataclass(slots=True)
class _Kind:
    """Lines that count as equal, since the first of them or since their count was last said."""

    since_s: float
    last: LogLine
    written: int = 1
    counted: int = 0
    differ: bool = False  # those that were counted do not all say what was written last


class Repeats:
    """Counts what has lately been logged. `now_s` is monotonic."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, str], _Kind] = {}
        self._former: tuple[int, str] | None = None  # the kind of the line before

    def __repr__(self) -> str:
        return f"<Repeats kinds={len(self._kinds)}>"

    def take(self, line: LogLine, now_s: float) -> list[LogLine]:
        """Take a line; what is to be written now: nothing, or it, after what was counted."""
        due = self.due(now_s, line.at)
        key = self._key(line)
        kind = self._kinds.get(key)
        if kind is not None and _is_counted(kind, line, is_next=key == self._former):
            self._former = key
            kind.differ = kind.differ or line.text != kind.last.text
            kind.counted += 1
            kind.last = line
            return due
        before = self._say(self._former, now_s, line.at)
        self._former = key
        if kind is None:
            self._kinds[key] = _Kind(now_s, line)
        else:
            before += self._say(key, now_s, line.at)
            kind.last = line
            kind.written += 1
        return [*due, *before, line]

    def due(self, now_s: float, at: float) -> list[LogLine]:
        """Return the counts that are a minute old, as lines; `at` is the wall clock's time."""
        found = []
        for key, kind in list(self._kinds.items()):
            if now_s - kind.since_s < EVERY_S:
                continue
            if kind.counted:
                was_full = kind.written >= MOST_A_MINUTE
                found += self._say(key, now_s, at)
                kind.since_s = now_s
                kind.written = MOST_A_MINUTE if was_full else 0
            else:
                del self._kinds[key]
        return found

    def end(self, now_s: float, at: float) -> list[LogLine]:
        """Return every count there is, as lines."""
        return [line for key in self._kinds for line in self._say(key, now_s, at)]

    def _say(self, key: tuple[int, str] | None, now_s: float, at: float) -> list[LogLine]:
        """Return the count of one kind as a line, and begin it again at none."""
        kind = self._kinds.get(key) if key is not None else None
        if kind is None or not kind.counted:
            return []
        count, differ, last = kind.counted, kind.differ, kind.last
        kind.counted, kind.differ = 0, False
        if count == 1:
            return [last]
        span_s = max(1, round(now_s - kind.since_s))
        text = (
            f"{count} more such lines in {span_s} s, the last: {last.text}"
            if differ
            else f"repeated {count} times in {span_s} s: {last.text}"
        )
        return [LogLine(last.level, text, at)]

    def _key(self, line: LogLine) -> tuple[int, str]:
        key = (line.level, _VARIABLE.sub("#", line.text[:_LOOKED_AT]))
        if key not in self._kinds and len(self._kinds) >= MOST_KINDS:
            return (line.level, "")
        return key


def _is_counted(kind: _Kind, line: LogLine, *, is_next: bool) -> bool:
    return kind.written >= MOST_A_MINUTE or (is_next and line.text == kind.last.text)
