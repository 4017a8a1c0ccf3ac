"""The teller with real processes and real receivers; only its time is the test's."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil
import pytest

from fakes.machine import wait_until
from fakes.receiver import Receiver, receiving
from tidegate.config import LoadedConfig
from tidegate.core.notices.outbox import MOST_WAITING, PAUSE_MOST_S, Outbox, Seen
from tidegate.core.problems import Repair
from tidegate.core.protocol.control import TestedReceiver as Answered
from tidegate.core.settings import Notify, Settings
from tidegate.watchdog.control.server import OUR_FAULT
from tidegate.watchdog.notify.sender import LIMIT_S, SEND_COMMAND
from tidegate.watchdog.notify.teller import MOST_TESTS, QUIET_LEVEL, Teller

pytestmark = pytest.mark.processes
UNIX_S = 1_000_000_000.0
TOKEN = "tk_CANARY9d1f7a3c5e8b"
KEY = "sk-CANARY-the-upstreams-key"
HANGS = (sys.executable, "-c", "import time; time.sleep(60)")


class Rig:
    """A teller, and what the watchdog would do with it."""

    def __init__(self, *receivers: Receiver, command: Sequence[str] = SEND_COMMAND) -> None:
        self.now_s = 0.0
        self.level = 0
        self.repairs: dict[str, Repair] = {}
        self.command = command
        self.teller = self.made()
        self.names = ["phone", "hook", "third"][: len(receivers)]
        self.addresses = {
            name: f"{each.url}/{TOKEN}" for name, each in zip(self.names, receivers, strict=True)
        }
        self.apply()

    def made(self, kept: dict[str, Outbox] | None = None) -> Teller:
        return Teller(lambda: self.level, kept, self.command)

    def apply(self, **values: str) -> None:
        """Have it follow a config with these receivers; `values` are those of each."""
        notify = [Notify(name=name, **values) for name in self.addresses]
        self.teller.apply(
            LoadedConfig(
                settings=Settings(notify=notify), secrets={"box": KEY}, tokens=[], path=None,
                place=Path("/nowhere"), warnings=[], addresses=dict(self.addresses),
            )
        )  # fmt: skip

    def begin(self, name: str, severity: str = "warning", cause: str = "it is broken") -> None:
        self.repairs[name] = Repair(
            id=name, since=UNIX_S + self.now_s, severity=severity, cause=cause, fix=f"mend {cause}"
        )

    def tick(self) -> None:
        seen = Seen(repairs=list(self.repairs.values()), restarts=[], recycles={}, version="1.0")
        self.teller.tick(seen, self.now_s, UNIX_S + self.now_s)

    def settle(self) -> None:
        """Have all processes that it starts come to their end."""

        def is_still() -> bool:
            self.teller.turn(self.now_s, UNIX_S + self.now_s)
            return not self.teller.is_sending

        wait_until(is_still, 60, "nothing is on its way")

    def wait(self, seconds: float, every_s: float = 1.0) -> None:
        """Let time pass for the teller."""
        over_s = self.now_s + seconds
        while self.now_s < over_s:
            self.tick()
            self.settle()
            self.now_s += every_s

    def test(self, name: str | None = None) -> list[list[Answered] | str]:
        """Ask for a test; what it is answered."""
        answers: list[list[Answered] | str] = []
        self.teller.test(name, answers.append)
        self.teller.turn(self.now_s, UNIX_S + self.now_s)
        return answers


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def rig(receiver: Receiver) -> Iterator[Rig]:
    made = Rig(receiver)
    yield made
    made.teller.close()


def test_a_repair_is_told_by_a_process_that_is_gone_afterwards(
    rig: Rig, receiver: Receiver
) -> None:
    """Its memory counts as long as it lives; nothing is started while there is nothing to tell."""
    rig.wait(30)
    rig.begin("disk-full")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    [pid] = rig.teller.pids
    assert psutil.Process(pid).ppid() == os.getpid()
    rig.settle()
    assert rig.teller.pids == []
    assert not psutil.pid_exists(pid)
    assert receiver.told == [("disk-full", "open")]
    [state] = rig.teller.states()
    assert (state.name, state.waiting, state.error) == ("phone", 0, None)


def test_no_key_and_no_address_is_told(rig: Rig, receiver: Receiver) -> None:
    """Though a cause has one in it; and the command line of the process has none."""
    rig.begin("disk-full", cause=f"refused {KEY} and {rig.addresses['phone']}")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    [pid] = rig.teller.pids
    assert "CANARY" not in " ".join(psutil.Process(pid).cmdline())
    assert "CANARY" not in str(psutil.Process(pid).environ())
    rig.settle()
    [heard] = receiver.heard
    assert b"CANARY" not in heard.body
    assert b"refused *** and ***" in heard.body
    assert heard.target == f"/{TOKEN}"
    assert "CANARY" not in repr((rig.teller, rig.teller.states()))


def test_an_hour_without_the_receiver(
    rig: Rig, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """At most 32 wait, no line is logged, and all that waits is sent when it is back."""
    caplog.set_level(logging.DEBUG)
    receiver.stop()
    for n in range(MOST_WAITING + 8):
        rig.begin(f"upstream-failing:{n}")
        rig.wait(90, every_s=5)
        [state] = rig.teller.states()
        assert state.waiting <= MOST_WAITING
    assert state.error == "it cannot be reached: Connection refused"
    assert state.failing_since is not None
    assert state.failing_since < UNIX_S + 120
    assert caplog.records == []  # a repair tells of it, see `watchdog.repairs`
    receiver.start()
    rig.wait(PAUSE_MOST_S + 10, every_s=5)
    assert [name for name, _ in receiver.told] == [
        f"upstream-failing:{n}" for n in range(8, MOST_WAITING + 8)
    ]
    assert receiver.heard[0].json["left_out"] == 8
    assert rig.teller.states()[0].error is None


def test_nothing_is_started_while_memory_is_short(rig: Rig, receiver: Receiver) -> None:
    """It waits until memory is back."""
    rig.level = QUIET_LEVEL
    rig.begin("memory-short", "error")
    for _ in range(60):
        rig.tick()
        assert not rig.teller.is_sending
        rig.now_s += 1
    assert rig.test() == ["memory is short, so nothing is sent just now; see `tidegate status`"]
    rig.level = QUIET_LEVEL - 1
    rig.wait(5)
    assert receiver.told == [("memory-short", "open")]


def test_one_that_hangs_is_ended_and_counts_until_then(receiver: Receiver) -> None:
    """At its limit, and it is told as a failure of that receiver."""
    rig = Rig(receiver, command=HANGS)
    rig.begin("disk-full")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    [pid] = rig.teller.pids
    assert rig.teller.next_s() == rig.now_s - 1 + LIMIT_S
    rig.now_s += LIMIT_S - 2
    rig.teller.turn(rig.now_s, UNIX_S)
    assert psutil.pid_exists(pid)
    rig.now_s += 2
    rig.settle()
    assert not psutil.pid_exists(pid)
    assert rig.teller.states()[0].error == "it took longer than 20 s"
    assert rig.teller.states()[0].waiting == 1


def test_one_that_is_killed_or_cannot_be_started_is_a_failure(receiver: Receiver) -> None:
    """And nothing more: it is tried again."""
    rig = Rig(receiver, command=["/nonexistent/python"])
    rig.begin("disk-full")
    rig.wait(15)
    assert rig.teller.states()[0].error == "no process can be started: No such file or directory"
    answers = rig.test()
    rig.wait(1)
    assert answers == [
        [
            Answered(
                name="phone",
                ok=False,
                answer="no process can be started: No such file or directory",
            )
        ]
    ]
    rig.teller._command = HANGS
    rig.now_s += PAUSE_MOST_S
    rig.tick()
    os.kill(rig.teller.pids[0], signal.SIGKILL)
    rig.settle()
    assert rig.teller.states()[0].error == "the process that sends it ended with signal 9"
    rig.teller._command = SEND_COMMAND
    rig.now_s += PAUSE_MOST_S
    rig.wait(1)
    assert receiver.told == [("disk-full", "open")]


def test_what_a_receiver_refuses_is_logged_and_lost(
    rig: Rig, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one is told to it all the same."""
    receiver.status, receiver.body = 422, b"no such field"
    rig.begin("a")
    rig.wait(30)
    [record] = caplog.records
    assert "notify phone refuses" in record.getMessage()
    assert "no such field" in record.getMessage()
    receiver.status = 200
    receiver.heard.clear()
    rig.begin("b")
    rig.wait(30)
    assert receiver.told == [("b", "open")]


def test_each_receiver_has_its_own(receiver: Receiver) -> None:
    """One that is away keeps nothing from the others, and each hears what matters to it."""
    with ExitStack() as stack:
        others = [stack.enter_context(receiving()) for _ in range(2)]
        rig = Rig(receiver, *others)
        others[0].stop()
        rig.begin("disk-full")
        rig.wait(30)
        assert receiver.told == others[1].told == [("disk-full", "open")]
        assert [state.waiting for state in rig.teller.states() if state.name == "hook"] == [1]
        rig.apply(min_severity="error")
        rig.begin("other")
        rig.begin("worse", "error")
        rig.wait(30)
        assert receiver.told[1:] == [("worse", "open")]
        rig.repairs.clear()
        rig.wait(60)
        assert receiver.told[2:] == [("worse", "over")]


def test_quiet_hours_are_the_local_ones(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 22:00 to 07:00 where the computer is, wherever that may be."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        minute = time.localtime(UNIX_S).tm_hour * 60 + time.localtime(UNIX_S).tm_min
        until = (minute + 2) % 1440
        quiet = f"{minute // 60:02}:{minute % 60:02}-{until // 60:02}:{until % 60:02}"
        rig.apply(quiet=quiet)
        rig.begin("disk-full")
        rig.begin("worse", "error")
        rig.wait(60)
        assert receiver.told == [("worse", "open")]
        rig.wait(120)
        assert receiver.told == [("worse", "open"), ("disk-full", "open")]
    finally:
        monkeypatch.undo()
        time.tzset()


# --- reload and upgrade ---------------------------------------------------------------------------


def test_a_new_address_is_tried_at_once_and_a_receiver_that_is_gone_is_forgotten(
    rig: Rig, receiver: Receiver
) -> None:
    """What waited for it goes there; what is on its way to one that is gone is nothing any more."""
    good = rig.addresses["phone"]
    rig.addresses["phone"] = "http://127.0.0.1:1/"
    rig.apply()
    rig.begin("disk-full")
    rig.wait(60)
    assert rig.teller.states()[0].error is not None
    rig.addresses["phone"] = good
    rig.apply()
    rig.wait(2)
    assert receiver.told == [("disk-full", "open")]
    rig.begin("other")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    rig.addresses.clear()
    rig.apply()
    rig.settle()
    assert rig.teller.states() == []
    rig.wait(5)


def test_an_upgrade_in_the_middle_of_a_message(receiver: Receiver) -> None:
    """The process is ended, and the new program tells it; what was told is not told again."""
    rig = Rig(receiver)
    rig.begin("known")
    rig.wait(20)
    rig.teller._command = HANGS
    rig.begin("new", "error")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    [pid] = rig.teller.pids
    rig.teller.let_go()
    assert not psutil.pid_exists(pid)
    left = msgspec.json.encode(rig.teller.kept())
    rig.teller = rig.made(msgspec.json.decode(left, type=dict[str, Outbox]))
    rig.apply()
    rig.wait(30)
    assert receiver.told == [("known", "open"), ("new", "open")]


def test_an_upgrade_that_comes_to_nothing_loses_nothing(rig: Rig, receiver: Receiver) -> None:
    """Neither a notice nor a test that were on their way."""
    rig.begin("disk-full")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    rig.teller.let_go()
    answers = rig.test()
    rig.teller.let_go()
    assert answers == []
    receiver.heard.clear()
    rig.wait(2)
    assert isinstance(answers[0], list)
    assert {each for each in receiver.told if each[0] != "test"} == {("disk-full", "open")}


def test_after_its_end_nothing_is_started(rig: Rig) -> None:
    """A stop leaves no process behind."""
    rig.begin("disk-full")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    [pid] = rig.teller.pids
    rig.teller.close()
    assert not psutil.pid_exists(pid)
    rig.tick()
    assert rig.test() == []
    assert rig.teller.pids == []


def test_a_fault_of_ours_loses_nothing(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a test is told of it, and what was on its way is told again."""
    rig.begin("disk-full")
    while not rig.teller.is_sending:
        rig.tick()
        rig.now_s += 1
    answers = rig.test()
    with monkeypatch.context() as broken:
        broken.setattr(Outbox, "delivered", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rig.settle()
    rig.teller.give_up()
    assert answers == [OUR_FAULT]
    rig.wait(5)
    assert receiver.told == [("disk-full", "open")] * 2
    assert rig.teller.states()[0].waiting == 0


# --- tests ----------------------------------------------------------------------------------------


def test_a_test_shows_what_each_receiver_answers(receiver: Receiver) -> None:
    """In turn, also in quiet hours, and without a part of any address."""
    with receiving() as other:
        rig = Rig(receiver, other)
        rig.apply(quiet="00:00-23:59", min_severity="error")
        other.status, other.echoes = 403, True
        answers = rig.test()
        rig.settle()
        [[first, second]] = answers
        assert isinstance(first, Answered)
        assert (first.name, first.ok, first.answer) == ("phone", True, "it answered 200: ok")
        assert isinstance(second, Answered)
        assert (second.name, second.ok) == ("hook", False)
        assert second.answer.startswith("it answered 403: ")
        assert "CANARY" not in second.answer
        assert receiver.told == [("test", "test")]
        answers = rig.test("phone")
        rig.settle()
        assert len(answers[0]) == 1


def test_a_test_of_none_is_refused(rig: Rig) -> None:
    """With the names that there are; and there is an end to how many wait."""
    assert rig.test("fridge") == ['there is no receiver called "fridge"; there is phone']
    several = [rig.test() for _ in range(MOST_TESTS + 1)]
    assert several[-1] == ["other tests are under way; try again when they are over"]
    rig.settle()
    assert all(len(each) == 1 for each in several)
    rig.addresses.clear()
    rig.apply()
    assert rig.test() == ["no receiver is configured; [[notify]] in the config names one"]


def test_a_test_that_arrives_ends_the_wait(rig: Rig, receiver: Receiver) -> None:
    """What waited for the receiver follows at once."""
    receiver.stop()
    rig.begin("disk-full")
    rig.wait(120, every_s=5)
    receiver.start()
    rig.test()
    rig.settle()
    rig.tick()
    rig.settle()
    assert receiver.told == [("test", "test"), ("disk-full", "open")]
