"""Which lines are written, and which are only counted."""

from __future__ import annotations

import logging

import pytest

from tidegate.logs import repeats
from tidegate.logs.repeats import LogLine, Repeats


class Log:
    """What a process said, at virtual times."""

    def __init__(self) -> None:
        self.repeats = Repeats()
        self.now_s = 1000.0
        self.lines: list[str] = []

    def say(self, text: str, level: int = logging.INFO) -> None:
        line = LogLine(level, text, self.now_s)
        self._write(self.repeats.take(line, self.now_s))

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self._write(self.repeats.due(self.now_s, self.now_s))

    def end(self) -> None:
        self._write(self.repeats.end(self.now_s, self.now_s))

    def _write(self, lines: list[LogLine]) -> None:
        self.lines += [line.text for line in lines]


@pytest.fixture
def log() -> Log:
    return Log()


def test_first_line_is_written_at_once(log: Log) -> None:
    """Nothing waits to see whether it repeats."""
    log.say("box: refused", logging.ERROR)
    assert log.lines == ["box: refused"]


def test_what_repeats_is_counted_until_another_line_comes(log: Log) -> None:
    """The count stands where the repetition stood."""
    for _ in range(42):
        log.say("box: refused")
    log.now_s += 10
    log.say("stopping")
    assert log.lines == ["box: refused", "repeated 41 times in 10 s: box: refused", "stopping"]


def test_count_is_said_after_a_minute(log: Log) -> None:
    """An error that goes on is in every minute of the log."""
    for _ in range(180):
        log.say("box: refused", logging.ERROR)
        log.wait(1)
    assert log.lines == [
        "box: refused",
        "repeated 59 times in 60 s: box: refused",
        "repeated 60 times in 60 s: box: refused",
        "repeated 60 times in 60 s: box: refused",
    ]


def test_count_is_said_at_the_end(log: Log) -> None:
    """What a process counted does not die with it."""
    for _ in range(4):
        log.say("x")
    log.now_s += 5
    log.end()
    log.end()
    assert log.lines == ["x", "repeated 3 times in 5 s: x"]


def test_single_repetition_is_the_line_itself(log: Log) -> None:
    """A count of one would say less than the line, which keeps its own time."""
    log.say("x")
    log.say("x")
    assert log.repeats.end(1030.0, 5.0) == [LogLine(logging.INFO, "x", 1000.0)]


def test_turns_of_two_lines_are_told_in_order(log: Log) -> None:
    """An upstream that goes and comes: the last line says how it is."""
    for _ in range(3):
        log.say("box is set aside")
        log.say("box answers again")
    assert log.lines == ["box is set aside", "box answers again"] * 3


def test_flood_of_one_kind_costs_a_line_a_minute(log: Log) -> None:
    """Lines that differ in ids and numbers only: the first ones, then counts and the last."""
    for n in range(600):
        log.say(f"run r{n} failed after {n} s: box refused")
        log.wait(0.2)
    assert log.lines[: repeats.MOST_A_MINUTE] == [
        f"run r{n} failed after {n} s: box refused" for n in range(repeats.MOST_A_MINUTE)
    ]
    assert log.lines[repeats.MOST_A_MINUTE :] == [
        "270 more such lines in 60 s, the last: run r299 failed after 299 s: box refused",
        "300 more such lines in 60 s, the last: run r599 failed after 599 s: box refused",
    ]


def test_two_kinds_in_turn_are_both_held_down(log: Log) -> None:
    """A flood with two lines a second costs two a minute."""
    for n in range(600):
        log.say(f"swept {n} runs")
        log.say(f"step stale freed {n} bytes")
        log.wait(0.5)
    assert len(log.lines) == 2 * (repeats.MOST_A_MINUTE + 5)


def test_other_cause_is_not_hidden_by_a_flood(log: Log) -> None:
    """What differs in more than numbers is another kind, and written."""
    for n in range(500):
        log.say(f"run r{n} failed: box refused")
    log.say("run r500 failed: key is wrong")
    assert log.lines[-1] == "run r500 failed: key is wrong"


def test_levels_are_never_counted_together(log: Log) -> None:
    """An error that reads like an information is an error."""
    log.say("x", logging.INFO)
    log.say("x", logging.ERROR)
    assert log.lines == ["x", "x"]


def test_after_a_quiet_minute_lines_are_written_again(log: Log) -> None:
    """A flood that is over is forgotten."""
    for n in range(100):
        log.say(f"run r{n} failed")
    log.wait(60)
    log.wait(60)
    log.say("run r100 failed")
    assert log.lines[-1] == "run r100 failed"


def test_kinds_are_bounded(log: Log) -> None:
    """A client that makes up kinds fills neither the memory nor the log."""
    words = [f"{chr(97 + n // 676)}{chr(97 + n // 26 % 26)}{chr(97 + n % 26)}" for n in range(5000)]
    for word in words:
        log.say(word)
    log.wait(60)
    assert len(log.lines) <= repeats.MOST_KINDS + repeats.MOST_A_MINUTE + 1
    assert log.lines[-1].startswith(f"{5000 - len(log.lines) + 1} more such lines in 60 s")


def test_every_line_is_written_or_counted(log: Log) -> None:
    """Whatever comes in whatever order, the written and the counted add up."""
    said = 0
    for n in range(3000):
        log.say(["x", f"run {n}", "y", "y", f"worker {n % 7} is {'abc'[n % 3]}"][n * n % 5])
        said += 1
        if n % 50 == 0:
            log.wait(7)
    log.end()
    counted = 0
    for line in log.lines:
        words = line.split(" ")
        if line.startswith("repeated "):
            counted += int(words[1])
        elif " more such lines in " in line:
            counted += int(words[0])
        else:
            counted += 1
    assert counted == said
