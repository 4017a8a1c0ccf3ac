"""What is wrong, found by the doctor or by a running tidegate, which keeps it as a repair.

What is wrong is looked for again and again; a repair is one that stays. A problem has to be seen
for a while before it counts, and gone for a while before it is closed, so that nothing flaps. The
book knows no clock and is bounded: of too many, the worst are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from msgspec import Struct

OPEN_AFTER_S = 5.0  # a restart of an upstream, a recycle: what passes by itself is no repair
CLOSE_AFTER_S = 10.0
MOST_OPEN = 64  # a page; every kind there is, and some upstreams


class Severity(Enum):
    """How much it matters; in order."""

    NOTE = "note"  # worth knowing; nothing fails for it
    WARNING = "warning"  # it will fail some day, or fails sometimes
    ERROR = "error"  # it fails now


ORDER = {severity: n for n, severity in enumerate(Severity)}


class Problem(Struct, frozen=True, kw_only=True):
    """One finding. `id` names the kind and what it is about ("upstream-unreachable:box")."""

    id: str
    severity: Severity
    cause: str
    fix: str  # what to do, as a command where there is one


class Repair(Struct, frozen=True, kw_only=True):
    """One open problem. `since` is Unix seconds."""

    id: str
    since: float
    severity: str
    cause: str
    fix: str


class _Seen(Struct):
    problem: Problem
    first_s: float
    last_s: float
    since: float
    is_open: bool = False


class Repairs:
    """Holds the repairs. Times are seconds: `now_s` monotonic, `now` Unix."""

    def __init__(self, since: Mapping[str, float] | None = None) -> None:
        """Begin with what a former program knew of, by id: it opens at once when seen."""
        self._since = dict(since or {})
        self._seen: dict[str, _Seen] = {}

    def __repr__(self) -> str:
        return f"<Repairs {[each.id for each in self.open()]}>"

    def observe(
        self, problems: Iterable[Problem], *, now_s: float, now: float
    ) -> tuple[list[Repair], list[Repair]]:
        """Take in what is wrong now; returns which repairs that opened, and which it closed."""
        opened = []
        for problem in problems:
            seen = self._seen.get(problem.id)
            if seen is None:
                known = self._since.pop(problem.id, None)
                first_s = now_s if known is None else now_s - OPEN_AFTER_S
                seen = _Seen(problem, first_s, now_s, now if known is None else known)
                self._seen[problem.id] = seen
            seen.problem, seen.last_s = problem, now_s
            if not seen.is_open and now_s - seen.first_s >= OPEN_AFTER_S:
                seen.is_open = True
                opened.append(_repair(seen))
        closed = []
        for name, seen in list(self._seen.items()):
            away_s = now_s - seen.last_s
            if away_s >= CLOSE_AFTER_S or (away_s > 0 and not seen.is_open):
                del self._seen[name]
                if seen.is_open:
                    closed.append(_repair(seen))
        return opened, closed

    def open(self) -> list[Repair]:
        """List the open repairs: the worst first, and of those the oldest."""
        seen = [each for each in self._seen.values() if each.is_open]
        seen.sort(key=lambda each: (-ORDER[each.problem.severity], each.since))
        return [_repair(each) for each in seen[:MOST_OPEN]]

    def counts(self) -> dict[str, int]:
        """Count the open repairs of each severity, zeros included."""
        counts = dict.fromkeys((severity.value for severity in Severity), 0)
        for each in self._seen.values():
            counts[each.problem.severity.value] += each.is_open
        return counts


def _repair(seen: _Seen) -> Repair:
    problem = seen.problem
    return Repair(
        id=problem.id,
        since=seen.since,
        severity=problem.severity.value,
        cause=problem.cause,
        fix=problem.fix,
    )
