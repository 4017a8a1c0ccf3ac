"""The decision log: what is news, what a line holds, and how large it may grow."""

from __future__ import annotations

import json
import logging
import re
import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tidegate import __version__
from tidegate.core.memory.decision import PolicyState
from tidegate.core.memory.policy import decide
from tidegate.core.memory.record import Record, decide_again
from tidegate.watchdog.guard import decision_log
from tidegate.watchdog.guard.decision_log import DecisionLog, tail
from watchdog.guard_records import AT, inputs, log_of, play


def records(directory: Path) -> list[Record]:
    lines = (directory / "decisions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Record) for line in lines]


def test_a_decision_that_says_nothing_new_is_not_written(tmp_path: Path) -> None:
    """An idle day is one line."""
    play(DecisionLog(tmp_path), [0.1 + 0.0001 * n for n in range(300)])
    assert [record.at for record in records(tmp_path)] == [AT]


def test_each_new_level_is_written(tmp_path: Path) -> None:
    """With what was remembered before, all inputs, and the decision."""
    made = play(DecisionLog(tmp_path), [0.1, 0.1, 0.65, 0.65, 0.75, 0.75, 0.75])
    written = records(tmp_path)
    assert [record.decision.level for record in written] == sorted({d.level for d in made})
    assert written[-1].decision in made
    assert written[-1].version == __version__
    assert all(decide_again(record) == [] for record in written)


def test_while_relief_goes_on_a_record_comes_every_half_minute(tmp_path: Path) -> None:
    """The level says nothing new, but what was freed does."""
    play(DecisionLog(tmp_path), [0.75] * 300)
    assert 8 <= len(records(tmp_path)) <= 14


def test_it_is_at_most_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older one is replaced when the newer one is full."""
    monkeypatch.setattr(decision_log, "MAX_FILE_BYTES", 10_000)
    log = DecisionLog(tmp_path)
    for _ in range(12):
        play(log, [0.1, 0.65, 0.75, 0.85])
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["decisions.1.jsonl", "decisions.jsonl"]
    assert all(path.stat().st_size <= 10_000 for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_tail_is_whole_lines_over_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest last; as many as fit."""
    monkeypatch.setattr(decision_log, "MAX_FILE_BYTES", 6_500)
    log = DecisionLog(tmp_path)
    play(log, [0.1, 0.65, 0.75, 0.85])
    everything = [json.loads(bytes(raw)) for raw in tail(tmp_path, 10**6)]
    assert [each["at"] for each in everything] == sorted(each["at"] for each in everything)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    short = [json.loads(bytes(raw)) for raw in tail(tmp_path, size - 1)]
    assert short == everything[1:]


@pytest.mark.parametrize("last", [b'{"at": 1, "vers', b"\xff\xfe\n", b"\n\n"])
def test_a_line_that_was_cut_off_is_left_out_of_the_tail(tmp_path: Path, last: bytes) -> None:
    """Whatever stands there, a bundle stays a document."""
    path = log_of(tmp_path, [0.1])
    with path.open("ab") as file:
        file.write(last)
    assert len(tail(tmp_path, 10**6)) == 1


def test_no_log_has_no_tail(tmp_path: Path) -> None:
    """The first evidence may come before the first decision."""
    assert tail(tmp_path / "nowhere", 1000) == []


def test_a_log_that_cannot_be_written_is_said_once_and_again_when_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The guard goes on meanwhile."""
    caplog.set_level(logging.INFO)
    directory = tmp_path / "state"
    log = DecisionLog(directory)
    play(log, [0.1, 0.65, 0.75])
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert "decisions cannot be written" in caplog.text
    directory.mkdir()
    play(log, [0.1, 0.65])
    assert [r.levelname for r in caplog.records] == ["ERROR", "INFO"]
    assert re.search("[1-9] were lost", caplog.text)
    assert len(records(directory)) == 2


def test_a_write_that_fails_midway_does_not_spoil_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full takes half a line; the half is taken back."""
    path = log_of(tmp_path, [0.1])
    write = decision_log.os.write
    monkeypatch.setattr(decision_log.os, "write", lambda fd, data: write(fd, data[:100]))
    play(DecisionLog(tmp_path), [0.1])
    monkeypatch.undo()
    play(DecisionLog(tmp_path), [0.1])
    assert len(path.read_bytes().splitlines()) == 2
    assert len(records(tmp_path)) == 2


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Nothing is appended to another user's file."""
    target = tmp_path / "target"
    target.write_text("")
    (tmp_path / "decisions.jsonl").symlink_to(target)
    play(DecisionLog(tmp_path), [0.1])
    assert target.read_text() == ""


def test_a_disk_that_hangs_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for it is bounded, what is lost is counted, and it goes on when it is back."""
    caplog.set_level(logging.INFO)
    back = threading.Event()
    write = decision_log.os.write
    monkeypatch.setattr(
        decision_log.os, "write", lambda fd, line: back.wait(60) and write(fd, line)
    )
    log, given = DecisionLog(tmp_path), inputs(0.0, 0.5)
    calm = decide(PolicyState(), given)[1]
    path, deadline_s = tmp_path / "decisions.jsonl", time.monotonic() + 30
    for n in range(60):
        log.note(AT + n, PolicyState(), given, replace(calm, level=n % 2))
        while not path.exists():  # the first line is being written
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    assert "the disk takes none" in caplog.text
    back.set()
    while len(records(tmp_path)) < 1 + decision_log.MAX_WAITING:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    log.close()
    assert f"{60 - 1 - decision_log.MAX_WAITING} were lost" in caplog.text
    assert [record.at for record in records(tmp_path)] == [
        AT + n for n in range(1 + decision_log.MAX_WAITING)
    ]
