"""Writes a log line for each event: "time level process event", to stderr or a file we rotate.

Writing never waits: a line is handed to a thread (`logs.writer`), so neither a full disk nor a
terminal that was stopped holds up the loop that relays streams or the one that ends hung
workers. Under systemd a line carries its priority instead of the time, which the journal adds.

In a file's case (`logs.file`) stderr follows it, so that a traceback or the stacks of a hung
worker land there too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tidegate.core.protocol.status import LogState
from tidegate.core.text import visible
from tidegate.logs.file import LogFile, LogStream, LogTarget
from tidegate.logs.repeats import LogLine
from tidegate.logs.writer import SETTLE_LIMIT_S, LogWriter

FILE_VARIABLE = "TIDEGATE_LOG_FILE"  # hands the file's place to the workers
MAX_LINE_BYTES = 4000  # below PIPE_BUF: a pipe takes it whole or not at all
_HEAD_BYTES = 1000  # of a line that is too long; a traceback says the most at its end
_STDERR = 2
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
# A name in a log line may come from outside; it must not begin a line of its own.
_WITHIN_A_LINE = {10: " | ", 9: " "}

_handler: LineHandler | None = None


def setup(process: str, file: Path | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Send this process's log to `file`, or to stderr. Raises OSError when it can't be opened.

    Without `file`, the one that the watchdog handed down is used.
    """
    global _handler  # noqa: PLW0603  (logging itself is one per process)
    if file is None and (inherited := environ.get(FILE_VARIABLE)):
        file = Path(inherited)
    if _handler is not None and _handler.file == file:
        _handler.process = process
        return
    target: LogTarget = (
        LogStream(_STDERR) if file is None else LogFile(file, rotates=process == "watchdog")
    )
    journal = file is None and is_journal(_STDERR, environ)
    handler = LineHandler(process, target, journal=journal, file=file)
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
        _handler.close()
    root.addHandler(handler)
    # logging asks this of a line's only value, and the first answer leaves 28 KiB behind, which
    # would lie scattered in the memory of the burst that the first such line tells of.
    isinstance("", Mapping)
    root.setLevel(logging.WARNING)  # libraries: watchfiles would tell of every event it hears
    logging.getLogger("tidegate").setLevel(logging.INFO)
    logging.raiseExceptions = False
    _handler = handler


def current_file() -> Path | None:
    """Return the file that this process logs to; None where it logs to stderr."""
    return _handler.file if _handler else None


def settle(limit_s: float = SETTLE_LIMIT_S) -> None:
    """Have every line written, before this process ends or becomes another one."""
    if _handler is not None:
        _handler.writer.settle(limit_s)


def lost() -> int:
    """Count the lines that could not be written and that the log does not tell of yet."""
    return _handler.writer.lost if _handler is not None else 0


def state() -> LogState:
    """Return where this process's lines go."""
    file = current_file()
    if file is not None:
        return LogState(file=str(file))
    if _handler is None or not _handler.is_journal:
        return LogState()
    try:
        unit, user = unit_of(Path("/proc/self/cgroup").read_text(errors="replace"))
    except OSError:
        unit, user = None, os.geteuid() != 0
    return LogState(journal=True, unit=unit, user=user)


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Tell whether `fd` is the very stream that systemd connected to the journal."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def unit_of(cgroups: str) -> tuple[str | None, bool]:
    """Return the unit in /proc/PID/cgroup, and whether it is of a user's service manager."""
    for line in cgroups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = path.split("/")
        units = [part for part in parts if part.endswith(".service")]
        if controllers in {"", "name=systemd"} and units:
            managers = [unit for unit in units if unit.startswith("user@")]
            if units[-1] not in managers:
                return units[-1], bool(managers)
    return None, os.geteuid() != 0


class LineHandler(logging.Handler):
    """Makes a line of a record and hands it to the writer."""

    def __init__(
        self, process: str, target: LogTarget, *, journal: bool, file: Path | None = None
    ) -> None:
        super().__init__()
        self.file = file
        self.process = process
        self.is_journal = journal
        self.writer = LogWriter(target, self._encode)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record to the writer, as a line."""
        try:
            line = LogLine(record.levelno, self._text(record), record.created)
        except (TypeError, ValueError):  # arguments that do not fit their format
            self.handleError(record)
        else:
            self.writer.put(line)

    def close(self) -> None:
        """Write what is left, and end the thread; `logging` calls it when the process ends."""
        self.writer.close()
        super().close()

    def _text(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
        return visible(text.translate(_WITHIN_A_LINE))

    def _encode(self, line: LogLine) -> bytes:
        if self.is_journal:
            head = f"<{_PRIORITY.get(line.level, 2)}>{self.process} "
        else:
            name = logging.getLevelName(line.level).lower()
            at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(line.at))
            head = f"{at} {name} {self.process} "
        return _cut((head + line.text).encode("utf-8", "replace")) + b"\n"


def _cut(line: bytes) -> bytes:
    """Leave out the middle of a line that is too long, and say how much that was."""
    if len(line) <= MAX_LINE_BYTES:
        return line
    gap = f" … {len(line) - MAX_LINE_BYTES} bytes left out … ".encode()
    tail_bytes = MAX_LINE_BYTES - _HEAD_BYTES - len(gap)
    head, tail = line[:_HEAD_BYTES], line[-tail_bytes:]
    return head.decode("utf-8", "ignore").encode() + gap + tail.decode("utf-8", "ignore").encode()
