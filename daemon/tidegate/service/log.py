"""One line per thing done: "time level process event", to stderr or to a file that we rotate.

Writing never waits. A terminal that was stopped or a pipe nobody reads must not hold up the
loop that ends hung workers, so a line that cannot be written at once is dropped and counted,
and the count is the next line that can. Under systemd a line carries its priority instead of
the time, which the journal adds.

In a file's case stderr follows it, so that a traceback or the stacks of a hung worker land there
too. Only the watchdog rotates; the others see that the file has another inode and reopen it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from tidegate.core.settings import MIB

FILE_VARIABLE = "TIDEGATE_LOG_FILE"  # hands the file's place to the workers
ROTATE_BYTES = 10 * MIB  # three of them: a month of a busy home, and no disk fills up
ROTATIONS = 2  # beside the file itself
MAX_LINE_BYTES = 4000  # below PIPE_BUF: a pipe that polls as writable takes it whole
_CHECK_FILE_S = 1.0
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
# A name in a log line may come from outside; it must not begin a line of its own.
_SAFE = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160))} | {10: " | ", 9: " "}

_handler: LineHandler | None = None


def setup(process: str, file: Path | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Send this process's log to `file`, or to stderr. Raises OSError when it can't be opened.

    Without `file`, the one that the watchdog handed down is used.
    """
    global _handler  # noqa: PLW0603  (logging itself is one per process)
    if file is None and (inherited := environ.get(FILE_VARIABLE)):
        file = Path(inherited)
    handler = LineHandler(
        process,
        file,
        rotates=process == "watchdog",
        journal=file is None and is_journal(2, environ),
    )
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False
    _handler = handler


def current_file() -> Path | None:
    """The file that this process logs to."""
    return _handler.file if _handler else None


def tend() -> None:
    """Looks after the file now and then, for those who write to it more than this process does."""
    if _handler is not None:
        _handler.tend()


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether `fd` is the very stream that systemd connected to the journal."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


class LineHandler(logging.Handler):
    """Writes whole lines to a descriptor, without waiting."""

    def __init__(
        self, process: str, file: Path | None, *, rotates: bool, journal: bool, fd: int = 2
    ) -> None:
        super().__init__()
        self.file = file
        self.lost = 0
        self._process = process
        self._rotates = rotates
        self._journal = journal
        self._fd = fd
        self._checked_s = 0.0
        if file is not None:
            self._open(file)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; count it as lost when that would wait or fails."""
        try:
            if self.file is not None:
                self._follow(self.file)
            if self.lost and self._write(
                self._line(logging.WARNING, f"{self.lost} log lines lost")
            ):
                self.lost = 0
            if not self._write(self._line(record.levelno, self._text(record))):
                self.lost += 1
        except OSError:  # a full disk or a vanished terminal must not stop the daemon
            self.lost += 1
        except (TypeError, ValueError):  # arguments that do not fit their format
            self.handleError(record)

    def tend(self) -> None:
        """Rotates the file if it is due."""
        if self.file is not None:
            with contextlib.suppress(OSError):  # said as soon as a line cannot be written
                self._follow(self.file)

    def _text(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
        return text

    def _line(self, level: int, text: str) -> bytes:
        text = text.translate(_SAFE)
        name = logging.getLevelName(level).lower()
        if self._journal:
            line = f"<{_PRIORITY.get(level, 2)}>{self._process} {text}"
        else:
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {name} {self._process} {text}"
        return line.encode("utf-8", "replace")[:MAX_LINE_BYTES] + b"\n"

    def _write(self, line: bytes) -> bool:
        if self.file is None:
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            if not any(happened & select.POLLOUT for _, happened in poller.poll(0)):
                return False
        os.write(self._fd, line)
        return True

    def _follow(self, file: Path) -> None:
        """Rotate the file when it is ours to rotate; open it again when it has been."""
        if time.monotonic() - self._checked_s < _CHECK_FILE_S:
            return
        self._checked_s = time.monotonic()
        mine = os.fstat(self._fd)
        if self._rotates and mine.st_size >= ROTATE_BYTES:
            _rotate(file)
        try:
            there = file.stat()
        except FileNotFoundError:
            self._open(file)
            return
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            self._open(file)

    def _open(self, file: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(file, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{file} is not a regular file")
            os.dup2(fd, self._fd)  # inheritable, as a worker's stderr has to be
        finally:
            os.close(fd)


def _rotate(file: Path) -> None:
    """file.1 becomes file.2, file becomes file.1; the oldest is overwritten."""
    for n in range(ROTATIONS, 0, -1):
        older = file.with_name(f"{file.name}.{n}")
        newer = file.with_name(f"{file.name}.{n - 1}") if n > 1 else file
        if newer.exists():
            newer.replace(older)
