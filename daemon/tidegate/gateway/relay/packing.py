"""Deflates what is kept of answers that are over, once they have been left alone for a while.

An answer that may be asked for again mostly is not, and its events repeat each other. They are
deflated in a thread, some at a time, at a twentieth of the pace at which that could be done. What
is packed is read as before: a window inflates the segment that is read, a light answer becomes a
run. A packed run that tells no more than a light answer becomes one, for its record would be most
of what it costs. Nothing runs while nothing waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from tidegate.core.runs.deflated import Packed, deflate
from tidegate.gateway.relay.light_answers import KeptAnswer, LightAnswers
from tidegate.gateway.relay.relay import Relay

log = logging.getLogger("tidegate.packing")

QUIET_S = 2.0  # since an answer ended, or was last read
BATCH_BYTES = 256 * 1024  # and one segment more; what is deflated of it is in no account meanwhile
MOST_LOOKED_AT = 100  # answers a turn: most may be too small to pack
REST = 20  # times as long as a batch took; a tenth of a core is never reached
REST_S = 0.05  # at least
BUSY, BUSY_REST = 0.25, 200  # and so often where so much of a processor goes into answers
_Batch = list[tuple[str, list[bytes]]]
_Done = list[tuple[str, list[Packed]]]


class Packing:
    """Knows which answers are to be packed, and when. Times are the event loop's, in seconds."""

    def __init__(
        self,
        relays: Mapping[str, Relay],
        light: LightAnswers,
        settle: Callable[[Relay, KeptAnswer], int],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Pack what is in `relays` or in `light` by the id that `touch` is told.

        `settle` keeps the light answer in place of the run; it returns the bytes freed.
        """
        self.freed_bytes = 0  # since the start
        self._relays = relays
        self._light = light
        self._settle = settle
        self._loop = loop
        self._due: OrderedDict[str, float] = OrderedDict()  # of runs that are over; soonest first
        self._timer: asyncio.TimerHandle | None = None
        self._is_busy = False  # a batch is in the thread, or was the last that will be
        self._rested = (0.0, 0.0)  # the time, and the worker's processor time, when a rest began

    def __len__(self) -> int:
        """Count the answers that wait."""
        return len(self._due)

    def touch(self, run_id: str) -> None:
        """Pack an answer when it has been left alone for a while from now on."""
        self._due[run_id] = self._loop.time() + QUIET_S
        self._due.move_to_end(run_id)
        if self._timer is None and not self._is_busy:
            self._timer = self._loop.call_later(QUIET_S, self._look)

    def forget(self, run_id: str) -> None:
        """Leave an answer alone that is gone."""
        self._due.pop(run_id, None)

    def close(self) -> None:
        """Pack no more."""
        self._is_busy = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Hand the thread what is due, or come again when something is."""
        self._timer = None
        started_s = time.perf_counter()
        batch = self._take_due()
        if batch:
            self._is_busy = True
            work = self._loop.run_in_executor(None, _deflate_all, batch)
            took_s = time.perf_counter() - started_s
            work.add_done_callback(lambda done: self._on_done(done, took_s))
        elif self._due:
            due_s = max(next(iter(self._due.values())), self._loop.time() + REST_S)
            self._timer = self._loop.call_at(due_s, self._look)

    def _take_due(self) -> _Batch:
        """Take the answers that are due from those that wait, as many as a batch holds."""
        batch: _Batch = []
        now_s, left = self._loop.time(), BATCH_BYTES
        for _ in range(MOST_LOOKED_AT):
            run_id, due_s = next(iter(self._due.items()), ("", now_s))
            if not run_id or due_s > now_s or left <= 0:
                break
            del self._due[run_id]
            if found := self._loose(run_id, left):
                batch.append((run_id, found))
                left -= sum(map(len, found))
        return batch

    def _loose(self, run_id: str, most_bytes: int) -> list[bytes]:
        """Find what may be packed of an answer, or settle it; nothing while it is being read."""
        relay = self._relays.get(run_id)
        if relay is None:
            return self._light.loose(run_id)
        if relay.subscribers:
            return []
        found = relay.run.transcript.loose(most_bytes)
        answer = None if found or not self._light.has_room else KeptAnswer.of(relay.run)
        if answer is not None:
            self.freed_bytes += self._settle(relay, answer)
        return found

    def _on_done(self, work: asyncio.Future[tuple[_Done, float]], took_s: float) -> None:
        """Keep what is deflated in place of what it was made of, and rest."""
        if work.cancelled() or self._loop.is_closed():
            return
        started_s, self._is_busy = time.perf_counter(), False
        if (error := work.exception()) is not None:
            log.error("answers could not be packed", exc_info=error)
        else:
            packed, thread_s = work.result()
            took_s += thread_s
            for run_id, found in packed:
                self._keep(run_id, found)
        took_s += time.perf_counter() - started_s
        self._timer = self._loop.call_later(self._rest_s(took_s), self._look)

    def _rest_s(self, took_s: float) -> float:
        """Say how long to rest after a batch: longer where the worker has enough to do."""
        before_s, used_before_s = self._rested
        now_s, used_s = self._rested = (self._loop.time(), time.process_time())
        is_busy = used_s - used_before_s > BUSY * (now_s - before_s)
        return max(REST_S, took_s * (BUSY_REST if is_busy else REST))

    def _keep(self, run_id: str, found: list[Packed]) -> None:
        relay = self._relays.get(run_id)
        if relay is None:
            self.freed_bytes += self._light.pack(run_id, found)
            return
        self.freed_bytes += relay.run.transcript.pack(found)
        if run_id not in self._due and self._loose(run_id, 1):
            self._due[run_id] = self._loop.time()
            self._due.move_to_end(run_id, last=False)


def _deflate_all(batch: _Batch) -> tuple[_Done, float]:
    """Deflate a batch, in a thread; returns it with the seconds of a processor that it took."""
    started_s = time.thread_time()
    packed = [(run_id, [(data, deflate(data)) for data in found]) for run_id, found in batch]
    return packed, time.thread_time() - started_s
