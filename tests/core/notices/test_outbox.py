"""What a receiver is told and when: flaps, outages, quiet hours, a receiver that is away."""

from __future__ import annotations

import msgspec
import pytest

from tidegate.core.notices.notice import EVENT, MAX_MESSAGE_LENGTH, OPEN, OVER, TEST, Notice
from tidegate.core.notices.outbox import (
    EVENT_EVERY_S,
    MOST_KNOWN,
    MOST_WAITING,
    PAUSE_MOST_S,
    UNREACHED,
    Outbox,
    Seen,
)
from tidegate.core.problems import MOST_OPEN, Repair, Severity
from tidegate.core.protocol.status import Restart

UNIX_S = 1_000_000.0  # what the calendar says when the clock says 0


class Receiver:
    """One outbox, looked at once a second, and what its receiver has got."""

    def __init__(self, least: Severity = Severity.WARNING) -> None:
        self.outbox = Outbox()
        self.least = least
        self.now_s = 0.0
        self.open: dict[str, Repair] = {}
        self.restarts: list[Restart] = []
        self.recycles: dict[str, int] = {}
        self.version = "1.0"
        self.is_down = self.is_quiet = False
        self.messages: list[list[Notice]] = []
        self.tries = 0

    def begin(self, name: str, severity: str = "warning", cause: str = "it is broken") -> None:
        """A repair opens."""
        self.open[name] = Repair(
            id=name, since=UNIX_S + self.now_s, severity=severity, cause=cause, fix="fix it"
        )

    def end(self, name: str) -> None:
        """It closes."""
        del self.open[name]

    def lose(self) -> None:
        """A worker dies."""
        self.restarts.append(Restart(at=UNIX_S + self.now_s, reason="killed", exit=-9))

    def wait(self, seconds: float) -> None:
        """Let time pass, with a look and perhaps a message in every second of it."""
        for _ in range(int(seconds)):
            self.look()
            self.now_s += 1

    def look(self) -> None:
        """Once."""
        seen = Seen(
            repairs=list(self.open.values()),
            restarts=self.restarts[-20:],
            recycles=dict(self.recycles),
            version=self.version,
        )
        now = UNIX_S + self.now_s
        self.outbox.observe(
            seen, least=self.least, not_about={f"{UNREACHED}phone"}, now_s=self.now_s, now=now
        )
        taken = self.outbox.take(self.now_s, is_quiet=self.is_quiet)
        if not taken:
            return
        self.tries += 1
        if self.is_down:
            self.outbox.failed("away", retry_after_s=None, now_s=self.now_s, now=now)
        else:
            self.messages.append(list(taken))
            self.outbox.delivered(self.now_s)

    @property
    def told(self) -> list[tuple[str, str]]:
        """What it was told, in short."""
        return [(each.id, each.state) for message in self.messages for each in message]


@pytest.fixture
def receiver() -> Receiver:
    """One that is told of warnings and errors, and has looked once."""
    made = Receiver()
    made.wait(1)
    return made


# --- hysteresis -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1, 3, 9])
def test_a_flap_tells_nothing(receiver: Receiver, seconds: int) -> None:
    """Neither that it began nor that it is over."""
    receiver.begin("upstream-failing:box")
    receiver.wait(seconds)
    receiver.end("upstream-failing:box")
    receiver.wait(600)
    assert receiver.told == []
    assert not receiver.outbox.known


def test_an_outage_of_a_minute_tells_once_at_its_begin_and_once_at_its_end(
    receiver: Receiver,
) -> None:
    """With since when, until when, what it was and what to do about it."""
    receiver.begin("upstream-failing:box")
    began = UNIX_S + receiver.now_s
    receiver.wait(60)
    assert receiver.told == [("upstream-failing:box", OPEN)]
    receiver.end("upstream-failing:box")
    receiver.wait(600)
    assert receiver.told == [("upstream-failing:box", OPEN), ("upstream-failing:box", OVER)]
    [[begin], [end]] = receiver.messages
    assert (begin.since, begin.cause, begin.fix) == (began, "it is broken", "fix it")
    assert (end.since, end.until, end.cause) == (began, began + 60, "it is broken")


def test_what_comes_back_at_once_was_never_away(receiver: Receiver) -> None:
    """A gap of a few seconds in an outage is told neither way."""
    receiver.begin("upstream-failing:box")
    receiver.wait(30)
    receiver.end("upstream-failing:box")
    receiver.wait(10)
    receiver.begin("upstream-failing:box")
    receiver.wait(600)
    assert receiver.told == [("upstream-failing:box", OPEN)]


def test_what_comes_and_goes_all_day_is_some_messages_and_no_flood(receiver: Receiver) -> None:
    """A minute up, a minute down, for a day: 720 outages."""
    for _ in range(720):
        receiver.begin("upstream-failing:box")
        receiver.wait(60)
        receiver.end("upstream-failing:box")
        receiver.wait(60)
    assert 2 <= len(receiver.messages) <= 6
    receiver.wait(3600)
    assert receiver.told[-1] == ("upstream-failing:box", OVER)


def test_what_becomes_an_error_is_told_again(receiver: Receiver) -> None:
    """And not when it becomes less."""
    receiver.begin("disk-full")
    receiver.wait(30)
    receiver.begin("disk-full", "error")
    receiver.wait(30)
    receiver.begin("disk-full", "warning")
    receiver.wait(600)
    assert [each.severity for message in receiver.messages for each in message] == [
        "warning",
        "error",
    ]


def test_what_is_open_when_a_receiver_is_new_is_told_to_it() -> None:
    """A repair is news to it; what happened before is not."""
    made = Receiver()
    made.begin("disk-full")
    made.lose()
    made.recycles = {"growth": 3}
    made.wait(60)
    assert made.told == [("disk-full", OPEN)]


def test_a_list_that_is_full_hides_no_end(receiver: Receiver) -> None:
    """Of too many repairs the worst are listed: one that is not there may be open all the same."""
    receiver.begin("disk-full")
    receiver.wait(30)
    others = {f"other:{n}": n for n in range(MOST_OPEN)}
    receiver.end("disk-full")
    for name in others:
        receiver.begin(name, "error")
    receiver.wait(600)
    assert ("disk-full", OVER) not in receiver.told
    receiver.end("other:1")
    receiver.wait(600)
    assert ("disk-full", OVER) in receiver.told


def test_names_that_are_new_each_time_are_forgotten(receiver: Receiver) -> None:
    """The book of what it knows is bounded."""
    for n in range(2 * MOST_KNOWN):
        receiver.begin(f"upstream-model:box/{n}")
        receiver.wait(15)
        receiver.end(f"upstream-model:box/{n}")
    assert len(receiver.outbox.known) <= MOST_KNOWN


# --- severities, and what is told otherwise -------------------------------------------------------


@pytest.mark.parametrize(("least", "count"), [("note", 3), ("warning", 2), ("error", 1)])
def test_what_matters_too_little_is_not_told(least: str, count: int) -> None:
    """Neither its end."""
    made = Receiver(Severity(least))
    made.wait(1)
    for severity in Severity:
        made.begin(severity.value, severity.value)
    made.wait(60)
    assert len(made.told) == count
    for severity in Severity:
        made.end(severity.value)
    made.wait(60)
    assert len(made.told) == 2 * count


def test_each_lost_worker_is_told_and_that_they_are_many_as_an_error(receiver: Receiver) -> None:
    """The repair says the same as the event until it is an error."""
    receiver.lose()
    receiver.begin("workers-lost")
    receiver.wait(60)
    assert receiver.told == [("worker-lost", EVENT)]
    receiver.begin("workers-lost", "error")
    receiver.wait(60)
    assert receiver.told[1:] == [("workers-lost", OPEN)]


def test_workers_that_die_one_after_the_other_are_counted(receiver: Receiver) -> None:
    """The first at once, those of the next ten minutes together."""
    for _ in range(10):
        receiver.lose()
        receiver.wait(30)
    assert [each.count for [each] in receiver.messages] == [1]
    receiver.wait(EVENT_EVERY_S)
    assert [each.count for [each] in receiver.messages] == [1, 9]


def test_a_recycle_is_told_where_memory_called_for_it(receiver: Receiver) -> None:
    """Not one that was asked for, nor one for a worker's age."""
    receiver.recycles = {"asked": 1, "age": 1, "upgrade": 1, "listen": 2}
    receiver.wait(30)
    assert receiver.told == []
    receiver.recycles |= {"growth": 1}
    receiver.wait(30)
    assert receiver.told == [("recycle", EVENT)]
    assert "grew" in receiver.messages[0][0].cause


def test_an_update_is_a_note() -> None:
    """From which version to which."""
    made = Receiver(Severity.NOTE)
    made.wait(1)
    made.version = "1.1"
    made.wait(30)
    assert made.messages[0][0].cause == "tidegate was updated from 1.0 to 1.1"
    assert made.told == [("update", EVENT)]


def test_that_it_cannot_be_reached_is_told_to_the_others_alone(receiver: Receiver) -> None:
    """The receiver itself would hear it only when it is over."""
    receiver.begin(f"{UNREACHED}phone")
    receiver.begin(f"{UNREACHED}hook")
    receiver.wait(60)
    assert receiver.told == [(f"{UNREACHED}hook", OPEN)]


# --- quiet hours ----------------------------------------------------------------------------------


def test_only_errors_are_told_in_quiet_hours(receiver: Receiver) -> None:
    """And that they are over; all else is told together afterwards, in short."""
    receiver.is_quiet = True
    receiver.begin("disk-full", "error")
    receiver.begin("upstream-failing:box")
    receiver.begin("upstream-failing:den")
    receiver.wait(60)
    receiver.end("upstream-failing:box")
    receiver.end("disk-full")
    receiver.wait(600)
    assert receiver.told == [("disk-full", OPEN), ("disk-full", OVER)]
    receiver.is_quiet = False
    receiver.wait(10)
    assert [(each.id, each.state) for each in receiver.messages[2]] == [
        ("upstream-failing:den", OPEN),
        ("upstream-failing:box", OVER),
    ]


# --- a receiver that is away ----------------------------------------------------------------------


def test_what_a_receiver_misses_in_an_hour_is_told_when_it_is_back(receiver: Receiver) -> None:
    """At most 32 wait, the tries are few, and nothing is told twice."""
    receiver.is_down = True
    for n in range(10):
        receiver.begin(f"upstream-failing:{n}")
        receiver.wait(360)
        assert len(receiver.outbox.waiting) <= MOST_WAITING
    assert receiver.tries < 20
    assert receiver.outbox.failing_since is not None
    receiver.is_down = False
    receiver.wait(PAUSE_MOST_S + 5)
    assert receiver.told == [(f"upstream-failing:{n}", OPEN) for n in range(10)]
    assert receiver.outbox.error is None
    receiver.wait(3600)
    assert len(receiver.told) == 10


def test_of_too_many_the_least_severe_are_left_out(receiver: Receiver) -> None:
    """The oldest of them first; how many they were is known."""
    receiver.is_down = True
    receiver.begin("error", "error")
    receiver.wait(20)
    for n in range(MOST_WAITING + 7):
        receiver.begin(f"warning:{n}")
    receiver.wait(400)
    waiting = receiver.outbox.waiting
    assert len(waiting) == MOST_WAITING
    assert waiting[0].id == "error"
    assert waiting[1].id == "warning:8"
    assert receiver.outbox.left_out == 8


def test_a_receiver_that_says_when_to_come_again_is_not_asked_before() -> None:
    """At most for an hour."""
    outbox = Outbox()
    for asked_s, waits_s in ((120.0, 120.0), (1e9, 3600.0)):
        outbox.add(notice("a"), 0.0)
        outbox.take(5.0, is_quiet=False)
        outbox.failed("429", retry_after_s=asked_s, now_s=5.0, now=UNIX_S)
        assert outbox.next_try_s == 5.0 + waits_s
        outbox.try_soon()


def test_what_a_receiver_never_takes_is_not_tried_again() -> None:
    """And does not stand before the rest."""
    outbox = Outbox()
    outbox.add(notice("a"), 0.0)
    assert [each.id for each in outbox.take(5.0, is_quiet=False)] == ["a"]
    outbox.refused()
    outbox.add(notice("b"), 5.0)
    assert [each.id for each in outbox.take(10.0, is_quiet=False)] == ["b"]


def notice(name: str, cause: str = "x") -> Notice:
    return Notice(id=name, state=TEST, severity="error", cause=cause, since=UNIX_S)


def test_what_comes_together_is_one_message_as_far_as_it_fits() -> None:
    """The rest is the next one; while one is on its way there is no other."""
    outbox = Outbox()
    for n in range(20):
        outbox.add(notice(f"{n}", "x" * 5000), 0.0)
    assert outbox.take(1.0, is_quiet=False) == []  # more may come
    first = list(outbox.take(2.0, is_quiet=False))
    assert 1 < len(first) < 20
    assert sum(len(each.cause) for each in first) <= MAX_MESSAGE_LENGTH
    assert outbox.take(3.0, is_quiet=False) == []
    outbox.delivered(3.0)
    second = outbox.take(4.0, is_quiet=False)
    assert second[0].id == f"{len(first)}"


# --- an upgrade -----------------------------------------------------------------------------------


def test_an_upgrade_forgets_nothing(receiver: Receiver) -> None:
    """What was on its way is told again, what is known is not."""
    receiver.begin("known")
    receiver.wait(30)
    receiver.begin("new", "error")
    receiver.is_down = True
    receiver.wait(30)
    receiver.outbox.try_soon()
    assert [each.id for each in receiver.outbox.take(receiver.now_s, is_quiet=False)] == ["new"]
    receiver.outbox = msgspec.json.decode(msgspec.json.encode(receiver.outbox), type=Outbox)
    receiver.outbox.take_back()
    receiver.is_down = False
    receiver.wait(60)
    assert receiver.told == [("known", OPEN), ("new", OPEN)]
