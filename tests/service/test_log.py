"""One line per event, without ever waiting."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.service import log


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe, whose ends are closed afterwards."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
def spare_fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor in stderr's place."""
    fd = os.open(tmp_path / "spare", os.O_CREAT | os.O_WRONLY)
    yield fd
    os.close(fd)


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("x", level, "x", 1, text, None, None)


def handler(fd: int, *, journal: bool = False) -> log.LineHandler:
    return log.LineHandler("worker", None, rotates=False, journal=journal, fd=fd)


def test_line_has_time_level_process_event(pipe: tuple[int, int]) -> None:
    """The four parts, in this order."""
    handler(pipe[1]).emit(record("run ended", logging.WARNING))
    time, level, process, event = os.read(pipe[0], 4096).decode().split(" ", 3)
    assert len(time) == len("2026-11-22T20:00:00+0000")
    assert (level, process, event) == ("warning", "worker", "run ended\n")


@pytest.mark.parametrize(
    ("level", "priority"), [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2)], ids=str
)
def test_journal_gets_the_priority_and_no_time(
    pipe: tuple[int, int], level: int, priority: int
) -> None:
    """Under systemd a line begins with its priority."""
    handler(pipe[1], journal=True).emit(record("up", level))
    assert os.read(pipe[0], 4096) == f"<{priority}>worker up\n".encode()


def test_event_cannot_begin_a_line_of_its_own(pipe: tuple[int, int]) -> None:
    """Line ends and control characters from outside stay within the line."""
    handler(pipe[1]).emit(record("a\nb\r\x1b[31mü\x85"))
    text = os.read(pipe[0], 4096).decode()
    assert text.endswith("a | b\\x0d\\x1b[31mü\\x85\n")
    assert text.count("\n") == 1


def test_full_pipe_loses_lines_and_says_how_many(pipe: tuple[int, int]) -> None:
    """A reader that does not read holds up nobody, and later learns what it missed."""
    made = handler(pipe[1])
    for n in range(1000):
        made.emit(record(f"{n} {'x' * 200}"))
    lost = made.lost
    assert 0 < lost < 1000
    written = os.read(pipe[0], 1 << 20).count(b"\n")
    assert written + lost == 1000
    made.emit(record("again"))
    reported, again = os.read(pipe[0], 65536).decode().splitlines()
    assert reported.endswith(f"{lost} log lines lost")
    assert again.endswith("again")


def test_long_line_is_cut(pipe: tuple[int, int]) -> None:
    """A line never exceeds what a pipe takes whole."""
    handler(pipe[1]).emit(record("x" * 100_000))
    assert len(os.read(pipe[0], 65536)) == log.MAX_LINE_BYTES + 1


def test_closed_reader_is_survived(pipe: tuple[int, int]) -> None:
    """When the terminal is gone the line is lost, not the daemon."""
    reading, writing = os.pipe()
    os.close(reading)
    made = handler(writing)
    made.emit(record("x"))
    os.close(writing)
    assert made.lost == 1


def test_file_is_rotated_and_followed(
    tmp_path: Path, spare_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog rotates at the size, keeps two more, and the worker follows to the new file."""
    monkeypatch.setattr(log, "ROTATE_BYTES", 2000)
    monkeypatch.setattr(log, "_CHECK_FILE_S", 0.0)
    file = tmp_path / "log"
    other = os.dup(spare_fd)
    ours = log.LineHandler("watchdog", file, rotates=True, journal=False, fd=spare_fd)
    workers = log.LineHandler("worker", file, rotates=False, journal=False, fd=other)
    for n in range(200):
        ours.emit(record(f"ours {n}"))
        workers.emit(record(f"theirs {n}"))
    os.close(other)
    files = sorted(path.name for path in tmp_path.glob("log*"))
    assert files == ["log", "log.1", "log.2"]
    assert "theirs 199" in file.read_text()
    assert "ours 199" in file.read_text()
    assert all(path.stat().st_size < 2200 for path in tmp_path.glob("log*"))
    assert file.stat().st_mode & 0o777 == 0o600


def test_removed_file_is_made_again(
    tmp_path: Path, spare_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who deletes the log gets a new one."""
    monkeypatch.setattr(log, "_CHECK_FILE_S", 0.0)
    made = log.LineHandler("w", tmp_path / "log", rotates=False, journal=False, fd=spare_fd)
    (tmp_path / "log").unlink()
    made.emit(record("still here"))
    assert "still here" in (tmp_path / "log").read_text()


def test_log_must_be_a_regular_file(tmp_path: Path, spare_fd: int) -> None:
    """A directory or a named pipe is refused at the start."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=r"fifo|No such device"):
        log.LineHandler("w", tmp_path / "fifo", rotates=False, journal=False, fd=spare_fd)


def test_only_the_journals_own_stream_is_the_journal(spare_fd: int) -> None:
    """JOURNAL_STREAM counts when it names this very descriptor."""
    found = os.fstat(spare_fd)
    assert log.is_journal(spare_fd, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not log.is_journal(spare_fd, {"JOURNAL_STREAM": f"{found.st_dev}:1"})
    assert not log.is_journal(spare_fd, {})
