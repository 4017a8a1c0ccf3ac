"""What one receiver is told, and when: what it knows, what waits for it, and the next try.

    what is seen, once a second -> `observe`: is it news for this receiver? -> it waits, 32 at most
    -> `take`: what may go now, as one message -> `delivered`, `failed` or `refused`

A repair that is open is told once it has stayed for `TELL_AFTER_S`, and that it is over once it has
been away for `SETTLE_S`. One that comes back within that time is told neither way, and each time
that it was told within the hour doubles the wait for its end: so what comes and goes for a day is
a dozen messages and no flood. Nothing here has a clock: `now_s` is monotonic, `now` Unix seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from tidegate.core.notices.notice import (
    EVENT,
    MAX_MESSAGE_LENGTH,
    OPEN,
    OVER,
    Notice,
    cut,
    shortened,
)
from tidegate.core.problems import MOST_OPEN, ORDER, Repair, Severity
from tidegate.core.protocol.status import Restart

MOST_WAITING = 32
GATHER_S = 2.0  # what comes together is told together
TELL_AFTER_S = 10.0  # a repair is open by then, and has been seen for 15 s: no flap
SETTLE_S, SETTLE_MOST_S = 20.0, 1800.0
EVENT_EVERY_S = 600.0  # of one kind; what comes between is counted
PAUSE_S, PAUSE_MOST_S = 10.0, 300.0  # between two tries at a receiver that does not take it
HOUR_S = 3600.0
UNREACHED = "notify-failing:"  # how the repair of a receiver that cannot be reached begins
MOST_KNOWN = 4 * MOST_OPEN
RECYCLES = {
    "growth": "the worker's memory grew without a reason that its answers explain",
    "memory": "memory was short, and no answer explained what held it",
}


class Seen(Struct, frozen=True, kw_only=True):
    """What the watchdog sees at one moment, of which something may be news."""

    repairs: Sequence[Repair]  # open ones
    restarts: Sequence[Restart]  # lost workers, the latest, oldest first
    recycles: dict[str, int]  # since the start, by reason
    version: str


class Known(Struct, kw_only=True):
    """What a receiver knows of one problem."""

    first_s: float
    since: float
    cause: str = ""
    told: str | None = None  # the severity with which it was told; None: it was not
    times: int = 0  # that it was told within the hour
    gone_s: float | None = None
    over_s: float | None = None  # when its end was told


class Outbox(Struct, kw_only=True):
    """One receiver's, for its whole life; an upgrade hands it on as it is."""

    known: dict[str, Known] = {}
    waiting: list[Notice] = []  # the oldest first
    sending: list[Notice] = []  # on their way
    left_out: int = 0
    version: str | None = None
    lost_until: float | None = None  # of lost workers that it knows; Unix seconds
    recycles: dict[str, int] | None = None
    told_events_s: dict[str, float] = {}
    gather_until_s: float = 0.0
    error: str | None = None  # why it takes nothing just now
    failing_since: float | None = None
    pause_s: float = 0.0
    next_try_s: float = 0.0

    # --- is it news? ------------------------------------------------------------------------------

    def observe(
        self, seen: Seen, *, least: Severity, not_about: Collection[str], now_s: float, now: float
    ) -> None:
        """Take in what is seen, and queue what is news of at least that severity.

        `not_about` are repairs that this receiver is not told of: that it cannot be reached.
        """
        for event in self._events(seen, now):
            if ORDER[Severity(event.severity)] >= ORDER[least]:
                self.add(event, now_s)
        for repair in seen.repairs:
            if ORDER[Severity(repair.severity)] >= ORDER[least] and repair.id not in not_about:
                self._is_there(repair, now_s)
        if len(seen.repairs) < MOST_OPEN:  # else one that is not listed may be open all the same
            for name in self.known.keys() - {each.id for each in seen.repairs}:
                if (over := self._is_gone(name, now_s, now)) is not None and (
                    ORDER[Severity(over.severity)] >= ORDER[least]
                ):
                    self.add(over, now_s)
        while len(self.known) > MOST_KNOWN:
            del self.known[min(self.known, key=lambda name: self.known[name].over_s or now_s)]

    def _events(self, seen: Seen, now: float) -> list[Notice]:
        """List what happened since the last look. A first look only notes where things stand."""
        lost = [each for each in seen.restarts if each.at > (self.lost_until or 0.0)]
        found = [] if self.lost_until is None else [_lost(each) for each in lost]
        self.lost_until = max([self.lost_until or 0.0, *(each.at for each in seen.restarts)])
        former = seen.recycles if self.recycles is None else self.recycles
        for reason, why in RECYCLES.items():
            if (more := seen.recycles.get(reason, 0) - former.get(reason, 0)) > 0:
                cause = f"a new worker took over: {why}. Answers were not cut"
                found.append(_event("recycle", Severity.WARNING, cause, now, count=more))
        self.recycles = dict(seen.recycles)
        if self.version not in (None, seen.version):
            cause = f"tidegate was updated from {self.version} to {seen.version}"
            found.append(_event("update", Severity.NOTE, cause, now))
        self.version = seen.version
        return found

    def _is_there(self, repair: Repair, now_s: float) -> None:
        known = self.known.get(repair.id)
        if known is None or known.over_s is not None:
            times = known.times if known is not None else 0
            known = Known(first_s=now_s, since=repair.since, times=times)
            self.known[repair.id] = known
        known.gone_s = None
        rank = ORDER[Severity(repair.severity)]
        is_worse = known.told is None or rank > ORDER[Severity(known.told)]
        if is_worse and not _is_told_otherwise(repair) and now_s - known.first_s >= TELL_AFTER_S:
            known.times += known.told is None
            known.told, known.cause = repair.severity, cut(repair.cause)
            self.add(
                Notice(
                    id=repair.id,
                    state=OPEN,
                    severity=repair.severity,
                    cause=repair.cause,
                    fix=repair.fix,
                    since=known.since,
                ),
                now_s,
            )

    def _is_gone(self, name: str, now_s: float, now: float) -> Notice | None:
        """Note that it is not there; return what says that it is over, once that is certain."""
        known = self.known[name]
        if known.told is None:
            if known.over_s is None:
                known.over_s = now_s
            if not known.times or now_s - known.over_s >= HOUR_S:
                del self.known[name]
            return None
        if known.gone_s is None:
            known.gone_s = now_s
        away_s = now_s - known.gone_s
        if away_s < min(SETTLE_S * 2 ** (known.times - 1), SETTLE_MOST_S):
            return None
        over = Notice(
            id=name,
            state=OVER,
            severity=known.told,
            cause=known.cause,
            since=known.since,
            until=now - away_s,
        )
        known.over_s, known.told = now_s, None
        return over

    # --- what waits -------------------------------------------------------------------------------

    def add(self, notice: Notice, now_s: float) -> None:
        """Have it wait; the least severe of too many is left out, the oldest of those first."""
        notice = shortened(notice)
        if notice.state == OVER:  # which says all that its beginning would
            self.waiting = [each for each in self.waiting if each.id != notice.id]
        elif notice.state == EVENT:
            same = [each for each in self.waiting if each.id == notice.id]
            self.waiting = [each for each in self.waiting if each.id != notice.id]
            notice = replace(notice, count=notice.count + sum(each.count for each in same))
        if not self.waiting:
            self.gather_until_s = now_s + GATHER_S
        self.waiting.append(notice)
        self._leave_out()

    def _leave_out(self) -> None:
        while len(self.waiting) > MOST_WAITING:
            self.waiting.remove(min(self.waiting, key=lambda each: ORDER[Severity(each.severity)]))
            self.left_out += 1

    def take(self, now_s: float, *, is_quiet: bool) -> list[Notice]:
        """Take what may be sent now, as much as one message holds; nothing while one is sent.

        While it is quiet only errors go, and their ends.
        """
        if self.sending or now_s < max(self.gather_until_s, self.next_try_s):
            return []
        room = MAX_MESSAGE_LENGTH
        for notice in self.waiting:
            if is_quiet and notice.severity != Severity.ERROR.value:
                continue
            if now_s < self.told_events_s.get(notice.id, float("-inf")) + EVENT_EVERY_S:
                continue
            room -= len(notice.cause) + len(notice.fix) + 40
            if self.sending and room < 0:
                break
            self.sending.append(notice)
        self.waiting = [each for each in self.waiting if each not in self.sending]
        return self.sending

    # --- what became of it ------------------------------------------------------------------------

    def delivered(self, now_s: float) -> None:
        """Note that the receiver has what was on its way."""
        for notice in self.sending:
            if notice.state == EVENT:
                self.told_events_s[notice.id] = now_s
        self.left_out = 0
        self._has_answered()

    def refused(self) -> None:
        """Note that the receiver will never take that: another try would end the same."""
        self._has_answered()

    def _has_answered(self) -> None:
        self.sending = []
        self.error, self.failing_since = None, None
        self.pause_s = self.next_try_s = 0.0

    def failed(self, error: str, *, retry_after_s: float | None, now_s: float, now: float) -> None:
        """Note that it could not be delivered, as text; what was on its way waits again."""
        self.take_back()
        self.error = error
        self.failing_since = now if self.failing_since is None else self.failing_since
        self.pause_s = min(PAUSE_MOST_S, max(PAUSE_S, 2 * self.pause_s))
        self.next_try_s = now_s + max(self.pause_s, min(HOUR_S, retry_after_s or 0.0))

    def take_back(self) -> None:
        """Have what was on its way wait again: what became of it will not be known."""
        self.waiting = self.sending + self.waiting
        self.sending = []
        self._leave_out()

    def try_soon(self) -> None:
        """Try again at once: its address is another one."""
        self.pause_s = self.next_try_s = 0.0


def _is_told_otherwise(repair: Repair) -> bool:
    """Tell whether each case of it is an event; only that there are many is told as a repair."""
    return repair.id == "workers-lost" and repair.severity != Severity.ERROR.value


def _lost(restart: Restart) -> Notice:
    cause = f"a worker was lost: {restart.reason}; a new one was started"
    fix = "see `tidegate logs` around that time; `tidegate bundle` is what to report"
    return replace(_event("worker-lost", Severity.WARNING, cause, restart.at), fix=fix)


def _event(name: str, severity: Severity, cause: str, at: float, count: int = 1) -> Notice:
    return Notice(id=name, state=EVENT, severity=severity.value, cause=cause, since=at, count=count)
