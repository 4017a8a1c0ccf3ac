"""`tidegate logs`: the log, wherever it is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fakes.status import idle
from tidegate.cli.failure import NOT_RUNNING, REFUSED, USAGE, CliError
from tidegate.cli.show.log_reader import Line, LogReader, parse
from tidegate.cli.verbs import logs as verb
from tidegate.cli.verbs.logs import LogQuery, from_journal, show_file, show_journal
from tidegate.core.protocol.status import LogState, Status, WatchdogState
from tidegate.managers.job import Scope

LIMIT_S = 20.0


def line(event: str, at: str = "2026-11-22T20:00:00+0000", process: str = "worker 1") -> str:
    return f"{at} info {process} {event}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A log that was rotated twice."""
    (tmp_path / "log.2").write_text(line("one") + line("two"))
    (tmp_path / "log.1").write_text(line("three"))
    (tmp_path / "log").write_text(line("four") + line("five"))
    return tmp_path / "log"


def events(text: str) -> list[str]:
    return [row.rpartition(" ")[2] for row in text.splitlines()]


# --- which lines -----------------------------------------------------------------------------


def test_rotated_files_are_read_in_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The oldest first, as if it were one file."""
    assert show_file(file, LogQuery(lines=None)) == 0
    assert events(capsys.readouterr().out) == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 5, 9])
def test_last_lines_are_counted_over_all_files(
    file: Path, capsys: pytest.CaptureFixture[str], lines: int
) -> None:
    """`-n` does not end where a file was rotated."""
    show_file(file, LogQuery(lines=lines))
    wanted = ["one", "two", "three", "four", "five"][max(0, 5 - lines) :]
    assert events(capsys.readouterr().out) == wanted


def test_lines_since_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, which has no time, goes with the line before it."""
    log = tmp_path / "log"
    log.write_text(
        line("old", "2026-11-22T19:00:00+0100")
        + "Traceback of old\n"
        + line("new", "2026-11-22T18:30:00+0000")
        + "Traceback of new\n"
    )
    since = datetime.fromisoformat("2026-11-22T18:15:00+00:00").timestamp()
    show_file(log, LogQuery(lines=None, since=since))
    assert events(capsys.readouterr().out) == ["new", "new"]


def test_log_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` is an object a line; what is no log line has only its text."""
    (tmp_path / "log").write_text(line("run ended", process="worker 12") + "  File x\n")
    show_file(tmp_path / "log", LogQuery(json=True))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "time": "2026-11-22T20:00:00+0000",
        "level": "info",
        "process": "worker 12",
        "text": "run ended",
    }
    assert second == {"time": None, "level": None, "process": None, "text": "  File x"}


def test_unfinished_line_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last words of a process that was killed in the middle of them."""
    (tmp_path / "log").write_text(line("one") + "2026-11-22T20:00:00+0000 info wor")
    show_file(tmp_path / "log", LogQuery())
    assert capsys.readouterr().out.endswith(" info wor\n")


def test_log_cannot_steer_the_terminal() -> None:
    """Whatever a library wrote to stderr is shown without its escapes."""
    assert "\x1b" not in str(parse(b"\x1b[2Jx\xff\ty"))


@pytest.mark.parametrize("name", ["log", "log.1"])
def test_no_log_is_said(tmp_path: Path, name: str) -> None:
    """No file at all is an error; a rotated one alone is a log."""
    if name == "log":
        with pytest.raises(CliError, match="does not exist") as caught:
            show_file(tmp_path / "log", LogQuery())
        assert caught.value.code == NOT_RUNNING
    else:
        (tmp_path / name).write_text(line("one"))
        assert show_file(tmp_path / "log", LogQuery()) == 0


def test_unreadable_log_is_said(tmp_path: Path) -> None:
    """A directory in its place is named with the reason."""
    (tmp_path / "log").mkdir()
    with pytest.raises(CliError, match=r"log: Is a directory") as caught:
        show_file(tmp_path / "log", LogQuery())
    assert caught.value.code == REFUSED


NOW = datetime(2026, 11, 23, 8, 0, 0)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", datetime(2026, 11, 23, 7, 58, 30)),
        ("30min", datetime(2026, 11, 23, 7, 30)),
        ("30 m", datetime(2026, 11, 23, 7, 30)),
        ("2h", datetime(2026, 11, 23, 6)),
        ("1d", datetime(2026, 11, 22, 8)),
        ("06:00", datetime(2026, 11, 23, 6)),
        ("today", datetime(2026, 11, 23)),
        ("yesterday", datetime(2026, 11, 22)),
        ("2026-11-20", datetime(2026, 11, 20)),
        ("2026-11-20T06:30", datetime(2026, 11, 20, 6, 30)),
        ("2026-11-20 06:30:05", datetime(2026, 11, 20, 6, 30, 5)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    """A while ago, a time today, or a date."""
    assert verb.moment(text, NOW) == moment.timestamp()


@pytest.mark.parametrize(
    "text", ["", "x", "2 parsecs", "25:00", "-1h", "9999999999d", "2026-13-01"]
)
def test_what_is_no_moment_is_said(text: str) -> None:
    """The error shows what would be one."""
    with pytest.raises(CliError, match="30min, 2h") as caught:
        verb.moment(text, NOW)
    assert caught.value.code == USAGE


# --- following -------------------------------------------------------------------------------


def read(reader: LogReader) -> list[str]:
    return events("\n".join(each.decode() for each in reader.read()))


def rotate(file: Path) -> None:
    file.with_name("log.1").replace(file.with_name("log.2"))
    file.replace(file.with_name("log.1"))
    file.write_text("")


def add(file: Path, event: str) -> None:
    with file.open("a") as log:
        log.write(line(event))


def test_following_goes_over_rotation(file: Path) -> None:
    """Every line once, also those that a worker appended to the file that was renamed."""
    reader = LogReader(file)
    assert read(reader) == ["one", "two", "three", "four", "five"]
    add(file, "six")
    rotate(file)
    add(file.with_name("log.1"), "seven")
    add(file, "eight")
    assert read(reader) == ["six", "seven", "eight"]
    add(file, "nine")
    rotate(file)
    add(file, "ten")
    rotate(file)
    add(file, "eleven")
    assert read(reader) == ["nine", "ten", "eleven"]
    rotate(file)
    rotate(file)
    rotate(file)
    add(file, "twelve")
    assert read(reader) == ["twelve"]
    reader.close()


def test_following_survives_a_log_that_is_gone_or_cut(file: Path) -> None:
    """Deleted and made again, or emptied: it goes on with what comes."""
    reader = LogReader(file)
    assert len(read(reader)) == 5
    file.unlink()
    assert read(reader) == []
    add(file, "new")
    assert read(reader) == ["new"]
    file.write_text("")
    assert read(reader) == []
    add(file, "newer")
    assert read(reader) == ["newer"]
    reader.close()


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    """A line is shown when it is whole."""
    file = tmp_path / "log"
    file.write_text("2026 ha")
    reader = LogReader(file)
    assert read(reader) == []
    with file.open("a") as log:
        log.write("lf\n")
    assert read(reader) == ["half"]
    reader.close()


def test_descriptors_do_not_add_up(file: Path) -> None:
    """A week of following holds no more files open than there are."""
    reader = LogReader(file)
    read(reader)
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(10):
        rotate(file)
        read(reader)
    assert len(list(Path("/dev/fd").iterdir())) == before
    reader.close()


@contextmanager
def following(*flags: str) -> Iterator[tuple[list[str], Callable[[str], None]]]:
    """The verb in a process of its own: what it shows, and how to wait for it."""
    words = [sys.executable, "-m", "tidegate", "logs", "-f", *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        shown: list[str] = []
        begun = ""

        def wait_for(event: str) -> None:
            nonlocal begun
            deadline_s = time.monotonic() + LIMIT_S
            while not any(event in each for each in shown):
                assert time.monotonic() < deadline_s, (event, shown)
                assert process.poll() is None, shown
                *whole, begun = (begun + (process.stdout.read() or b"").decode()).split("\n")  # type: ignore[union-attr]
                shown.extend(whole)
                time.sleep(0.02)

        try:
            yield shown, wait_for
        finally:
            process.kill()


def test_verb_follows_over_rotation_and_restart(tmp_path: Path) -> None:
    """No daemon runs, another process writes, the file is rotated: following goes on."""
    file = tmp_path / "tidegate.log"
    file.write_text(line("one") + line("two"))
    places = ["--state-dir", str(tmp_path), "--runtime-dir", str(tmp_path / "run")]
    with following(*places, "-n", "1") as (shown, wait_for):
        wait_for("two")
        assert len(shown) == 1
        file.replace(tmp_path / "tidegate.log.1")
        file.write_text(line("three"))
        wait_for("three")


# --- where it is -----------------------------------------------------------------------------


def test_journals_lines_look_like_ours() -> None:
    """The journal's time and priority stand where a file has them."""
    entry = {
        "__REALTIME_TIMESTAMP": "1795377600000000",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "tidegate",
        "MESSAGE": "worker 1 run ended",
    }
    found = from_journal(json.dumps(entry).encode())
    assert re.fullmatch(r"\S{24} warning worker 1 run ended", str(found))
    assert found.at == 1795377600
    assert found.process == "worker 1"
    systemds = from_journal(
        json.dumps(entry | {"SYSLOG_IDENTIFIER": "systemd", "MESSAGE": "Started."}).encode()
    )
    assert str(systemds).endswith(" warning systemd Started.")
    binary = from_journal(json.dumps(entry | {"MESSAGE": [119, 27, 255, 10]}).encode())
    assert binary.text == "w\\x1b\N{REPLACEMENT CHARACTER}"
    assert from_journal(json.dumps(entry | {"MESSAGE": None}).encode()).text == ""


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program in journalctl's place that prints what it is given."""

    def put(output: str) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        asked = tmp_path / "asked"
        (tmp_path / "out").write_text(output)
        program = tmp_path / "bin" / "journalctl"
        program.write_text(f'#!/bin/sh\necho "$@" >>"{asked}"\ncat "{tmp_path / "out"}"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        return asked

    return put


ENTRY = '{"__REALTIME_TIMESTAMP":"1795377600000000","MESSAGE":"worker 1 up","PRIORITY":"6"}\n'


def place(log: LogState | None) -> Status:
    """The answer of a tidegate without workers that logs there."""
    return idle(watchdog=WatchdogState(pid=77, rss_bytes=1, log=log))


def test_running_tidegate_says_where_its_log_is(tidegate: Any, watchdog: Any, file: Path) -> None:
    """Whatever file it was given, the verb finds it."""
    watchdog.will("status", place(LogState(file=str(file))))
    code, out, err = tidegate("logs", "-n", "2")
    assert (code, events(out), err) == (0, ["four", "five"], "")


def test_running_tidegate_says_which_journal_it_writes_to(
    tidegate: Any, watchdog: Any, journal: Callable[[str], Path]
) -> None:
    """A unit of another name, of the user's manager."""
    asked = journal(ENTRY)
    watchdog.will("status", place(LogState(journal=True, unit="gate.service", user=True)))
    code, _, _ = tidegate("logs")
    assert code == 0
    assert "--user-unit=gate.service" in asked.read_text()


def test_tidegate_in_a_terminal_has_no_log(tidegate: Any, watchdog: Any) -> None:
    """That is said, with how to have one; a log of an earlier time is not taken for it."""
    (tidegate.state_dir / "tidegate.log").write_text(line("old"))
    watchdog.will("status", place(LogState()))
    code, out, err = tidegate("logs")
    assert (code, out) == (REFUSED, "")
    assert "tidegate (pid 77) keeps no log" in err
    assert "--log-file" in err
    assert "from an earlier time" in err


def test_of_what_is_left_the_latest_is_shown(
    tidegate: Any, file: Path, journal: Callable[[str], Path]
) -> None:
    """No daemon runs, and there is both a file and a journal: what was written last is meant."""
    journal(ENTRY)
    log = tidegate.state_dir / "tidegate.log"
    log.write_text(line("from the file"))
    os.utime(log, (1795377000, 1795377000))  # ten minutes before the journal's line
    assert "worker 1 up" in tidegate("logs")[1]
    os.utime(log, (1795378000, 1795378000))
    assert "from the file" in tidegate("logs")[1]


def test_journal_is_asked_for_the_units_lines(
    journal: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Of the system's or the user's manager, and no more than is wanted."""
    asked = journal(ENTRY)
    assert show_journal(Scope.SYSTEM, LogQuery(lines=3)) == 0
    assert show_journal(Scope.USER, LogQuery(lines=None, since=7.0), "other.service") == 0
    first, second = asked.read_text().splitlines()
    assert "--unit=tidegate" in first
    assert "-n 3" in first
    assert "--user-unit=other.service" in second
    assert "-n all --since=@7" in second
    assert capfd.readouterr().out.count("worker 1 up") == 2


def test_journal_without_lines_is_said(journal: Callable[[str], Path]) -> None:
    """Nothing shown is never just silence."""
    journal("")
    with pytest.raises(CliError, match="the journal has no lines of tidegate") as caught:
        show_journal(Scope.SYSTEM, LogQuery())
    assert caught.value.code == NOT_RUNNING


def test_following_a_journal_never_stops_silently(journal: Callable[[str], Path]) -> None:
    """When journalctl ends by itself, so it is said."""
    journal(ENTRY)
    with pytest.raises(CliError, match="journalctl ended"):
        show_journal(Scope.SYSTEM, LogQuery(follow=True))


def test_without_journalctl_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Mac, or a small container."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CliError, match="no journalctl"):
        show_journal(Scope.SYSTEM, LogQuery())


def test_line_knows_its_time() -> None:
    """In Unix seconds, whatever the zone; a line that has none has none."""
    assert Line(text="x", time="2026-11-22T21:00:00+0100").at == 1795377600
    assert Line(text="x").at is None
    assert Line(text="x", time="noon").at is None
