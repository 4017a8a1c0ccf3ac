"""The decision log: what the memory guard decided, one JSON line each, with all its inputs.

Only what is new is written, and every half minute while memory is reclaimed: a decision is made
each second, and most of them repeat the last one. The log is at most two files of 1 MiB.

A thread writes, for as long as there is something to write: a line takes 10 us, but a disk that
hangs takes for ever, and the loop must not. What then waits is bounded, and what is lost is
counted. That the log cannot be written is logged once, and the guard goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import msgspec

from tidegate import __version__
from tidegate.core import decoding
from tidegate.core.memory import record as records
from tidegate.core.memory.decision import Decision, Inputs, PolicyState
from tidegate.core.memory.record import Record
from tidegate.core.settings import MIB
from tidegate.machine.private_file import open_own
from tidegate.machine.signals import start_without_signals

FILE_NAME, FORMER_NAME = "decisions.jsonl", "decisions.1.jsonl"
MAX_FILE_BYTES = MIB  # some 500 decisions
MAX_WAITING = 32  # lines of 2 KiB, a quarter of an hour of reclaiming
CLOSE_LIMIT_S = 0.5
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_log = logging.getLogger(__name__)


class DecisionLog:
    """Append to `decisions.jsonl` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._former_path = directory / FORMER_NAME
        self._former: Decision | None = None
        self._reclaim_s = float("-inf")  # when a step was last written
        self._logged: str | None = None  # the trouble that is in the log
        self._lock = threading.Lock()  # of all that follows: the thread shares it
        self._waiting: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._trouble: str | None = None
        self._lost = 0

    def __repr__(self) -> str:
        return f"<DecisionLog {self._path}>"

    def note(self, at: float, before: PolicyState, inputs: Inputs, decision: Decision) -> None:
        """Write a decision down if it is news. `at` is Unix seconds. Call it once a second."""
        self._log_trouble()
        due = bool(decision.steps) and inputs.now_s - self._reclaim_s >= records.RECLAIM_EVERY_S
        is_news = records.is_news(self._former, decision)
        self._former = decision
        if not is_news and not due:
            return
        if decision.steps:
            self._reclaim_s = inputs.now_s
        record = Record(at=at, version=__version__, before=before, inputs=inputs, decision=decision)
        self._write_soon(msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        """Wait a moment for what is being written."""
        over_s = time.monotonic() + CLOSE_LIMIT_S
        while (thread := self._thread) is not None and time.monotonic() < over_s:
            thread.join(max(0.0, over_s - time.monotonic()))
        self._log_trouble()

    def _write_soon(self, line: bytes) -> None:
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._lost += 1
                self._trouble = "the disk takes none"
                return
            self._waiting.append(line)
            if self._thread is not None:
                return  # it sees the line before it ends
            self._thread = threading.Thread(
                target=self._write_waiting, name="decisions", daemon=True
            )
        try:
            start_without_signals(self._thread)
        except RuntimeError as error:  # out of threads: the next line tries again
            with self._lock:
                self._thread, self._trouble = None, str(error)

    def _write_waiting(self) -> None:
        """Write, in the thread, until nothing waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                line = self._waiting.popleft()
            trouble = None
            try:
                self._append(line)
            except OSError as error:
                trouble = error.strerror or str(error)
            except Exception as error:  # a thread that ended here would be waited for ever after
                trouble = repr(error)
            with self._lock:
                self._lost += trouble is not None
                self._trouble = trouble

    def _append(self, line: bytes) -> None:
        """Open the file and append: it may have been moved away, and this is rare."""
        fd = open_own(self._path, _FLAGS)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(line) > MAX_FILE_BYTES:
                os.close(fd)
                fd = -1
                self._path.replace(self._former_path)
                fd, size = open_own(self._path, _FLAGS), 0
            try:
                if os.write(fd, line) < len(line):
                    raise OSError(0, "no room for a whole line")
            except OSError:
                os.ftruncate(fd, size)  # half a line would spoil the next one
                raise
        finally:
            if fd >= 0:
                os.close(fd)

    def _log_trouble(self) -> None:
        """Log new trouble, in the loop's own thread, for the log may be on the same disk."""
        trouble = self._trouble
        if trouble == self._logged:
            return
        if trouble is not None:
            _log.error("decisions cannot be written to %s: %s", self._path, trouble)
        else:
            _log.info("decisions are written again; %d were lost", self._lost)
            self._lost = 0
        self._logged = trouble


def tail(directory: Path, most_bytes: int) -> list[msgspec.Raw]:
    """Read the last decisions in a directory, as they were written, oldest first."""
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
    """Read the whole lines at the end of a file; tell whether they are all that it has."""
    try:
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - most_bytes)
            file.seek(start)
            text = file.read(most_bytes)
    except OSError:
        return [], True
    lines = text.split(b"\n")[:-1]  # what has no end is being written, or was cut off
    return [raw for line in lines[start > 0 :] if (raw := _checked(line))], start == 0


def _checked(line: bytes) -> msgspec.Raw | None:
    with suppress(decoding.Undecodable):
        decoding.json(line)
        return msgspec.Raw(line)
    return None
