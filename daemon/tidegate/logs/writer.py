"""A thread that writes log lines, so that no loop ever waits for a disk, a pipe or a terminal.

    put -> `logs.repeats` -> a queue with a bound -> the thread -> a target

What does not fit in the queue is dropped and counted, and the count is written in its place as
soon as there is room again. A target that fails (a full disk, a closed pipe) is tried again once
a second with the same line, and what was wrong is said when it is over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from tidegate.logs.file import LogTarget
from tidegate.logs.repeats import LogLine, Repeats
from tidegate.machine.signals import start_without_signals

QUEUE_BYTES = 512 * 1024  # some seconds of trouble in full detail
LOOK_S = 1.0  # at the file, and for counts that are due
RETRY_S = 1.0
FULL_RETRY_S = 0.05  # for the watchdog to rotate
SETTLE_LIMIT_S = 1.0  # at the end; a disk that hangs is not waited for


class LogWriter:
    """Queues lines and writes them in its thread; `encode` makes the bytes of a whole line."""

    def __init__(self, target: LogTarget, encode: Callable[[LogLine], bytes]) -> None:
        self.lost = 0  # lines, until a line of the log says how many
        self._target = target
        self._encode = encode
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._repeats = Repeats()
        self._trouble: str | None = None
        self._trouble_s = 0.0  # since when
        self._ends = False
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        start_without_signals(self._thread)

    def __repr__(self) -> str:
        return f"<LogWriter queued={self._queued_bytes} lost={self.lost}>"

    def put(self, line: LogLine) -> None:
        """Queue a line for the thread. Never waits."""
        with self._changed:
            for each in self._repeats.take(line, time.monotonic()):
                self._enqueue(each)
            self._changed.notify_all()

    def settle(self, limit_s: float = SETTLE_LIMIT_S) -> bool:
        """Queue every count and wait until all is written; False if that takes too long."""
        with self._changed:
            for each in self._repeats.end(time.monotonic(), time.time()):
                self._enqueue(each)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue and not self.lost, limit_s)

    def close(self) -> None:
        """Settle, and end the thread; one that hangs in a write ends with the process."""
        settled = self.settle()
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        if settled:
            self._thread.join(SETTLE_LIMIT_S)

    def _enqueue(self, line: LogLine) -> None:
        encoded = self._encode(line)
        if self.lost or self._queued_bytes + len(encoded) > QUEUE_BYTES:
            self.lost += 1
            return
        self._queue.append(encoded)
        self._queued_bytes += len(encoded)

    # --- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._ends, LOOK_S)
                if self._ends:
                    return
                for each in self._repeats.due(time.monotonic(), time.time()):
                    self._enqueue(each)
                lines = self._first_lines()
            try:
                said = self._target.maintain()
                has_room = not lines or self._target.has_room()
                written = self._target.write(lines) if lines and has_room else 0
            except OSError as error:
                self._failed(error.strerror or str(error))
                continue
            self._done(written, said)
            if not has_room:
                self._pause(FULL_RETRY_S)

    def _first_lines(self) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        for line in self._queue:
            size += len(line)
            if lines and size > self._target.batch_bytes:
                break
            lines.append(line)
        return lines

    def _failed(self, why: str) -> None:
        if self._trouble is None:
            self._trouble_s = time.monotonic()
        self._trouble = why
        self._pause(RETRY_S)

    def _done(self, written: int, said: str | None) -> None:
        with self._changed:
            for _ in range(written):
                self._queued_bytes -= len(self._queue.popleft())
            if self.lost and self._queued_bytes <= QUEUE_BYTES // 2:
                why = self._trouble or "they came faster than they could be written"
                said = f"{self.lost} log lines lost: {why}"
                self.lost, self._trouble = 0, None
            elif self._trouble and not self.lost and (written or not self._queue):
                stood_s = time.monotonic() - self._trouble_s
                said = f"the log stood still for {stood_s:.0f} s: {self._trouble}"
                self._trouble = None
            if said is not None:
                self._enqueue(LogLine(logging.WARNING, said, time.time()))
            self._changed.notify_all()

    def _pause(self, pause_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ends, pause_s)
