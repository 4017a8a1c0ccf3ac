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
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats.base import (
    TAIL_EVENTS,
    ErrorText,
    Meaning,
    with_values,
)
from tidegate.core.formats.foreign_json import is_json
from tidegate.core.formats.framing import RAW
from tidegate.core.formats.openai import UsageStripper
from tidegate.core.histogram import Histogram
from tidegate.core.runs.advice import advise
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.limits import Expiry, look_again_s, next_expiry
from tidegate.core.runs.run import Happening, Run, State
from tidegate.core.runs.window import SEGMENT_BYTES
from tidegate.core.secret import NO_SECRET
from tidegate.core.upstreams.blame import FAULT_OF_CODE, VERDICTS, Fault, Held, fault_of_answer
from tidegate.core.upstreams.breaker import Witness
from tidegate.gateway.relay.subscriber import StreamSubscriber, Subscriber
from tidegate.gateway.upstreams.choice import Route, Target
from tidegate.gateway.upstreams.connection import READ_BYTES, SLICE_BYTES, UpstreamConnection
from tidegate.gateway.upstreams.pool import UpstreamPool
from tidegate.gateway.upstreams.reply import Answer, Reply

log = logging.getLogger("tidegate.relay")

# An upstream waits when even the reader that is furthest ahead is this far behind it: enough to
# ride out a hiccup, far less than the window, so nobody who reads loses an event.
PAUSE_LAG_BYTES = 256 * 1024

MOST_WAITS = 1  # where an upstream says when to come again; official clients do the rest
LOADING_AGAIN_S = 1.0  # llama.cpp answers 503 while it loads its model, and is quick to say so
ONCE_MORE_S = 0.3  # after a 500 or a reset: what only stumbled is up again by then
HOPS_HEADER = "x-tidegate-hops"  # so that a ring of gateways ends
MAX_ERROR_BYTES = 256 * 1024
GONE_AFTER_S = 0.5  # a connection that was given up is closed in the loop's next turn
FEWEST_EVENTS = 8  # a shorter answer says nothing about speed
TIMED_EVERY = 16  # events; timing each would cost as much as framing it


class Sent(NamedTuple):
    """What an upstream is sent beside the body."""

    content_type: str = "application/json"
    header_lines: str = ""  # the client's own, as far as the format needs them
    values: Mapping[str, Raw | None] = MappingProxyType({})  # for the body's own; None: without
    hops: int = 0  # through how many tidegates the request has come already


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
        sent: Sent = Sent(),  # noqa: B008 - a constant
        *,
        caller: str = "",
    ) -> None:
        """`caller` tells callers apart who have no token: an address."""
        self.run = run
        self.subscribers: list[Subscriber] = []
        self.answer: Answer | None = None  # for a creator that has not been sent a stream
        self.target: Target | None = None
        self._book = book
        self._loop = loop
        self._route = Route(targets)
        self._caller = run.owner or caller
        self._waiting: list[Target] = []  # in whose queues it stands
        self._asked_again = False  # the last target, after a 500 or a reset
        self._former = ""  # why the target under way is asked again: what came of the try before
        self._asked_s = 0.0  # when it was asked the last time
        self._has_waited = False  # for the first of those that wanted to be left alone
        self._is_raw = run.format.framing is RAW  # bytes as they come, with no events among them
        self._sent = sent
        self._judged = False  # whether the try under way has told how its upstream does
        self._on_trial = False  # whether the upstream is set aside, and it is the one to find out
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None  # told to come again, or still loading
        self._has_place = False
        self._is_stream = False  # what the upstream is sending right now is the stream
        self._begun_s = 0.0  # when its first output came
        self._reply = Reply()
        self._held_back = False  # the ledger is tight
        self._spare_bytes = 0  # what may then be kept of a run that nobody reads
        self._squeezed = False  # memory is short: windows and watermarks are half as large
        self._charge_heads()

    def __repr__(self) -> str:
        return f"<Relay {self.run!r} {len(self.subscribers)} subscribers>"

    # --- attempts -----------------------------------------------------------------------------

    def _charge_heads(self) -> None:
        heads = (self._sent.header_lines, self._sent.content_type, *self._reply.headers.values())
        self.run.charge_record(sum(map(len, heads)) + len(self.run.model))

    def begin(self) -> None:
        """Goes for the next target: at once, or when one of its equals has a place."""
        now_s = self._loop.time()
        self.target = None
        self._judged = False
        self._former = ""
        equals = self._route.choose(now_s)
        if not equals:
            self._wait_until_told(now_s)
            return
        for target in equals:
            if target.pool.is_free:
                target.pool.take_place(self)
                self._take(target)
                return
        self._wait_for_place(equals)

    def _take(self, target: Target) -> None:
        """Our turn has come at this target."""
        now_s = self._loop.time()
        self._route.remove(target)
        self.target, self._has_place = target, True
        self._on_trial = target.pool.health.admit(target.model, now_s)
        self.run.limits = target.limits.at_target(is_last=not self._route.has_more(now_s))
        self._open()
        self._book.look_soon(self, self._due_s())

    def _wait_for_place(self, equals: list[Target]) -> None:
        """Stands in the queues of all equals, and goes where a place is free first."""
        busy = []
        for pool in dict.fromkeys(each.pool for each in equals):
            here = [each for each in equals if each.pool is pool]
            try:
                pool.take_place(self, here[0].limits.max_queued)
            except UpstreamError as error:
                most = f"limits.max_queued = {here[0].limits.max_queued}"
                busy.append(f'upstream "{pool.name}" {error} ({most})')
            else:
                self._waiting += here
        if not self._waiting:
            self._on_no_place(equals, "; ".join(busy), "queue_full", Happening.FAIL)
            return
        # Who waits for several waits as long as the most patient of them allows.
        self.run.limits = max((each.limits for each in self._waiting), key=lambda it: it.queue_s)
        self.run.wait_for_place(self._loop.time())
        self._book.look_soon(self, self._due_s())

    def on_place(self, pool: UpstreamPool) -> None:
        """A place is free here; those who wait behind us at the equals move up."""
        target = next(each for each in self._waiting if each.pool is pool)
        self._leave_queues(but=pool)
        self._take(target)

    def _leave_queues(self, but: UpstreamPool | None = None) -> None:
        pools = {each.pool for each in self._waiting}
        self._waiting = []
        for pool in pools:
            if pool is not but:
                pool.leave_queue(self)

    def _on_no_place(
        self, equals: list[Target], reason: str, code: str, happening: Happening
    ) -> None:
        """All equals are full, or were for too long: the end, for to be busy is no failure.

        The next level may be another owner's computer. Only what failed meanwhile is followed by
        it, as if it had been set aside before.
        """
        now_s = self._loop.time()
        self._leave_queues()
        self._route.remove(*equals)
        if not self._route.has_more(now_s):
            self._end(happening, reason, code)
        elif any(each.may_be_asked(now_s) for each in equals):
            self._end(happening, f"{reason}; {_BEHIND}", code)
        else:
            log.info("run %s: %s and is set aside; trying the next target", self.run.id, reason)
            self.begin()

    def _wait_until_told(self, now_s: float) -> None:
        """Every target said when to come again: that is waited for if it is soon, or told."""
        target = self._route.first_held(now_s)
        assert target is not None, "a run has a target"
        wait_s = target.held_s(now_s)
        in_time = now_s + wait_s < self.run.queued_s + self.run.limits.queue_s
        if not self._has_waited and in_time and self._fits_hold(wait_s):
            self._has_waited = True
            self._again = self._loop.call_later(wait_s, self._begin_again)
            self._book.look_soon(self, self._due_s())
            return
        seconds = math.ceil(wait_s)
        status = target.pool.health.held_status(target.model)
        reason = f'upstream "{target.pool.name}" wants to hear nothing for {seconds} s more'
        kind = "rate_limit_error" if status == 429 else "server_error"
        error = ErrorText(status, advise(reason, "upstream_429"), kind, f"upstream_{status}")
        body = self.run.format.error_body(error)
        headers = (("Retry-After", str(seconds)),)
        self.answer = Answer(status, "application/json", body, headers)
        self._end(Happening.FAIL, reason, f"upstream_{status}")

    def _begin_again(self) -> None:
        self._again = None
        self.begin()

    def _fits_hold(self, wait_s: float) -> bool:
        """Whether the status can be held back for so long: later it could not be passed on."""
        run = self.run
        return self._loop.time() + wait_s <= run.created_s + run.limits.hold_s

    def _open(self, *, fresh: bool = False, again: bool = False) -> None:
        """`again` goes on with the try under way, `fresh` over a connection of its own."""
        assert self.target is not None
        pool = self.target.pool
        self._asked_s = self._loop.time()
        try:
            if again:
                self.run.try_again()
            else:
                secret = NO_SECRET if self._is_raw else pool.secret
                self.run.begin_attempt(pool.name, self.target.model, self._loop.time(), secret)
            connection = None if fresh else pool.take_idle()
            if connection is not None:
                self._request(connection)
            else:
                self._connecting = self._loop.create_task(self._connect())
        except Exception:  # whoever made room for us must not suffer from it
            self._on_fault()

    def _open_again_in(self, wait_s: float, why: str) -> None:
        """Comes again after a while; the clocks of the try run on."""
        if self.run.attempt.tries == 1:  # a model that loads for minutes is one line, not hundreds
            log.info("run %s: %s; asking again in %g s", self.run.id, why, wait_s)
        self._former = why
        self._again = self._loop.call_later(wait_s, self._open_again)

    def _open_again(self) -> None:
        self._again = None
        self._open(again=True)

    async def _connect(self) -> None:
        assert self.target is not None
        try:
            connection = await self.target.pool.connect(self.target.limits.connect_s)
            self._connecting = None
            self._request(connection)
        except UpstreamError as error:
            self._connecting = None
            hung_up = error.code == "upstream_disconnected"
            self._attempt_failed(error, Fault.HUNG_UP if hung_up else Fault.UNREACHED)
        except Exception:
            self._connecting = None
            self._on_fault()

    def _request(self, connection: UpstreamConnection) -> None:
        assert self.target is not None
        run, pool, sent = self.run, self.target.pool, self._sent
        form = run.format
        self._connection = connection
        self._is_stream = False
        try:
            values = self._values(self.target)
            body = with_values(run.body, sent.content_type, values) if values else [run.body]
        except ValueError as error:
            self._refuse(str(error))
            return
        head = pool.request_head(
            "POST",
            form.path,
            sum(map(len, body)),
            stream=run.streamed,
            accept=form.framing.accept if run.streamed else form.accept,
            content_type=sent.content_type,
            at_root=form.at_root,
            more=f"{HOPS_HEADER}: {sent.hops + 1}\r\n{sent.header_lines}",
        )
        run.sending(len(run.body) + min(SLICE_BYTES, len(run.body)))
        connection.send(head, self, body, run.sent)
        if self._held_back:
            self._balance()

    def _values(self, target: Target) -> Mapping[str, Raw | None]:
        """What of the request is said differently to this target."""
        run, values = self.run, self._sent.values
        if target.model != run.model:
            values = {**values, "model": Raw(msgspec.json.encode(target.model))}
        if target.pool.upstream.ask_usage and run.streamed:
            asked = run.format.asking_usage(run.body)
            run.rewrite = UsageStripper() if asked else run.rewrite
            values = {**values, **(asked or {})}
        return values

    # --- the upstream answers -----------------------------------------------------------------

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        assert self.target is not None
        self._reply = reply = Reply(status, self.target.pool.secret.hide_values(headers))
        self.run.attempt.request_id = reply.request_id
        self._charge_heads()
        if reply.is_success and reply.is_compressed:
            self._attempt_failed(
                UpstreamError("compressed its answer, which nobody asked for", code="compressed")
            )
        elif reply.is_success and (self.run.streamed or self._is_raw):
            self._is_stream = self.run.format.framing.takes(reply.content_type)

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
                if run.format.may_end(block):
                    said = run.verdict()
                    if said is Meaning.DONE or said is Meaning.ERROR:
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
        if self._is_stream and self._is_raw:
            # Without events HTTP's word is all there is. An answer of no bytes is one as well.
            begun = self.run.state is State.STREAMING
            self._guarded(self._complete if begun else self._finish_plain)
        elif self._is_stream:
            error = UpstreamError(
                "ended the stream before the answer was complete", code="upstream_ended"
            )
            self._guarded(self._finish_stream, error)
        else:
            self._guarded(self._finish_plain)

    def on_lost(self, reason: str, *, answered: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_reused and not answered:
            # It died of idleness while our request was on its way: not a fault.
            self._open(fresh=True, again=True)
            return
        when = "in the middle of the answer" if self._is_stream else "before an answer"
        error = UpstreamError(f"{reason} {when}", code="upstream_disconnected")
        if self._is_stream:
            self._guarded(self._finish_stream, error)
        else:
            self._attempt_failed(error, Fault.CUT if answered else Fault.HUNG_UP)

    def _finish_stream(self, broken: UpstreamError) -> None:
        """No more events come. Whether the answer is whole is seen in them, not in the framing."""
        run = self.run
        before = run.state
        block, said = run.feed_end(self._loop.time())
        if block:
            if before is not State.STREAMING:
                self._on_first_output()
            self._send(block)
        was_cut = broken.code == "upstream_disconnected"
        if said is Meaning.DONE or (
            said is Meaning.FINISH and not (was_cut and run.format.needs_end)
        ):
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
        self._judged = True
        self.target.pool.began(self.target.model)
        self._begun_s = self._loop.time()
        begun_s = self._begun_s - self.run.attempt.started_s
        self.target.pool.note_first_output(self.target.model, begun_s)
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
        is_answer = self._reply.is_success and not self.run.streamed
        if not is_answer and self.run.attempt.held_bytes > MAX_ERROR_BYTES:
            self._connection, connection = None, self._connection
            if connection is not None:
                connection.abort()
            self._finish_plain(is_whole=False)

    def _finish_plain(self, *, is_whole: bool = True) -> None:
        """A whole body: the answer, or the upstream's own error, which may have been cut."""
        assert self.target is not None
        body = b"".join(self.run.attempt.held)
        reply, status = self._reply, self._reply.status
        if reply.is_success:
            reply.check_answer(self.run.format, body, streamed=self.run.streamed)
            self._on_answer(body)
            return
        body = self.target.pool.secret.hide_bytes(body)
        fault = fault_of_answer(
            status,
            body,
            names_ours=self.target.names_ours,
            says_when=reply.retry_after_s(time.time()) is not None,
        )
        if self._comes_again(fault, body):
            return
        match fault:
            case Fault.MISLED:
                what = f"answered {status}: redirects are not followed"
                self._attempt_failed(UpstreamError(what, code="redirected"), fault)
            case Fault.GARBLED:
                what = f"answered {status}, which is no HTTP status"
                self._attempt_failed(UpstreamError(what), fault)
            case _:
                self._on_refusal(fault, body, is_whole=is_whole)

    def _on_refusal(self, fault: Fault, body: bytes, *, is_whole: bool) -> None:
        """What the upstream said instead of an answer is passed on if no target is left."""
        assert self.target is not None
        reply, verdict = self._reply, VERDICTS[fault]
        did = "refused with" if verdict.held is Held.ALIVE else "answered"
        what = f"{did} {reply.refusal(body)}"
        answer = None
        if not is_whole or reply.is_compressed:
            if verdict.held is Held.ALIVE:
                answer = self._in_our_words(f'upstream "{self.target.pool.name}" {what}')
        elif verdict.held is Held.ALIVE or is_json(body):
            answer = reply.pass_on(body)  # a proxy's page of HTML tells no client library anything
        self._attempt_failed(UpstreamError(what, code=f"upstream_{reply.status}"), fault, answer)

    def _in_our_words(self, reason: str) -> Answer:
        """A refusal whose body nobody could read: compressed unasked, or larger than we take."""
        status = self._reply.status
        reason += ", in a body that is compressed or too large to pass on; its own log may say why"
        error = ErrorText(status, reason, "invalid_request_error", f"upstream_{status}")
        return self._reply.pass_on(b"")._replace(
            content_type="application/json", body=self.run.format.error_body(error)
        )

    def _comes_again(self, fault: Fault, body: bytes) -> bool:
        """Notes when an upstream wants to be asked again, and waits if no other one is left."""
        assert self.target is not None
        run, reply = self.run, self._reply
        now_s = self._loop.time()
        wait_s = reply.retry_after_s(time.time())
        if wait_s is not None:
            self.target.pool.health.hold(self.target.model, wait_s, reply.status, now_s)
        if self._route.has_more(now_s) or run.state is not State.CONNECTING:
            return False
        if VERDICTS[fault].is_ours:  # no credit comes back by waiting
            return False
        if fault is Fault.DOWN and reply.is_loading(body):
            if not self._has_time(LOADING_AGAIN_S, is_loading=True):
                return False
            loads = f'upstream "{run.attempt.upstream}" is loading its model'
            self._open_again_in(LOADING_AGAIN_S, loads)
            return True
        if wait_s is None or run.attempt.waits >= MOST_WAITS:
            return False
        if not (self._fits_hold(wait_s) and self._has_time(wait_s)):
            return False
        run.attempt.waits += 1
        why = f'upstream "{run.attempt.upstream}" answered {reply.refusal(body)}'
        self._open_again_in(wait_s, why)
        return True

    def _has_time(self, wait_s: float, *, is_loading: bool = False) -> bool:
        """Whether the limits leave so long: else the upstream's own word is worth more at once."""
        run, limits = self.run, self.run.limits
        due_s = run.created_s + limits.total_s
        if run.streamed or is_loading:
            due_s = min(due_s, run.attempt.started_s + limits.first_output_s)
        if not run.streamed and limits.plain_s is not None:
            due_s = min(due_s, run.attempt.started_s + limits.plain_s)
        return self._loop.time() + wait_s < due_s

    def _on_answer(self, body: bytes) -> None:
        self.run.learn_id(body)
        if self.run.response_id is not None and self.run.stored:
            self.run.keep_plain(body)
        self.answer = self._reply.pass_on(body)
        self._complete()

    @property
    def raw_head(self) -> Answer:
        """The head of an answer whose bytes are passed on as they come."""
        return self._reply.raw_head()

    # --- how it ends --------------------------------------------------------------------------

    def _attempt_failed(
        self,
        error: UpstreamError | LedgerFull,
        fault: Fault | None = None,
        answer: Answer | None = None,
    ) -> None:
        """The try under way is over: see `core.blame` for what follows.

        `answer` is what the upstream itself said.
        """
        assert self.target is not None
        secret = self.target.pool.secret
        if isinstance(error, LedgerFull):
            self._let_go_of_upstream()
            self._end(Happening.FAIL, secret.hide(str(error)), error.code)
            return
        if error.said:
            said = secret.hide_bytes(error.said)
            answer = Answer(error.status, "application/json", said)
            fault = fault_of_answer(
                error.status, said, names_ours=self.target.names_ours, is_told=True
            )
        if fault is None:
            fault = FAULT_OF_CODE.get(error.code, Fault.GARBLED)
        what = secret.hide(str(error))
        after = "" if error.code in _LIMITS else self._after()
        if VERDICTS[fault].is_ours:
            self._on_our_fault(fault, error, what, answer)
        else:
            reason = f'upstream "{self.target.pool.name}" {what}{after}'
            self._settle(fault, reason, error.code, answer)

    def _on_our_fault(
        self, fault: Fault, error: UpstreamError, what: str, answer: Answer | None
    ) -> None:
        """It is the config's, and not the caller's: who runs this gateway has to know."""
        assert self.target is not None
        pool, model = self.target.pool, self.target.model
        status = self._reply.status if not error.said else error.status
        if fault in {Fault.OUR_KEY, Fault.OUR_QUOTA}:
            code = "upstream_key_refused"
            text = f"{_KEY_TEXTS.get(status, _KEY_TEXTS[401])} ({pool.key_name})"
            pool.health.refuse("", text, self._loop.time())
        else:
            code = "upstream_model_missing"
            text = f'has no model "{model}", which the config of this gateway names'
            pool.health.refuse(model, text, self._loop.time())
        said = what.removeprefix("refused with ")
        own = answer.never_again() if answer and VERDICTS[fault].keeps_words else None
        self._settle(fault, f'upstream "{pool.name}" {text}: {said}', code, own)

    def _settle(
        self,
        fault: Fault,
        reason: str,
        code: str,
        answer: Answer | None,
        end: Happening = Happening.FAIL,
    ) -> None:
        """Holds the fault against whom it is, and goes on: once more, elsewhere, or to the end."""
        run, verdict = self.run, VERDICTS[fault]
        has_begun = run.state not in {State.QUEUED, State.CONNECTING}
        has_more = self._route.has_more(self._loop.time())
        if verdict.once_more and not (has_begun or has_more) and self._may_ask_once_more():
            self._asked_again = True
            self._drop_connection()
            self._open_again_in(ONCE_MORE_S, reason)
            return
        self._judge(fault, reason)
        self._let_go_of_upstream()
        if verdict.goes_on and has_more and not has_begun:
            run.end_attempt(reason, self._loop.time())
            log.info("run %s: %s; trying the next target", run.id, reason)
            self.begin()
            return
        self.answer = answer
        self._end(end, reason, code)

    def _may_ask_once_more(self) -> bool:
        return not self._asked_again and self._has_time(ONCE_MORE_S)

    def _after(self) -> str:
        """How long after the question it happened, for people."""
        if self.run.state not in {State.CONNECTING, State.STREAMING}:
            return ""
        return f", {self._loop.time() - self._asked_s:.1f} s after the request"

    def _judge(self, fault: Fault, reason: str) -> None:
        """Tells the upstream's health; what is only shown leaves a trial undecided."""
        assert self.target is not None
        pool, model, held = self.target.pool, self.target.model, VERDICTS[fault].held
        if held is Held.ALIVE and not VERDICTS[fault].is_ours:
            self._judged = True
            pool.alive(model)
            return
        is_plain = fault is Fault.SILENT and not self.run.streamed
        if is_plain and pool.health.answered_since(model, self.run.attempt.started_s):
            held = Held.NOTHING  # it is slow, and answers others
        self._judged = self._judged or held is not Held.NOTHING
        witness = None
        if held is Held.SUSPECTED:
            witness = Witness(self._caller, hash(self.run.body))
        pool.failed(model, reason, held, witness)

    def expire(self, expiry: Expiry) -> None:
        """A limit has been reached."""
        if expiry.happening is Happening.COMPLETE:
            self._complete_in_its_place()
        elif self._waiting and expiry.limit == "queue_s":
            equals = self._waiting
            names = " and ".join(dict.fromkeys(f'"{each.pool.name}"' for each in equals))
            plural = "s" if len({each.pool for each in equals}) > 1 else ""
            reason = f"upstream{plural} {names} {expiry.reason}"
            self._on_no_place(equals, reason, expiry.limit, expiry.happening)
        elif expiry.of_upstream and self.target is not None:
            reason = f'upstream "{self.target.pool.name}" {expiry.reason}'
            if self._former and self.run.state is State.CONNECTING:
                # The clock of the try before ran on: that one had an answer, if no good one.
                reason = f"{self._former}; asked again, it {expiry.reason} in all"
            self._settle(FAULT_OF_CODE[expiry.limit], reason, expiry.limit, None, expiry.happening)
        else:
            self._end(expiry.happening, expiry.reason, expiry.limit)

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
        error = ErrorText(400, reason, "invalid_request_error", "bad_request")
        self.answer = Answer(400, "application/json", self.run.format.error_body(error))
        self._end(Happening.FAIL, reason, "bad_request")

    def _complete(self) -> None:
        if self.target is not None:
            self._judged = True
            self.target.pool.succeeded(self.target.model, is_plain=not self.run.streamed)
        if self._is_stream and not self._is_raw and self.target is not None:
            self._note_speed(self.target)
        self._end(Happening.COMPLETE, None, None)

    def _complete_in_its_place(self) -> None:
        """The answer is whole, but its upstream doesn't say so and holds the connection open."""
        run = self.run
        log.info("run %s: whole, but its upstream did not end it", run.id)
        if run.format.end_marker and not run.end_disabled:
            self._say_last(run.append_end)
        self._complete()

    def _note_speed(self, target: Target) -> None:
        """How fast the answer came, for whoever chooses between models."""
        run = self.run
        took_s = self._loop.time() - self._begun_s
        if took_s <= 0.0 or run.window.next_seq < FEWEST_EVENTS:
            return
        tokens = run.rewrite.tokens if run.rewrite is not None else None
        tokens = tokens or run.format.tokens(run.window.last_events(TAIL_EVENTS))
        if tokens:
            target.pool.note_speed(target.model, tokens / took_s, "tokens/s")
        else:
            target.pool.note_speed(target.model, run.window.next_seq / took_s, "events/s")

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
        told = broken and run.has_told_error()
        if not run.end(happening, reason, code, self._loop.time(), time.time()):
            return
        self._let_go_of_upstream()
        self._sent = Sent()
        if not self._is_raw:  # else its creator may still have to be sent that head
            self._reply = Reply()
        self._charge_heads()
        if run.state is not State.COMPLETED and not told:
            self.tell_error()
        for subscriber in self.subscribers:
            subscriber.wake()
        if not self.subscribers:
            self._forget_answer()  # nobody is left who could be told
        self._book.on_end(self)

    def tell_error(self) -> None:
        """Every reader of a stream learns why it broke off; a plain answer has a status."""
        if not self.run.streamed:
            return
        self._say_last(self.run.append_error)

    def _say_last(self, append: Callable[[], bytes]) -> None:
        """Hands every reader what we append to the upstream's events ourselves."""
        before = self.run.window.end
        block = append()
        for subscriber in self.subscribers:
            if subscriber.cursor != before:
                subscriber.live = False  # events that found no room in the ledger come first
            if not isinstance(subscriber, StreamSubscriber) or subscriber.is_committed:
                subscriber.deliver(block, self.run.window.end)
        self.count_outbound()

    def _let_go_of_upstream(self) -> None:
        if self.target is not None and not self._judged:
            if self._on_trial:
                self.target.pool.health.gave_up(self.target.model, self._loop.time())
            self._judged = True
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._drop_connection()
        self._leave_queues()
        if self._has_place:
            assert self.target is not None
            self._has_place = False
            self.target.pool.leave_place()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._loop.call_later(GONE_AFTER_S, self._make_sure, self._connection)
            self._connection = None
        if self.run.is_sending:
            self.run.sent()

    def _make_sure(self, connection: UpstreamConnection) -> None:
        """An upstream that was given up must know it: a GPU would go on for nobody."""
        if not connection.is_gone:
            log.warning(
                "run %s: its upstream connection was still there %g s after it was given up;"
                " closed by force",
                self.run.id,
                GONE_AFTER_S,
            )
            connection.close_by_force()

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
            self._forget_answer()
        self.count_outbound()
        if not self.run.is_over:
            self._balance()
            due_s = self.check(self._loop.time())
            if due_s is not None:
                self._book.look_soon(self, due_s)
        self._book.on_detach(self)

    def _forget_answer(self) -> None:
        """Only a stream of events is there for those who come later."""
        self.answer = None
        if self._is_raw:
            self.run.shrink(0)

    def _on_reader_progress(self) -> None:
        self.count_outbound()
        self._balance()

    def cut_readers(self) -> None:
        """Drop every reader with what it has not read, so that its memory is free at once."""
        for subscriber in self.subscribers:
            subscriber.cut()
        self.count_outbound()

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
                subscriber.stop_holding()
        return self._due_s()

    def _due_s(self) -> float:
        now_s = self._loop.time()
        expiry = next_expiry(self.run)
        due_s = expiry.due_s if expiry is not None else now_s
        due_s = min(due_s, look_again_s(self.run, now_s))
        hold_s = self.run.created_s + self.run.limits.hold_s
        return min(due_s, hold_s) if hold_s > now_s else due_s

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

    @property
    def lag_bytes(self) -> int:
        """What is held for readers of whom none keeps up; 0 where one does."""
        if not self.subscribers or any(each.live for each in self.subscribers):
            return 0
        return self.needed_bytes + self.run.account.entries[Entry.OUTBOUND]

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


# A reason that names a limit says how long it took already.
_LIMITS = frozenset({"first_output_s", "plain_s", "idle_s"})

_BEHIND = (
    "the targets behind it are asked only when it fails (put equals into an inner list of targets)"
)

_KEY_TEXTS = {
    401: "refused the key of this gateway",
    402: "wants payment from the owner of this gateway's key",
    403: "does not allow this to the key of this gateway",
    429: "has no credit left for the owner of this gateway's key",
}
