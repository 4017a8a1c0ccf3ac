"""One run on its way from an upstream to its subscribers.

The journey of a chunk: `UpstreamConnection.data_received` → `Relay.on_body` → `Run.feed` (framing,
window, ledger) → `Relay._send` → `Subscriber.deliver` → the client's socket, all in one callback.

Before the first output a failure goes on to the next target; after it, two answers are never
spliced together: the reader gets an error event and no terminal marker. Every way to an end goes
through `_end`, which leaves no connection, place, timer or task of the upstream's side behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

from tidegate.core import chat
from tidegate.core.chat import Meaning
from tidegate.core.clock import Expiry, next_expiry
from tidegate.core.errors import LedgerFull, TidegateError, UpstreamError
from tidegate.core.ledger import Entry
from tidegate.core.run import Happening, Run, State
from tidegate.core.settings import Limits
from tidegate.core.window import SEGMENT_BYTES
from tidegate.gateway.connection import READ_BYTES, UpstreamConnection
from tidegate.gateway.metrics import Histogram
from tidegate.gateway.subscriber import StreamSubscriber, Subscriber
from tidegate.gateway.upstream import UpstreamPool

log = logging.getLogger("tidegate.relay")

# An upstream waits when even the reader that is furthest ahead is this far behind it: enough to
# ride out a hiccup, far less than the window, so nobody who reads loses an event.
PAUSE_LAG_BYTES = 256 * 1024

# Worth a try elsewhere: overload and breakage, never the caller's own mistakes.
RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504, 507, 529})
HOPS_HEADER = "x-tidegate-hops"  # so that a ring of gateways ends
MAX_ERROR_BYTES = 256 * 1024
TIMED_EVERY = 16  # events; timing each would cost as much as framing it


class Target(NamedTuple):
    """One place where an answer may come from, and the limits that hold there."""

    pool: UpstreamPool
    model: str
    limits: Limits


class Answer(NamedTuple):
    """What the creator is told when there is no stream: a plain answer, or why there is none."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Book(Protocol):
    """Where relays are registered, and who keeps their clocks."""

    relay_seconds: Histogram  # the time a chunk spends in the gateway

    def look_soon(self, relay: Relay | Subscriber, due_s: float) -> None:
        """Calls `check` at `due_s`, or earlier if that was asked before."""

    def on_end(self, relay: Relay) -> None:
        """The run is over."""

    def on_detach(self, relay: Relay) -> None:
        """A reader has gone."""

    def on_first_output(self, upstream: str, seconds: float) -> None:
        """An answer has begun."""


class Relay:
    """Moves one answer. Times are the event loop's, in seconds."""

    def __init__(
        self,
        book: Book,
        run: Run,
        targets: list[Target],
        loop: asyncio.AbstractEventLoop,
        hops: int = 0,
    ) -> None:
        """`hops` tells through how many tidegates the request has come already."""
        self.run = run
        self.subscribers: list[Subscriber] = []
        self.answer: Answer | None = None  # for a creator that has not been sent a stream
        self.target: Target | None = None
        self._book = book
        self._loop = loop
        self._targets = targets
        self._hops = hops
        self._tried = 0
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._has_place = self._in_queue = False
        self._is_stream = False  # what the upstream is sending right now is the stream
        self._status = 0
        self._headers: dict[str, str] = {}
        self._held_back = False  # the ledger is tight
        self._spare_bytes = 0  # what may then be kept of a run that nobody reads
        self._squeezed = False  # memory is short: windows and watermarks are half as large

    def __repr__(self) -> str:
        return f"<Relay {self.run!r} {len(self.subscribers)} subscribers>"

    # --- attempts -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Goes for the next target: at once, or when it has a place."""
        self.target = target = self._targets[self._tried]
        self._tried += 1
        self.run.limits = target.limits
        try:
            self._has_place = target.pool.take_place(self)
        except UpstreamError as error:
            self._attempt_failed(error)
            return
        if self._has_place:
            self._open()
        else:
            self._in_queue = True
            self.run.wait_for_place(self._loop.time())
        self._book.look_soon(self, self._due_s())

    def on_place(self) -> None:
        """Our turn has come."""
        self._has_place, self._in_queue = True, False
        self._open()
        self._book.look_soon(self, self._due_s())

    def _open(self, *, fresh: bool = False) -> None:
        assert self.target is not None
        pool = self.target.pool
        try:
            self.run.begin_attempt(pool.name, self.target.model, self._loop.time())
            connection = None if fresh else pool.take_idle()
            if connection is not None:
                self._request(connection)
            else:
                self._connecting = self._loop.create_task(self._connect())
        except Exception:  # whoever made room for us must not suffer from it
            self._on_fault()

    async def _connect(self) -> None:
        assert self.target is not None
        try:
            connection = await self.target.pool.connect()
            self._connecting = None
            self._request(connection)
        except UpstreamError as error:
            self._connecting = None
            self._attempt_failed(error)
        except Exception:
            self._connecting = None
            self._on_fault()

    def _request(self, connection: UpstreamConnection) -> None:
        assert self.target is not None
        run, pool, model = self.run, self.target.pool, self.target.model
        self._connection = connection
        self._is_stream = False
        try:
            body = run.body if model == run.model else chat.with_model(run.body, model)
        except UnicodeDecodeError as error:
            self._refuse(f"the request body is not valid JSON: {error}")
            return
        head = pool.request_head(
            "POST",
            "/chat/completions",
            len(body),
            stream=run.streamed,
            more=f"{HOPS_HEADER}: {self._hops + 1}\r\n",
        )
        connection.send(head + body, self)
        if self._held_back:
            self._balance()

    # --- the upstream answers -----------------------------------------------------------------

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self._status, self._headers = status, headers
        if self.run.streamed and 200 <= status < 300:
            content_type = headers.get("content-type", "").lower()
            self._is_stream = content_type.startswith("text/event-stream")
            if not self._is_stream:
                self._attempt_failed(UpstreamError("answered a stream request without a stream"))

    def on_body(self, data: bytes) -> None:
        """One read of the upstream's socket: the hot path."""
        run = self.run
        started_s = time.perf_counter()
        try:
            if not self._is_stream:
                self._take_plain(data)
                return
            before = run.state
            block = run.feed(data, self._loop.time())
            if block:
                if before is not State.STREAMING:
                    self._on_first_output()
                if chat.ends_with_done(block):
                    said = run.verdict()
                    self._send(block, last=said is Meaning.DONE and not run.end_disabled)
                    self._on_done(said)
                    return
                self._send(block)
                if not run.window.next_seq % TIMED_EVERY:
                    self._book.relay_seconds.observe(time.perf_counter() - started_s)
        except (UpstreamError, LedgerFull) as error:
            self._attempt_failed(error)
        except Exception:
            self._on_fault()

    def _send(self, block: bytes, *, last: bool = False) -> None:
        """Hands new events to every subscriber, and keeps the upstream from running ahead."""
        run = self.run
        end = run.window.end
        outbound = 0
        lagging = True
        for subscriber in self.subscribers:
            outbound += subscriber.deliver(block, end, last=last)
            lagging = lagging and not subscriber.live
        run.account.set(Entry.OUTBOUND, outbound)
        if outbound:
            self._watch_outbound()
        if self._held_back:
            self._shrink_window()
        if lagging or run.paused_s is not None:  # relief stopped us before it went
            self._balance()

    def on_end(self) -> None:
        """The upstream's answer is complete as far as HTTP goes."""
        self._connection = None
        if self._is_stream:
            error = UpstreamError("ended the stream before the answer was complete")
            self._guarded(self._finish_stream, error)
        else:
            self._guarded(self._finish_plain)

    def on_lost(self, reason: str, *, answered: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_reused and not answered:
            # It died of idleness while our request was on its way: not a fault.
            self._open(fresh=True)
            return
        when = "in the middle of the answer" if self._is_stream else "before an answer"
        error = UpstreamError(f"{reason} {when}", code="upstream_disconnected")
        self._guarded(self._finish_stream if self._is_stream else self._attempt_failed, error)

    def _finish_stream(self, broken: UpstreamError) -> None:
        """No more events come. Whether the answer is whole is seen in them, not in the framing."""
        run = self.run
        before = run.state
        block, said = run.feed_end(self._loop.time())
        if block:
            if before is not State.STREAMING:
                self._on_first_output()
            self._send(block)
        if said in {Meaning.DONE, Meaning.FINISH}:
            self._complete()
        elif said is Meaning.ERROR:
            self._on_told_error()
        else:
            self._attempt_failed(broken)

    def _guarded(self, finish: Callable[..., None], *arguments: UpstreamError) -> None:
        """Ends the attempt, one way or another."""
        try:
            finish(*arguments)
        except (UpstreamError, LedgerFull) as error:
            self._attempt_failed(error)
        except Exception:
            self._on_fault()

    def _on_first_output(self) -> None:
        """Nothing can fail over any more; the caller may know the status."""
        assert self.target is not None
        self.target.pool.succeeded()
        begun_s = self._loop.time() - self.run.attempt.started_s
        self._book.on_first_output(self.target.pool.name, begun_s)
        self._book.look_soon(self, self._due_s())  # from now on the idle clock runs

    def _on_done(self, said: Meaning) -> None:
        """The terminal marker: the answer is whole, whatever the connection does next."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.let_go()
        if said is Meaning.ERROR:
            self._on_told_error()
        else:
            self._complete()

    def _on_told_error(self) -> None:
        """The upstream's own error event stands in the stream; the readers have it."""
        error = UpstreamError("reported an error in the stream", code="upstream_error_event")
        self._attempt_failed(error)

    # --- plain answers ------------------------------------------------------------------------

    def _take_plain(self, data: bytes) -> None:
        self.run.feed_plain(data)
        if self._status != 200 and self.run.attempt.held_bytes > MAX_ERROR_BYTES:
            self._connection, connection = None, self._connection
            if connection is not None:
                connection.abort()
            self._finish_plain()

    def _finish_plain(self) -> None:
        """A whole body: the answer, or the upstream's own error."""
        assert self.target is not None
        body = b"".join(self.run.attempt.held)
        status = self._status
        if status in RETRYABLE_STATUS:
            failure = UpstreamError(
                f"answered {status}{chat.error_label(body)}", code=f"upstream_{status}"
            )
            self._attempt_failed(failure, answer=self._pass_on(status, body))
        elif 200 <= status < 300:
            self.target.pool.succeeded()
            self.answer = self._pass_on(status, body)
            self._complete()
        elif 300 <= status < 400:
            self._attempt_failed(
                UpstreamError(f"answered {status}: redirects are not followed", retryable=False)
            )
        elif status >= 600:
            self._attempt_failed(UpstreamError(f"answered {status}, which is no HTTP status"))
        else:
            self.answer = self._pass_on(status, body)
            name = self.target.pool.name
            reason = f'upstream "{name}" refused with {status}{chat.error_label(body)}'
            self._end(Happening.FAIL, reason, f"upstream_{status}")

    def _pass_on(self, status: int, body: bytes) -> Answer:
        """The upstream's own words, untouched, with the headers that concern the caller."""
        content_type = self._headers.get("content-type", "application/json")
        passed = tuple((n, self._headers[n]) for n in _PASSED_HEADERS if n in self._headers)
        return Answer(status, content_type, body, passed)

    # --- how it ends --------------------------------------------------------------------------

    def _attempt_failed(self, error: TidegateError, *, answer: Answer | None = None) -> None:
        """The try under way is over: the next target, or the end.

        `answer` is what the upstream itself said.
        """
        assert self.target is not None
        name = self.target.pool.name
        if answer is None and isinstance(error, UpstreamError) and error.said:
            answer = Answer(502, "application/json", error.said)
        reason = f'upstream "{name}" {error}' if isinstance(error, UpstreamError) else str(error)
        self._let_go_of_upstream()
        if isinstance(error, UpstreamError):
            if error.code != "queue_full":
                self.target.pool.failed(reason)
            may_go_on = error.retryable and self.run.state in {State.QUEUED, State.CONNECTING}
            if may_go_on and self._tried < len(self._targets):
                if self.run.attempts:
                    self.run.attempt.outcome = reason
                log.info("run %s: %s; trying the next target", self.run.id, reason)
                self.begin()
                return
        self.answer = answer
        self._end(Happening.FAIL, reason, error.code)

    def expire(self, expiry: Expiry) -> None:
        """A limit has been reached."""
        if expiry.retryable and self._tried < len(self._targets):
            self._attempt_failed(UpstreamError(expiry.reason, code=expiry.limit))
            return
        reason = expiry.reason
        if expiry.upstream_fault and self.target is not None:
            reason = f'upstream "{self.target.pool.name}" {reason}'
            self.target.pool.failed(reason)
        self._end(expiry.happening, reason, expiry.limit)

    def cancel(self, reason: str) -> None:
        """Somebody wants no more of it."""
        self._end(Happening.CANCEL, reason, "cancelled")

    def force_end(self, reason: str) -> None:
        """The sweep's way: ends the run whatever kept its own end from taking place."""
        self.run.end_disabled = False
        self._let_go_of_upstream()
        self._end(Happening.EXPIRE, reason, "swept")

    def _refuse(self, reason: str) -> None:
        """The caller's own mistake, seen late."""
        body = chat.error_body(reason, "invalid_request_error", "bad_request")
        self.answer = Answer(400, "application/json", body)
        self._end(Happening.FAIL, reason, "bad_request")

    def _complete(self) -> None:
        self._end(Happening.COMPLETE, None, None)

    def _on_fault(self) -> None:
        """A mistake of ours must not leave a run behind."""
        log.exception("run %s: internal error", self.run.id)
        self._let_go_of_upstream()
        self._end(Happening.FAIL, "internal error of tidegate", "internal_error")

    def _end(self, happening: Happening, reason: str | None, code: str | None) -> None:
        """The one way to an end: the record, the reason to all readers, nothing left upstream."""
        run = self.run
        if run.end_disabled:
            return
        # Where the upstream's own error event stands in the stream, the readers have it.
        broken = happening is not Happening.COMPLETE and run.state is State.STREAMING
        told = broken and run.verdict() is Meaning.ERROR
        if not run.end(happening, reason, code, self._loop.time(), time.time()):
            return
        self._let_go_of_upstream()
        if run.state is not State.COMPLETED and not told:
            self.tell_error()
        for subscriber in self.subscribers:
            subscriber.wake()
        if not self.subscribers:
            self.answer = None  # nobody is left who could be told
        self._book.on_end(self)

    def tell_error(self) -> None:
        """Every reader of a stream learns why it broke off; a plain answer has a status."""
        if not self.run.streamed:
            return
        before = self.run.window.end
        block = self.run.append_error()
        for subscriber in self.subscribers:
            if subscriber.cursor != before:
                subscriber.live = False  # events that found no room in the ledger come first
            if not isinstance(subscriber, StreamSubscriber) or subscriber.is_committed:
                subscriber.deliver(block, self.run.window.end)
        self.count_outbound()

    def _let_go_of_upstream(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        if self._in_queue:
            assert self.target is not None
            self.target.pool.leave_queue(self)
            self._in_queue = False
        if self._has_place:
            assert self.target is not None
            self._has_place = False
            self.target.pool.leave_place()

    # --- readers ------------------------------------------------------------------------------

    def attach(self, subscriber: Subscriber) -> None:
        """A reader joins."""
        self.run.attach()
        self.subscribers.append(subscriber)
        if self._squeezed:
            subscriber.squeeze(half=True)
        subscriber.on_progress = self._on_reader_progress
        self._book.look_soon(subscriber, subscriber.check(self._loop.time()))

    def detach(self, subscriber: Subscriber) -> None:
        """A reader has gone, with whatever it had not read."""
        self.subscribers.remove(subscriber)
        self.run.detach(self._loop.time())
        if not self.subscribers:
            self.answer = None
        self.count_outbound()
        if not self.run.is_over:
            self._balance()
            due_s = self.check(self._loop.time())
            if due_s is not None:
                self._book.look_soon(self, due_s)
        self._book.on_detach(self)

    def _on_reader_progress(self) -> None:
        self.count_outbound()
        self._balance()

    def count_outbound(self) -> None:
        """Charges what the kernel has not taken yet."""
        outbound = sum(subscriber.outbound_bytes for subscriber in self.subscribers)
        with suppress(LedgerFull):  # the next event that comes in is refused, not this one
            self.run.account.set(Entry.OUTBOUND, outbound)

    def _watch_outbound(self) -> None:
        soon_s = self._loop.time() + 1.0
        for subscriber in self.subscribers:
            if subscriber.outbound_bytes:
                self._book.look_soon(subscriber, soon_s)

    # --- waiting ------------------------------------------------------------------------------

    def check(self, now_s: float) -> float | None:
        """Looks at the clocks; returns when to look again, None when there is nothing to see."""
        expiry = next_expiry(self.run)
        if expiry is not None and expiry.due_s <= now_s:
            self.expire(expiry)
        if self.run.is_over or self.run.end_disabled:
            return None
        hold_s = self.run.created_s + self.run.limits.hold_s
        for subscriber in self.subscribers:
            if isinstance(subscriber, StreamSubscriber) and now_s >= hold_s:
                subscriber.commit()
        return self._due_s()

    def _due_s(self) -> float:
        expiry = next_expiry(self.run)
        due_s = expiry.due_s if expiry is not None else self._loop.time()
        hold_s = self.run.created_s + self.run.limits.hold_s
        return min(due_s, hold_s) if hold_s > self._loop.time() else due_s

    def squeeze(self, *, half: bool) -> None:
        """Memory is short, or no longer. Nobody loses what he has not read."""
        self._squeezed = half
        window, whole_bytes = self.run.window, self.run.limits.window_bytes
        window.cap_bytes = max(whole_bytes // 2, self.needed_bytes) if half else whole_bytes
        self.run.shrink(window.cap_bytes)
        for subscriber in self.subscribers:
            subscriber.squeeze(half=half)
        self._balance()

    def hold_back(self, *, back: bool, spare_bytes: int) -> None:
        """The ledger is tight, or no longer.

        While it is, a run keeps what its readers still need, and reads on when they have it. One
        whose readers keep up goes on, and so does one that nobody reads, of which `spare_bytes`
        may be kept: to stop them would free nothing.
        """
        self._held_back, self._spare_bytes = back, spare_bytes
        if back:
            self._shrink_window()
        self._balance()

    def _shrink_window(self) -> None:
        """Drops what all readers have, or what is too much where somebody may still come."""
        self.run.shrink(self.needed_bytes if self.subscribers else self._spare_bytes)

    @property
    def needed_bytes(self) -> int:
        """Of the window, what its slowest reader has not had; whole segments, so two more."""
        if not self.subscribers:
            return 0
        lag = self.run.window.end.offset - min(s.cursor.offset for s in self.subscribers)
        return lag + 2 * SEGMENT_BYTES if lag else 0

    def _balance(self) -> None:
        """Pauses the upstream when every reader lags far behind, and reads on when one is near."""
        run = self.run
        if self._connection is None:
            return
        lag = 0
        if self.subscribers and not run.keep_running:
            lag = run.window.end.offset - max(s.cursor.offset for s in self.subscribers)
        # What is read after the pause must still fit: who keeps reading never loses an event.
        room = run.window.cap_bytes - SEGMENT_BYTES - 2 * READ_BYTES
        most = PAUSE_LAG_BYTES // 2 if self._squeezed else PAUSE_LAG_BYTES
        allowed = max(0, min(most, room))
        if run.paused_s is not None:
            allowed //= 2
        if lag > (0 if self._held_back else allowed):
            run.pause(self._loop.time())
            self._connection.pause()
        elif run.paused_s is not None:
            run.resume(self._loop.time())
            self._connection.resume()
            self._book.look_soon(self, self._due_s())


_PASSED_HEADERS = ("retry-after", "x-request-id", "x-should-retry")
