"""One line per event, without ever waiting."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fakes.machine import wait_until
from tidegate.logs import handler as log
from tidegate.logs import writer
from tidegate.logs.file import LogStream, LogTarget

LIMIT_S = 20.0
Made = Callable[..., log.LineHandler]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe, whose ends are closed afterwards."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
def handler() -> Iterator[Made]:
    """Makes handlers, and ends their threads."""
    made: list[log.LineHandler] = []

    def make(target: LogTarget | int, *, journal: bool = False) -> log.LineHandler:
        where = LogStream(target) if isinstance(target, int) else target
        made.append(log.LineHandler("worker", where, journal=journal))
        return made[-1]

    yield make
    for each in made:
        each.close()


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("x", level, "x", 1, text, None, None)


def say(made: log.LineHandler, text: str, level: int = logging.INFO) -> None:
    """Log a line and have it written."""
    made.emit(record(text, level))
    assert made.writer.settle(LIMIT_S)


class Disk:
    """A target that does as it is told: takes lines, fails, hangs, or takes a part."""

    batch_bytes = 10_000

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fails: OSError | None = None
        self.is_full = False
        self.flows = threading.Event()
        self.flows.set()
        self.hangs = threading.Event()

    def maintain(self) -> str | None:
        if self.fails:
            raise self.fails
        return None

    def has_room(self) -> bool:
        return not self.is_full

    def write(self, lines: Sequence[bytes]) -> int:
        if not self.flows.is_set():
            self.hangs.set()
            self.flows.wait(LIMIT_S)
        self.lines += [line.decode().split(" ", 2)[2].rstrip("\n") for line in lines]
        return len(lines)


# --- a line ----------------------------------------------------------------------------------


def test_line_has_time_level_process_event(pipe: tuple[int, int], handler: Made) -> None:
    """The four parts, in this order."""
    say(handler(pipe[1]), "run ended", logging.WARNING)
    at, level, process, event = os.read(pipe[0], 4096).decode().split(" ", 3)
    assert len(at) == len("2026-11-22T20:00:00+0000")
    assert (level, process, event) == ("warning", "worker", "run ended\n")


@pytest.mark.parametrize(
    ("level", "priority"), [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2)], ids=str
)
def test_journal_gets_the_priority_and_no_time(
    pipe: tuple[int, int], handler: Made, level: int, priority: int
) -> None:
    """Under systemd a line begins with its priority."""
    say(handler(pipe[1], journal=True), "up", level)
    assert os.read(pipe[0], 4096) == f"<{priority}>worker up\n".encode()


def test_event_cannot_begin_a_line_of_its_own(pipe: tuple[int, int], handler: Made) -> None:
    """Line ends and control characters from outside stay within the line."""
    say(handler(pipe[1]), "a\nb\r\x1b[31mü\x85\u2028\u202e\ufeff\tc")
    text = os.read(pipe[0], 4096).decode()
    assert text.endswith("a | b\\x0d\\x1b[31mü\\x85\\u2028\\u202e\\ufeff c\n")
    assert text.count("\n") == 1


def test_long_line_loses_its_middle_and_says_so(pipe: tuple[int, int], handler: Made) -> None:
    """A line never exceeds what a pipe takes whole; a traceback's end is what matters."""
    say(handler(pipe[1]), "begin " + "ü" * 100_000 + " ValueError: x")
    line = os.read(pipe[0], 65536)
    assert log.MAX_LINE_BYTES - 10 < len(line) <= log.MAX_LINE_BYTES + 1
    text = line.decode()
    assert "worker begin ü" in text
    assert text.endswith("ü ValueError: x\n")
    assert " bytes left out … " in text


def test_arguments_that_do_not_fit_are_survived(pipe: tuple[int, int], handler: Made) -> None:
    """A mistake in a log call costs that line and nothing else."""
    made = handler(pipe[1])
    logging_raises, logging.raiseExceptions = logging.raiseExceptions, False
    made.emit(logging.LogRecord("x", logging.INFO, "x", 1, "%d", ("no number",), None))
    logging.raiseExceptions = logging_raises
    say(made, "on")
    assert os.read(pipe[0], 4096).decode().endswith("worker on\n")


def test_repeated_lines_are_counted(pipe: tuple[int, int], handler: Made) -> None:
    """What says the same again costs one more line, at the end at the latest."""
    made = handler(pipe[1])
    for _ in range(50):
        made.emit(record("box: refused"))
    assert made.writer.settle(LIMIT_S)
    first, counted = os.read(pipe[0], 65536).decode().splitlines()
    assert first.endswith("worker box: refused")
    assert counted.endswith("worker repeated 49 times in 1 s: box: refused")


# --- never waiting ---------------------------------------------------------------------------


def test_hanging_disk_holds_nothing_up(handler: Made) -> None:
    """While a write hangs, lines are taken at once, kept in order, and written when it ends."""
    disk = Disk()
    made = handler(disk)
    disk.flows.clear()
    made.emit(record("a"))
    assert disk.hangs.wait(LIMIT_S)  # from here on no line can be written before `flows` is set
    for text in ("b", "c", "d"):
        made.emit(record(text))
    assert disk.lines == []
    disk.flows.set()
    assert made.writer.settle(LIMIT_S)
    assert disk.lines == ["worker a", "worker b", "worker c", "worker d"]


def test_settling_does_not_wait_for_a_disk_that_hangs(handler: Made) -> None:
    """A process can end although its last lines cannot be written."""
    disk = Disk()
    made = handler(disk)
    disk.flows.clear()
    made.emit(record("a"))
    assert disk.hangs.wait(LIMIT_S)
    assert not made.writer.settle(0.05)
    disk.flows.set()


def test_full_queue_drops_counts_and_says_so_in_place(
    handler: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound lines are dropped; the count is between what was kept and what came."""
    monkeypatch.setattr(writer, "QUEUE_BYTES", 1000)
    disk = Disk()
    made = handler(disk)
    disk.flows.clear()
    texts = [f"{chr(97 + n % 26)}{chr(97 + n // 26)} {'x' * 50}" for n in range(200)]
    for text in texts:
        made.emit(record(text))
    lost = made.writer.lost
    assert 0 < lost < 200
    disk.flows.set()
    wait_until(lambda: made.writer.lost == 0)
    say(made, "again")
    kept, (said, again) = disk.lines[:-2], disk.lines[-2:]
    assert kept == [f"worker {text}" for text in texts[: 200 - lost]]
    assert said.startswith(f"worker {lost} log lines lost: ")
    assert again == "worker again"


def test_full_disk_is_said_when_there_is_room_again(
    handler: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines wait for the disk; how long it failed, and why, is in the log afterwards."""
    monkeypatch.setattr(writer, "RETRY_S", 0.01)
    disk = Disk()
    disk.fails = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    made = handler(disk)
    made.emit(record("a"))
    made.emit(record("b"))
    assert not made.writer.settle(0.1)
    disk.fails = None
    assert made.writer.settle(LIMIT_S)
    assert disk.lines == [
        "worker a",
        "worker b",
        "worker the log stood still for 0 s: No space left on device",
    ]


def test_file_that_waits_for_rotation_is_waited_for(handler: Made) -> None:
    """A worker adds nothing to a full file, and loses nothing."""
    disk = Disk()
    disk.is_full = True
    made = handler(disk)
    made.emit(record("a"))
    assert not made.writer.settle(0.1)
    assert disk.lines == []
    disk.is_full = False
    assert made.writer.settle(LIMIT_S)
    assert disk.lines == ["worker a"]


def test_unread_pipe_holds_nothing_up(
    pipe: tuple[int, int], handler: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that does not read later learns what it missed: every line is there or counted."""
    monkeypatch.setattr(writer, "QUEUE_BYTES", 20_000)
    made = handler(pipe[1])
    for n in range(150):
        made.emit(record(f"{chr(97 + n % 26)}{chr(97 + n // 26)} {'x' * 1000}"))
    text = ""
    while len(re.findall(r"worker \w\w x", text)) + _said_lost(text) < 150:
        text += os.read(pipe[0], 65536).decode()
    assert made.writer.settle(LIMIT_S)
    assert _said_lost(text) > 0


def _said_lost(text: str) -> int:
    return sum(int(n) for n in re.findall(r"worker (\d+) log lines lost", text))


def test_closed_reader_is_survived(handler: Made) -> None:
    """When the terminal is gone lines are lost, not the daemon."""
    reading, writing = os.pipe()
    os.close(reading)
    made = handler(writing)
    made.emit(record("x"))
    assert not made.writer.settle(0.05)
    os.close(writing)


def test_lines_are_written_when_a_process_ends(tmp_path: Path) -> None:
    """Also the last ones before an exit, and the count of what was repeated."""
    script = (
        "import logging, sys; from pathlib import Path; from tidegate.logs import handler as log\n"
        "log.setup('watchdog', Path(sys.argv[1]))\n"
        "ours = logging.getLogger('tidegate')\n"
        "[ours.info('same') for _ in range(9)]\n"
        "ours.info('last'); print('out'); sys.exit(3)\n"
    )
    file = tmp_path / "log"
    done = subprocess.run([sys.executable, "-c", script, file], check=False, timeout=LIMIT_S)
    assert done.returncode == 3
    events = [line.split(" ", 3)[3] for line in file.read_text().splitlines()]
    assert events[0] == "same"
    assert events[1].startswith("repeated 8 times")
    assert events[2] == "last"


def test_traceback_and_stacks_land_in_the_file(tmp_path: Path) -> None:
    """What Python itself says of a crash is where one looks for it, after what led to it."""
    script = (
        "import faulthandler, logging, os, sys; from pathlib import Path\n"
        "from tidegate.logs import handler as log\n"
        "log.setup('watchdog', Path(sys.argv[1])); faulthandler.enable()\n"
        "logging.getLogger('tidegate').info('before')\n"
        "log.settle()\n"
        "if sys.argv[2] == 'raise': raise RuntimeError('why')\n"
        "os.abort()\n"
    )
    for how, what in (("raise", "RuntimeError: why"), ("abort", "Fatal Python error: Aborted")):
        file = tmp_path / how
        command = ["sh", "-c", 'ulimit -c 0; exec "$@"', "sh", sys.executable, "-c", script]
        subprocess.run([*command, file, how], check=False, timeout=LIMIT_S)
        assert what in file.read_text()
        assert "watchdog before" in file.read_text()


def test_libraries_are_heard_when_they_warn(tmp_path: Path) -> None:
    """What a library tells of its daily work is not the owner's affair; its warnings are."""
    script = (
        "import logging, sys; from pathlib import Path; from tidegate.logs import handler as log\n"
        "log.setup('worker', Path(sys.argv[1])); theirs = logging.getLogger('watchfiles.main')\n"
        "theirs.info('1 change detected'); theirs.warning('out of watches')\n"
    )
    file = tmp_path / "log"
    subprocess.run([sys.executable, "-c", script, file], check=True, timeout=LIMIT_S)
    (line,) = file.read_text().splitlines()
    assert line.endswith("warning worker out of watches")


# --- where it goes ---------------------------------------------------------------------------


def test_only_the_journals_own_stream_is_the_journal(pipe: tuple[int, int]) -> None:
    """JOURNAL_STREAM counts when it names this very descriptor."""
    found = os.fstat(pipe[1])
    assert log.is_journal(pipe[1], {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not log.is_journal(pipe[1], {"JOURNAL_STREAM": f"{found.st_dev}:1"})
    assert not log.is_journal(pipe[1], {})


@pytest.mark.parametrize(
    ("cgroups", "unit", "user"),
    [
        ("0::/system.slice/tidegate.service\n", "tidegate.service", False),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/t.service", "t.service", True),
        ("5:memory:/x.service\n1:name=systemd:/system.slice/gate.service/sub", "gate.service", 0),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope", None, os.geteuid() != 0),
        ("0::/", None, os.geteuid() != 0),
    ],
)
def test_unit_is_read_from_the_control_group(cgroups: str, unit: str | None, user: bool) -> None:
    """The last service on the path; below user@UID.service it is a user's."""
    assert log.unit_of(cgroups) == (unit, user)
