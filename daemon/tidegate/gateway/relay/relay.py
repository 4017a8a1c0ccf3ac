"""One run on its way from an upstream to its subscribers.

The journey of a chunk: `UpstreamConnection.buffer_updated` → `Relay.on_body` → `Run.feed` (framing,
window, ledger) → `Relay._send` → `Subscriber.deliver` → the client's socket, all in one callback.

Where the answer comes from is the failover's and its attempts' (`failover`, `attempt`). Once it has
begun, a failure reaches the reader as an error event without a terminal marker. Every way to an end
goes through `end`, which leaves no connection, slot, timer or task of the upstream's side behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from itertools import cycle
from typing import Protocol

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats.base import ErrorText, Meaning
from tidegate.core.formats.framing import RAW
from tidegate.core.histogram import Histogram
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.limits import Expiry, next_look_s, reached
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState, Trigger
from tidegate.core.runs.window import SEGMENT_BYTES
from tidegate.gateway.relay.attempt import Attempt
from tidegate.gateway.relay.failover import Failover
from tidegate.gateway.relay.request import NO_EXTRAS, RequestExtras
from tidegate.gateway.relay.subscriber import StreamSubscriber, Subscriber
from tidegate.gateway.upstreams.choice import Target
from tidegate.gateway.upstreams.connection import READ_BYTES
from tidegate.gateway.upstreams.reply import NO_REPLY, Answer, Reply

log = logging.getLogger("tidegate.relay")

# An upstream waits when even the reader that is furthest ahead is this far behind it: enough to
# ride out a hiccup, far less than the window, so no client that reads loses an event.
PAUSE_LAG_BYTES = 256 * 1024
TIMED_EVERY = 16  # reads of all relays; timing each would cost as much as framing it
_is_timed = cycle((True, *[False] * (TIMED_EVERY - 1)))
_STREAMING = RunState.STREAMING  # a member is searched for in its class, each time


class RelayHost(Protocol):
    """Where relays are registered, and where their clocks are kept."""

    relay_seconds: Histogram  # the time a chunk spends in the gateway

    def look_soon(self, relay: Relay | Subscriber, due_s: float) -> None:
        """Call `check` at `due_s`, or earlier if that was asked before."""

    def on_end(self, relay: Relay) -> None:
        """Take note that the run is over."""

    def on_detach(self, relay: Relay) -> None:
        """Take note that a reader has gone."""

    def on_first_output(self, upstream: str, seconds: float) -> None:
        """Take note that an answer has begun, so many seconds after it was asked for."""


class Relay:
    """One answer in motion. Times are the event loop's, in seconds."""

    __slots__ = (
        "__weakref__", "_buffers_are_halved", "_has_backpressure", "_has_outbound", "_host",
        "_loop", "_reply", "_spare_bytes", "answer", "attempt", "extras", "failover",
        "run", "subscribers",
    )  # fmt: skip

    def __init__(
        self,
        host: RelayHost,
        run: Run,
        targets: list[Target],
        loop: asyncio.AbstractEventLoop,
        extras: RequestExtras = NO_EXTRAS,
        *,
        caller: str = "",
    ) -> None:
        """`caller` tells clients apart that have no token: an address."""
        self.run = run
        self.extras = extras
        self.subscribers: tuple[Subscriber, ...] = ()
        self.answer: Answer | None = None  # for a creator that has not been sent a stream
        self.attempt: Attempt | None = None  # the one under way
        self._host = host
        self._loop = loop
        # Both are gone when the run is over: a circle that lives on is never collected.
        failover = None if run.is_over else Failover(self, targets, loop, run.owner or caller)
        self.failover: Failover | None = failover
        self._reply = NO_REPLY  # the head that came last
        self._has_outbound = False  # the account says that the kernel has not taken all
        self._has_backpressure = False  # the ledger is tight
        self._spare_bytes = 0  # what may then be kept of a run without a subscriber
        self._buffers_are_halved = False  # windows and watermarks, while memory is short
        self._charge_heads()

    def __repr__(self) -> str:
        return f"<Relay {self.run!r} {len(self.subscribers)} subscribers>"

    # --- the answer grows ---------------------------------------------------------------------

    def begin(self) -> None:
        """Ask the first target."""
        if self.failover is not None:
            self.failover.begin()

    def on_request(self) -> None:
        if self._has_backpressure:
            self._balance()

    def on_head(self, reply: Reply) -> None:
        self._reply = reply
        self._charge_heads()

    def _charge_heads(self) -> None:
        heads = (self.extras.header_lines, self.extras.content_type, *self._reply.headers.values())
        self.run.charge_record(sum(map(len, heads)) + len(self.run.request.model))

    @property
    def raw_head(self) -> Answer:
        """Give the head of an answer whose bytes are passed on as they come."""
        return self._reply.raw_head()

    def on_body(self, data: bytes) -> None:
        """Take one read of the upstream's socket, while it sends the stream: the hot path."""
        run = self.run
        started_s = time.perf_counter() if next(_is_timed) else 0.0
        try:
            before = run.state
            block = run.feed(data, self._loop.time())
            if block:
                if before is not _STREAMING:
                    self._on_first_output()
                if run.format.may_end(block):
                    said = run.transcript.verdict()
                    if said is Meaning.DONE or said is Meaning.ERROR:
                        self._send(block, last=said is Meaning.DONE)
                        if self.attempt is not None:
                            self.attempt.on_done(said)
                        return
                self._send(block)
                if started_s:
                    self._host.relay_seconds.observe(time.perf_counter() - started_s)
        except (UpstreamError, LedgerFull) as error:
            if self.attempt is not None:
                self.attempt.fail(error)
        except Exception:
            self.on_fault()

    def _send(self, block: bytes, *, last: bool = False) -> None:
        """Hand new events to every subscriber, and keep the upstream from running ahead."""
        run = self.run
        end = run.window.end
        outbound = 0
        lagging = True
        for subscriber in self.subscribers:
            outbound += subscriber.deliver(block, end, last=last)
            lagging = lagging and not subscriber.live
        if outbound or self._has_outbound:
            self._has_outbound = outbound > 0
            run.account.set(Entry.OUTBOUND, outbound)
            self._watch_outbound()
        if self._has_backpressure:
            self._shrink_window()
        if lagging or run.paused_s is not None:  # the evictor stopped us before it went
            self._balance()

    def on_stream_end(self) -> Meaning:
        run = self.run
        before = run.state
        block, said = run.feed_end(self._loop.time())
        if block:
            if before is not _STREAMING:
                self._on_first_output()
            self._send(block)
        return said

    def _on_first_output(self) -> None:
        """Nothing can fail over any more; the caller may know the status."""
        if self.attempt is not None:
            took_s = self.attempt.on_first_output()
            self._host.on_first_output(self.attempt.target.pool.name, took_s)
        self.look_again()  # from now on the idle clock runs

    # --- how it ends --------------------------------------------------------------------------

    def expire(self, expiry: Expiry) -> None:
        """End what has reached a limit: a try, the wait for a slot, or the run."""
        if expiry.trigger is Trigger.COMPLETE:
            self._complete_in_its_place()
        elif expiry.of_upstream and self.failover is not None:
            self.failover.expire(expiry)
        else:
            self.end(expiry.trigger, expiry.reason, expiry.limit)

    def cancel(self, reason: str) -> None:
        """End the run, which is not wanted any more."""
        self.end(Trigger.CANCEL, reason, "cancelled")

    def force_end(self, reason: str) -> None:
        """End the run for the sweep, whatever kept its own end from taking place."""
        self._let_go_of_upstream()
        self.end(Trigger.EXPIRE, reason, "swept")

    def refuse(self, reason: str) -> None:
        """End the run with a 400: the client's own mistake, seen late."""
        error = ErrorText(400, reason, "invalid_request_error", "bad_request")
        self.answer = Answer(400, "application/json", self.run.format.error_body(error))
        self.end(Trigger.FAIL, reason, "bad_request")

    def complete(self) -> None:
        if self.attempt is not None:
            self.attempt.succeed()
        self.end(Trigger.COMPLETE, None, None)

    def _complete_in_its_place(self) -> None:
        """The answer is whole, but its upstream doesn't say so and holds the connection open."""
        run = self.run
        log.info("run %s: whole, but its upstream did not end it", run.id)
        if run.format.end_marker:
            self._say_last([run.format.end_marker])
        self.complete()

    def on_fault(self) -> None:
        """End the run for a mistake of ours, which must not leave one behind."""
        log.exception("run %s: internal error", self.run.id)
        self._let_go_of_upstream()
        self.end(Trigger.FAIL, "internal error of tidegate", "internal_error")

    def end(self, trigger: Trigger, reason: str | None, code: str | None) -> None:
        """End the run: the record, the reason to all readers, nothing left upstream."""
        run = self.run
        # Where the upstream's own error event stands in the stream, the readers have it.
        broken = trigger is not Trigger.COMPLETE and run.state is RunState.STREAMING
        told = broken and run.transcript.has_told_error()
        if not run.end(trigger, reason, code, self._loop.time(), time.time()):
            return
        self._let_go_of_upstream()
        self.attempt = self.failover = None
        self.extras = NO_EXTRAS
        if run.format.framing is not RAW:  # else its creator may still have to be sent that head
            self._reply = NO_REPLY
        self._charge_heads()
        if run.state is not RunState.COMPLETED and not told:
            self.tell_error()
        for subscriber in self.subscribers:
            subscriber.wake()
        if not self.subscribers:
            self._forget_answer()  # no client is left to be told
        self._host.on_end(self)

    def tell_error(self) -> None:
        """Tell every reader of a stream why it broke off; a plain answer has a status."""
        if self.run.request.streamed:
            self._say_last(self.run.error_events())

    def _say_last(self, events: list[bytes]) -> None:
        """Hand every reader what we append to the upstream's events ourselves."""
        before = self.run.window.end
        block = self.run.transcript.append_ours(events)
        for subscriber in self.subscribers:
            if subscriber.cursor != before:
                subscriber.live = False  # events that found no room in the ledger come first
            if not isinstance(subscriber, StreamSubscriber) or subscriber.is_committed:
                subscriber.deliver(block, self.run.window.end)
        self.count_outbound()

    def _let_go_of_upstream(self) -> None:
        if self.failover is not None:
            self.failover.let_go()

    # --- readers ------------------------------------------------------------------------------

    def attach(self, subscriber: Subscriber) -> None:
        """Add a reader."""
        self.run.attach()
        self.subscribers = (*self.subscribers, subscriber)
        if self._buffers_are_halved:
            subscriber.shrink_buffer(half=True)
        subscriber.on_progress = self._on_reader_progress
        self._host.look_soon(subscriber, subscriber.check(self._loop.time()))

    def detach(self, subscriber: Subscriber) -> None:
        """Remove a reader that has gone, with what it had not read."""
        self.subscribers = tuple(each for each in self.subscribers if each is not subscriber)
        self.run.detach(self._loop.time())
        if not self.subscribers:
            self._forget_answer()
        self.count_outbound()
        if not self.run.is_over:
            self._balance()
            due_s = self.check(self._loop.time())
            if due_s is not None:
                self._host.look_soon(self, due_s)
        self._host.on_detach(self)

    def _forget_answer(self) -> None:
        """Only a stream of events is there for readers that come later."""
        self.answer = None
        if self.run.format.framing is RAW:
            self.run.transcript.shrink(0)

    def _on_reader_progress(self) -> None:
        self.count_outbound()
        self._balance()

    def cut_readers(self) -> None:
        """Drop every reader with what it has not read, so that its memory is free at once."""
        for subscriber in self.subscribers:
            subscriber.cut()
        self.count_outbound()

    def count_outbound(self) -> None:
        """Charge what the kernel has not taken yet."""
        outbound = sum(subscriber.outbound_bytes for subscriber in self.subscribers)
        self._has_outbound = outbound > 0
        with suppress(LedgerFull):  # the next event that comes in is refused, not this one
            self.run.account.set(Entry.OUTBOUND, outbound)

    def _watch_outbound(self) -> None:
        soon_s = self._loop.time() + 1.0
        for subscriber in self.subscribers:
            if subscriber.outbound_bytes:
                self._host.look_soon(subscriber, soon_s)

    # --- waiting ------------------------------------------------------------------------------

    def check(self, now_s: float) -> float | None:
        """Look at the clocks; returns when to look again, None when there is nothing to see."""
        expiry = reached(self.run, now_s)
        if expiry is not None:
            self.expire(expiry)
        if self.run.is_over:
            return None
        hold_s = self.run.created_s + self.run.limits.hold_s
        for subscriber in self.subscribers:
            if isinstance(subscriber, StreamSubscriber) and now_s >= hold_s:
                subscriber.stop_holding()
        return next_look_s(self.run, self._loop.time())

    def look_again(self) -> None:
        """Have the clocks looked at in time."""
        self._host.look_soon(self, next_look_s(self.run, self._loop.time()))

    def shrink_buffers(self, *, half: bool) -> None:
        """Halve the window while memory is short. No reader loses what it has not read."""
        self._buffers_are_halved = half
        window, whole_bytes = self.run.window, self.run.limits.window_bytes
        window.cap_bytes = max(whole_bytes // 2, self.needed_bytes) if half else whole_bytes
        self.run.transcript.shrink(window.cap_bytes)
        for subscriber in self.subscribers:
            subscriber.shrink_buffer(half=half)
        self._balance()

    def set_backpressure(self, *, on: bool, spare_bytes: int) -> None:
        """Keep less while the ledger is tight.

        A run then keeps what its readers still need, and reads on when they have it. One whose
        readers keep up goes on, and so does one without a subscriber, of which `spare_bytes`
        may be kept: to stop them would free nothing.
        """
        self._has_backpressure, self._spare_bytes = on, spare_bytes
        if on:
            self._shrink_window()
        self._balance()

    def _shrink_window(self) -> None:
        """Drop what all readers have, or what is too much where a reader may still come."""
        self.run.transcript.shrink(self.needed_bytes if self.subscribers else self._spare_bytes)

    @property
    def needed_bytes(self) -> int:
        """Bytes of the window that its slowest reader lacks; whole segments, so two more."""
        if not self.subscribers:
            return 0
        lag = self.run.window.end.offset - min(s.cursor.offset for s in self.subscribers)
        return lag + 2 * SEGMENT_BYTES if lag else 0

    @property
    def lag_bytes(self) -> int:
        """Bytes that are held for readers of which none keeps up; 0 where one does."""
        run, lags = self.run, not any(each.live for each in self.subscribers)
        held = min(self.needed_bytes, run.window.held_bytes)
        return held + run.account.entries[Entry.OUTBOUND] if self.subscribers and lags else 0

    def _balance(self) -> None:
        """Pause the upstream when every reader lags far behind; read on when one is near."""
        run = self.run
        connection = None if self.attempt is None else self.attempt.connection
        if connection is None:
            return
        lag = 0
        if self.subscribers and not run.request.keep_running:
            lag = run.window.end.offset - max(s.cursor.offset for s in self.subscribers)
        # What is read after the pause must still fit: a client that reads never loses an event.
        room = run.window.cap_bytes - SEGMENT_BYTES - 2 * READ_BYTES
        most = PAUSE_LAG_BYTES // 2 if self._buffers_are_halved else PAUSE_LAG_BYTES
        allowed = max(0, min(most, room))
        if run.paused_s is not None:
            allowed //= 2
        if lag > (0 if self._has_backpressure else allowed):
            run.pause(self._loop.time())
            connection.pause()
        elif run.paused_s is not None:
            run.resume(self._loop.time())
            connection.resume()
            self.look_again()
