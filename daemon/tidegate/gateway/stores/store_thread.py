"""A thread that writes one store, so that no loop ever waits for a disk.

    put -> a queue with a bound -> the thread -> a transaction
    ask -> the same queue, so that what waits is written before it is read -> a future of the loop

It gathers what is to be written, rests in proportion to what it worked, and never raises: what
fails pauses the store for a minute. Meanwhile what comes waits, as far as the bound allows; beyond
it is dropped and counted. One that hangs in a call holds up neither the loop nor the end of the
process. Each store has a thread of its own, for the disk of one may hang while the other is in
memory.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from tidegate.core.protocol.stores import StoreState
from tidegate.gateway.stores.database import Database, StoreFault
from tidegate.gateway.stores.store import Store
from tidegate.gateway.stores.store_pause import StorePause
from tidegate.gateway.stores.store_queue import BATCH_BYTES, StoreQueue
from tidegate.machine.signals import start_without_signals

ANSWER_LIMIT_S = 2.0  # of what is asked
HANG_S = 5.0  # what takes longer does not answer
_OWN_FAULT = "a fault of tidegate's own, which its log has"
LESS_S = 1.0  # until there is made room on a full disk
CHORES_S = 60.0  # between two looks at what is too old
MAX_ASKED = 64  # at once
_TRIES = 3  # of a batch, each after a pause
_MOST_BITES = 20  # of what has to go, after one batch
_REST = 16  # times as long as it worked: at most 6 % of a core
_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S", bound=Store[Any])


class StoreUnavailable(Exception):
    """A store cannot be read: it is off or paused, or did not answer in time. The text says why."""


class _Call:
    """What the thread is to do beside writing, and the future that waits for it, if one does."""

    __slots__ = ("act", "answer", "behind")

    def __init__(self, act: Callable[[], Any], answer: asyncio.Future[Any] | None, behind: int):
        self.act = act
        self.answer = answer
        self.behind = behind  # how many items are to be written before


class StoreThread(Generic[S, T]):
    """One store and its thread. Public methods are the loop's, and never block."""

    def __init__(
        self,
        name: str,
        loop: asyncio.AbstractEventLoop,
        on_written: Callable[[], object],
        gather_s: float,
        smaller: Callable[[T], tuple[T, int]] | None = None,
    ) -> None:
        """`name` is for people: "journal". `on_written` is called on the loop when less waits; what
        comes is gathered for `gather_s`. `smaller` makes of an item one that may find room where it
        did not, with its size.
        """
        self.off: str | None = None  # why it is off, where the settings do not say so
        self._name = name
        self._loop = loop
        self._on_written = on_written
        self._gather_s = gather_s
        self._keep, self._place = "off", "disk"
        self._changed = threading.Condition()  # of what follows
        self._queue: StoreQueue[T] = StoreQueue(smaller)
        self._calls: deque[_Call] = deque()
        self._ends = False
        self._thread: threading.Thread | None = None
        # Written by the thread alone.
        self._store: S | None = None
        self._busy_s: float | None = None  # since when the store is at work
        self._pause = StorePause(name)
        self._failures = 0  # of the batch that is next
        self._rest_over_s = 0.0
        self._chores_s = 0.0
        self._writes = self._written_bytes = 0
        self._figures: tuple[int, int, float | None, str | None] = (0, 0, None, None)

    def __repr__(self) -> str:
        return f"<StoreThread {self._name} waiting={self.waiting_bytes} {self._pause}>"

    # --- the loop's side ------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        """The size of what is yet to be written."""
        return self._queue.waiting_bytes

    @property
    def is_on(self) -> bool:
        """Tell whether anything is kept."""
        return self._keep != "off"

    def use(
        self,
        store: S | None,
        keep: str,
        place: str,
        *,
        off: str | None = None,
        remove: Sequence[Database] = (),
    ) -> asyncio.Future[None]:
        """Write to `store` from now on, and remove the files that are of no more use.

        `keep` and `place` are what `state` tells; `off` says why there is none, where the settings
        want one. The future is done when all that has been tried.
        """
        self._keep, self._place, self.off = keep, place, off
        answer: asyncio.Future[None] = self._loop.create_future()
        if store is None and not remove and self._thread is None:
            answer.set_result(None)  # nothing is to be done, and no thread is needed for that
            return answer
        self._enqueue(_Call(lambda: self._swap(store, remove), answer, len(self._queue)))
        return answer

    def put(self, items: Sequence[tuple[T, int]], most_bytes: int) -> None:
        """Queue items, each with its size; what is beyond `most_bytes` is dropped and counted."""
        with self._changed:
            was_waiting_bytes = self._queue.waiting_bytes
            self._queue.put(items, most_bytes)
            if not was_waiting_bytes or was_waiting_bytes < BATCH_BYTES <= self.waiting_bytes:
                self._changed.notify_all()

    async def ask(self, act: Callable[[S], R], within_s: float = ANSWER_LIMIT_S) -> R:
        """Do something with the store once all that waits is written, and wait for what it gives.

        Raises StoreUnavailable.
        """
        if not self.is_on:
            raise StoreUnavailable(self.off or f"the {self._name} is off")
        now_s = time.monotonic()
        if self._hangs(now_s) or (self._pause.is_of_hang and self._pause.lasts(now_s)):
            raise StoreUnavailable(f"the {self._name} is paused: {self._paused(now_s)}")
        if len(self._calls) >= MAX_ASKED:
            raise StoreUnavailable(f"the {self._name} is asked too much at once")
        answer: asyncio.Future[R] = self._loop.create_future()
        self._enqueue(_Call(lambda: self._perform(act), answer, len(self._queue)))
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise StoreUnavailable(
                f"the {self._name} did not answer within {within_s:g} s"
            ) from None
        except StoreFault as fault:
            raise StoreUnavailable(f"the {self._name} cannot be used: {fault}") from fault

    def state(self) -> StoreState:
        """Say how it is."""
        now_s = time.monotonic()
        size, runs, oldest, set_aside = self._figures
        return StoreState(
            keep=self._keep,
            place=self._place,
            bytes=size,
            runs=runs,
            oldest=oldest,
            paused=self._paused(now_s),
            lag_s=round(now_s - self._queue.since_s(now_s), 3),
            waiting_bytes=self.waiting_bytes,
            writes=self._writes,
            written_bytes=self._written_bytes,
            dropped_bytes=self._queue.dropped_bytes,
            set_aside=set_aside,
        )

    def close(self) -> None:
        """Let the thread write what waits and end. One that hangs ends with the process."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def _enqueue(self, call: _Call) -> None:
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            try:
                start_without_signals(thread)
            except RuntimeError as error:  # out of threads: what is next tries again
                self._pause.begin(str(error), self._queue.dropped_bytes)
                return
            self._thread = thread

    def _hangs(self, now_s: float) -> bool:
        busy_s = self._busy_s
        return busy_s is not None and now_s - busy_s > HANG_S

    def _paused(self, now_s: float) -> str | None:
        busy_s = self._busy_s
        if busy_s is not None and now_s - busy_s > HANG_S:
            return f"its disk has not answered for {now_s - busy_s:.0f} s"
        return self._pause.why or self.off

    # --- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._ends):
                    due_s = self._due_s()
                    left_s = None if due_s is None else due_s - time.monotonic()
                    if left_s is not None and left_s <= 0:
                        break
                    self._changed.wait(left_s)
                call = self._calls.popleft() if self._calls else None
                if self._ends and call is None:
                    break
            try:
                self._turn(call)
            except Exception:  # it must go on, whatever is wrong with this
                _log.exception("the %s's thread", self._name)
                self._pause.begin(_OWN_FAULT, self._queue.dropped_bytes)
        self._write(len(self._queue))
        if self._store is not None:
            self._store.database.close()

    def _due_s(self) -> float | None:
        """When there is something to do; None: not before something comes."""
        due_s = self._chores_s if self._store is not None else None
        if self._queue:
            is_much = self.waiting_bytes >= BATCH_BYTES
            items_s = self._queue.since_s(0.0) + (0.0 if is_much else self._gather_s)
            items_s = max(items_s, self._pause.over_s)
            due_s = items_s if due_s is None else min(due_s, items_s)
        return None if due_s is None else max(due_s, self._rest_over_s)

    def _turn(self, call: _Call | None) -> None:
        began_s = time.thread_time()
        if call is not None:
            self._write(call.behind)
            self._answer(call)
        elif self._queue:
            self._write(1)
        if self._store is not None and time.monotonic() >= self._chores_s:
            self._do_chores(self._store)
        self._look_at_figures()
        self._rest_over_s = time.monotonic() + (time.thread_time() - began_s) * _REST

    def _answer(self, call: _Call) -> None:
        answer = call.answer
        if answer is not None and answer.done():
            return  # it is waited for no more
        error: Exception | None = None
        result: Any = None
        try:
            result = call.act()
        except StoreFault as fault:
            error = fault
        if answer is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_settle, answer, result, error)

    def _write(self, least: int) -> None:
        """Write in batches until at least so many of the items are written; not in a pause."""
        while least > 0 and self._queue and not self._pause.lasts(time.monotonic()):
            with self._changed:
                batch, size = self._queue.first()
            least -= len(batch)
            is_written = False
            if self._store is not None:
                try:
                    self._perform(partial(self._write_batch, batch, size))
                    is_written = True
                except StoreFault:
                    self._failures += 1
                    if self._failures < _TRIES:
                        return  # it is tried again after the pause
            self._failures = 0
            with self._changed:
                self._queue.take(len(batch), dropped=not is_written)
            if is_written:
                self._writes += 1
                self._written_bytes += size
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_written)

    def _write_batch(self, batch: list[T], size: int, store: S) -> None:
        database = store.database
        is_scarce = database.make_sure_of_room(size)
        store.write(batch, time.time())
        for _ in range(_MOST_BITES):
            if not store.is_full or not store.prune(time.time()):
                break
        if is_scarce or database.wal_bytes() > store.wal_limit_bytes:
            database.checkpoint()

    def _do_chores(self, store: S) -> None:
        """Let go of one bite of what is too old, and empty the WAL when that is all."""
        self._chores_s = time.monotonic() + CHORES_S
        with suppress(StoreFault):
            if self._perform(lambda store: store.prune(time.time())):
                self._chores_s = time.monotonic()
                most_bytes = store.wal_limit_bytes
            else:
                most_bytes = 0
            if store.database.wal_bytes() > most_bytes:
                self._perform(lambda store: store.database.checkpoint())

    def _swap(self, store: S | None, remove: Sequence[Database]) -> None:
        former, self._store = self._store, None
        if former is not None:
            former.database.close()
        self._pause.end(self._queue.dropped_bytes)
        for database in remove:
            self._busy_s = time.monotonic()
            try:
                database.remove()
            except StoreFault as fault:
                _log.error("what the %s kept cannot be removed: %s", self._name, fault)
            finally:
                self._busy_s = None
        self._store = store
        self._chores_s = time.monotonic()
        if store is not None:
            with suppress(StoreFault):
                self._perform(lambda _: None)

    def _perform(self, act: Callable[[S], R]) -> R:
        """Do something with the open store. What fails begins a pause; raises StoreFault."""
        store = self._store
        if store is None:
            raise StoreFault(f"the {self._name} is off")
        database = store.database
        self._busy_s = began_s = time.monotonic()
        try:
            try:
                result = self._on_open(store, act)
            except StoreFault as fault:
                if not fault.is_damaged:
                    raise
                database.put_aside()
                result = self._on_open(store, act)
            if not self._pause.lasts(began_s):
                self._pause.end(self._queue.dropped_bytes)
            return result
        except StoreFault as fault:
            if self._pause.begin(str(fault), self._queue.dropped_bytes) and fault.is_full:
                with suppress(StoreFault):
                    store.take_less()
                self._chores_s = min(self._chores_s, time.monotonic() + LESS_S)
            database.close()
            raise
        except Exception as error:
            _log.exception("the %s's thread", self._name)
            database.close()
            self._pause.begin(_OWN_FAULT, self._queue.dropped_bytes)
            raise StoreFault(f"{type(error).__name__} in {database.path.name}") from error
        finally:
            took_s = time.monotonic() - began_s
            self._busy_s = None
            if took_s > HANG_S:
                why = f"{database.path} did not answer for {took_s:.0f} s"
                self._pause.begin(why, self._queue.dropped_bytes, is_of_hang=True)

    def _on_open(self, store: S, act: Callable[[S], R]) -> R:
        if store.database.look():
            store.begin()
        return act(store)

    def _look_at_figures(self) -> None:
        store = self._store
        if store is None:
            self._figures = (0, 0, None, None)
        elif store.database.is_open:
            with suppress(StoreFault):
                size, set_aside = store.database.file_bytes(), store.database.set_aside
                self._figures = (size, *self._perform(lambda store: store.figures()), set_aside)


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Give the loop what the thread found out, unless it is waited for no more."""
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
