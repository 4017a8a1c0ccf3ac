"""The decision log: what the memory guard decided, one JSON line each, with all its inputs.

Only what is new is written, and every half minute while relief goes on: a decision is made each
second, and most of them say what the last one said. The log is at most two files of 1 MiB.

A line goes into the page cache in tens of microseconds and nobody waits for the disk; a log that
cannot be written is said once, and the guard goes on.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from tidegate import __version__
from tidegate.core import decision as records
from tidegate.core.decision import Record
from tidegate.core.ladder import Decision, Inputs, Ladder
from tidegate.core.settings import MIB

FILE_NAME, FORMER_NAME = "decisions.jsonl", "decisions.1.jsonl"
MAX_FILE_BYTES = MIB  # some 500 decisions
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_log = logging.getLogger(__name__)


class DecisionLog:
    """Appends to `decisions.jsonl` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._former_path = directory / FORMER_NAME
        self._former: Decision | None = None
        self._relief_s = float("-inf")  # when relief was last written
        self._trouble: str | None = None

    def __repr__(self) -> str:
        return f"<DecisionLog {self._path}>"

    def note(self, at: float, before: Ladder, inputs: Inputs, decision: Decision) -> None:
        """Write a decision down if it is news. `at` is Unix seconds."""
        due = bool(decision.steps) and inputs.now_s - self._relief_s >= records.RELIEF_EVERY_S
        is_news = records.is_news(self._former, decision)
        self._former = decision
        if not is_news and not due:
            return
        if decision.steps:
            self._relief_s = inputs.now_s
        record = Record(at=at, version=__version__, before=before, inputs=inputs, decision=decision)
        try:
            self._append(msgspec.json.encode(record) + b"\n")
        except OSError as error:
            self._say(f"decisions cannot be written to {self._path}: {error.strerror}")
        else:
            self._say(None)

    def _append(self, line: bytes) -> None:
        """The file is opened each time: it may have been moved away, and this is rare."""
        fd = os.open(self._path, _FLAGS, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(line) > MAX_FILE_BYTES:
                os.close(fd)
                fd = -1
                self._path.replace(self._former_path)
                fd, size = os.open(self._path, _FLAGS, 0o600), 0
            try:
                if os.write(fd, line) < len(line):
                    raise OSError(0, "no room for a whole line")
            except OSError:
                os.ftruncate(fd, size)  # half a line would spoil the next one
                raise
        finally:
            if fd >= 0:
                os.close(fd)

    def _say(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self._trouble:
            _log.error("%s", trouble)
        elif trouble is None and self._trouble is not None:
            _log.info("decisions are written again")
        self._trouble = trouble


def tail(directory: Path, most_bytes: int) -> list[msgspec.Raw]:
    """The last decisions in a directory, as they were written, oldest first."""
    lines: list[msgspec.Raw] = []
    left_bytes = most_bytes
    for name in (FILE_NAME, FORMER_NAME):
        found, is_whole = _last_lines(directory / name, left_bytes)
        lines = found + lines
        left_bytes -= sum(len(bytes(line)) for line in found)
        if not is_whole:
            break
    return lines


def _last_lines(path: Path, most_bytes: int) -> tuple[list[msgspec.Raw], bool]:
    """The whole lines at the end of a file, and whether they are all that it has."""
    try:
        with path.open("rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - most_bytes)
            file.seek(start)
            text = file.read(most_bytes)
    except OSError:
        return [], True
    lines = text.split(b"\n")[:-1]  # what has no end is being written, or was cut off
    return [raw for line in lines[start > 0 :] if (raw := _checked(line))], start == 0


def _checked(line: bytes) -> msgspec.Raw | None:
    with suppress(msgspec.DecodeError):
        msgspec.json.decode(line)
        return msgspec.Raw(line)
    return None
