"""One try at one upstream: from a free slot there to what came of it.

An attempt connects, sends the request and hears what the upstream answers. The relay takes the
answer; a stream's bytes go from the connection to `Relay.on_body` without a step between. The
failover is told how it failed, and decides what follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats.base import Meaning
from tidegate.core.formats.framing import RAW
from tidegate.core.runs.limits import Expiry, fits_hold, has_time
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState, Trigger
from tidegate.core.secret import NO_SECRET
from tidegate.core.upstreams.blame import FAULT_OF_CODE, VERDICTS, Fault, Held, fault_of_answer
from tidegate.core.upstreams.breaker import Witness
from tidegate.gateway.relay.failure import Failure, error_of, failure_of
from tidegate.gateway.relay.request import RequestExtras, body_for, head_for
from tidegate.gateway.upstreams.choice import Target
from tidegate.gateway.upstreams.connection import SLICE_BYTES, UpstreamConnection
from tidegate.gateway.upstreams.reply import NO_REPLY, Answer, Reply

log = logging.getLogger("tidegate.relay")

MOST_WAITS = 1  # where an upstream says when to come again; official clients do the rest
LOADING_AGAIN_S = 1.0  # llama.cpp answers 503 while it loads its model, and is quick to say so
MAX_ERROR_BYTES = 256 * 1024
FEWEST_EVENTS = 8  # a shorter answer says nothing about speed


class AttemptHost(Protocol):
    """The relay, as the attempts and the failover of its run see it."""

    run: Run
    extras: RequestExtras
    answer: Answer | None  # for a creator that has not been sent a stream
    attempt: Attempt | None  # the one under way

    def on_request(self) -> None:
        """Take note that a request is on its way over a connection."""

    def on_head(self, reply: Reply) -> None:
        """Take the head of the upstream's answer."""

    def on_body(self, data: bytes) -> None:
        """Take a piece of the stream."""

    def on_stream_end(self) -> Meaning:
        """Take the end of the stream; returns how the answer ended."""

    def complete(self) -> None:
        """End the run: the answer is whole."""

    def end(self, trigger: Trigger, reason: str | None, code: str | None) -> None:
        """End the run: there will be no whole answer."""

    def refuse(self, reason: str) -> None:
        """End the run: the request itself is the client's mistake."""

    def on_fault(self) -> None:
        """End the run: the exception that is being handled is a mistake of ours."""

    def look_again(self) -> None:
        """Look at the run's clocks in time: they have changed."""


class FailureHost(Protocol):
    """The failover: it knows the other targets."""

    def has_more(self) -> bool:
        """Whether there is another target that would be asked."""

    def settle(self, attempt: Attempt, failure: Failure) -> None:
        """Take the failure: ask once more, go to another target, or end the run."""


class AttemptPhase(Enum):
    """Where an attempt stands."""

    CONNECTING = "connecting"
    ASKED = "asked"  # the head is to come, or the rest of a body that is no stream
    STREAMING = "streaming"  # what the upstream is sending right now is the stream
    WAITING = "waiting"  # told to come again, still loading, or only stumbled: asked again soon
    OVER = "over"  # its slot is another's


class Attempt:
    """A try at a target where it has a slot, which it gives back when it is let go of."""

    __slots__ = (
        "__weakref__", "_asked_s", "_begun_s", "_coming", "_failover", "_former", "_host", "_loop",
        "_on_trial", "_phase", "_reply", "_run", "connection", "on_body", "target",
    )  # fmt: skip

    def __init__(
        self,
        host: AttemptHost,
        failover: FailureHost,
        target: Target,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.target = target
        self.connection: UpstreamConnection | None = None
        # What takes a piece of the body. A stream's go straight to the relay.
        self.on_body: Callable[[bytes], None] = self._on_plain
        self._host = host
        self._failover = failover
        self._run = host.run
        self._loop = loop
        self._phase = AttemptPhase.CONNECTING
        # Whether the upstream is set aside, and this is to find out how it does.
        self._on_trial = target.pool.health.admit(target.model, loop.time())
        self._coming: asyncio.Task[None] | asyncio.TimerHandle | None = None  # its next step
        self._asked_s = 0.0  # when it was asked the last time
        self._begun_s = 0.0  # when its first output came
        self._former = ""  # why it is asked again: what came of the time before
        self._reply = NO_REPLY

    def __repr__(self) -> str:
        name = f"{self.target.pool.name}/{self.target.model}"
        return f"<Attempt {self._run.id} at {name} {self._phase.value}>"

    # --- the request ----------------------------------------------------------------------------

    def open(self, *, fresh: bool = False, again: bool = False) -> None:
        """Send the request over an idle connection or a new one.

        `again` goes on with the try under way, `fresh` over a connection of its own.
        """
        self._phase = AttemptPhase.CONNECTING
        self._asked_s = self._loop.time()
        try:
            if again:
                self._run.try_again()
            else:
                self._begin()
            connection = None if fresh else self.target.pool.take_idle()
            if connection is not None:
                self._request(connection)
            else:
                self._coming = self._loop.create_task(self._connect())
        except Exception:  # the run that made room for this one must not suffer from it
            self._host.on_fault()

    def go_on(self, connection: UpstreamConnection, asked_s: float) -> None:
        """Take what is answered to a request that was sent at `asked_s`."""
        self.connection, self._phase, self._asked_s = connection, AttemptPhase.ASKED, asked_s
        self._begin()

    def _begin(self) -> None:
        secret = NO_SECRET if self._run.format.framing is RAW else self.target.pool.secret
        self._run.begin_attempt(self.target.pool.name, self.target.model, self._asked_s, secret)

    def ask_again_in(self, wait_s: float, why: str) -> None:
        """Ask the same upstream after a while; the clocks of the try run on."""
        if self._run.attempt.tries == 1:  # a model that loads for minutes is one line, not hundreds
            log.info("run %s: %s; asking again in %g s", self._run.id, why, wait_s)
        self._drop_connection()
        self._phase = AttemptPhase.WAITING
        self._former = why
        self._coming = self._loop.call_later(wait_s, self._open_again)

    def _open_again(self) -> None:
        self._coming = None
        self.open(again=True)

    async def _connect(self) -> None:
        try:
            connection = await self.target.pool.connect(self.target.limits.connect_s)
            self._coming = None
            self._request(connection)
        except UpstreamError as error:
            self._coming = None
            hung_up = error.code == "upstream_disconnected"
            self.fail(error, Fault.HUNG_UP if hung_up else Fault.UNREACHED)
        except Exception:
            self._coming = None
            self._host.on_fault()

    def _request(self, connection: UpstreamConnection) -> None:
        run, extras = self._run, self._host.extras
        self.connection = connection
        self._phase, self.on_body = AttemptPhase.ASKED, self._on_plain
        try:
            body = body_for(self.target, run, extras)
        except ValueError as error:
            self._host.refuse(str(error))
            return
        size, streamed = sum(map(len, body)), run.request.streamed
        head = head_for(self.target, run.format, extras, size, streamed=streamed)
        run.sending(len(run.body) + min(SLICE_BYTES, len(run.body)))
        connection.send(head, self, body, run.sent)
        self._host.on_request()

    # --- the upstream answers -------------------------------------------------------------------

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        run = self._run
        self._reply = reply = Reply(status, self.target.pool.secret.hide_values(headers))
        run.attempt.request_id = reply.request_id
        self._host.on_head(reply)
        if reply.is_success and reply.is_compressed:
            what = "compressed its answer, which was not asked for"
            self.fail(UpstreamError(what, code="compressed"))
            return
        framing = run.format.framing
        may_stream = reply.is_success and (run.request.streamed or framing is RAW)
        if may_stream and framing.takes(reply.content_type):
            self._phase, self.on_body = AttemptPhase.STREAMING, self._host.on_body

    def on_first_output(self) -> float:
        """Note that the answer has begun; returns how long that took, in seconds."""
        pool, model = self.target.pool, self.target.model
        self._on_trial = False
        pool.began(model)
        self._begun_s = self._loop.time()
        took_s = self._begun_s - self._run.attempt.started_s
        pool.note_first_output(model, took_s)
        return took_s

    def on_done(self, said: Meaning) -> None:
        """Take the terminal marker: the answer is over, whatever the connection does next."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.let_go()
        if said is Meaning.ERROR:
            self._on_told_error()
        else:
            self._host.complete()

    def on_end(self) -> None:
        """Finish: the upstream's answer is complete as far as HTTP goes."""
        self.connection = None
        run = self._run
        if self._phase is not AttemptPhase.STREAMING:
            self._guarded(self._finish_plain)
        elif run.format.framing is RAW:
            # Without events HTTP's word is all there is. An answer of no bytes is one as well.
            begun = run.state is RunState.STREAMING
            self._guarded(self._host.complete if begun else self._finish_plain)
        else:
            error = UpstreamError(
                "ended the stream before the answer was complete", code="upstream_ended"
            )
            self._guarded(self._finish_stream, error)

    def on_lost(self, reason: str, *, answered: bool) -> None:
        connection, self.connection = self.connection, None
        if connection is not None and connection.is_reused and not answered:
            # It died of idleness while our request was on its way: not a fault.
            self.open(fresh=True, again=True)
            return
        is_stream = self._phase is AttemptPhase.STREAMING
        when = "in the middle of the answer" if is_stream else "before an answer"
        error = UpstreamError(f"{reason} {when}", code="upstream_disconnected")
        if is_stream:
            self._guarded(self._finish_stream, error)
        else:
            self.fail(error, Fault.CUT if answered else Fault.HUNG_UP)

    def _guarded(self, take: Callable[..., None], *arguments: UpstreamError | bytes) -> None:
        """Whatever goes wrong in it ends the attempt."""
        try:
            take(*arguments)
        except (UpstreamError, LedgerFull) as error:
            self.fail(error)
        except Exception:
            self._host.on_fault()

    def _finish_stream(self, broken: UpstreamError) -> None:
        """No more events come. Whether the answer is whole is seen in them, not in the framing."""
        said = self._host.on_stream_end()
        was_cut = broken.code == "upstream_disconnected"
        if said is Meaning.DONE or (
            said is Meaning.FINISH and not (was_cut and self._run.format.needs_end)
        ):
            self._host.complete()
        elif said is Meaning.ERROR:
            self._on_told_error()
        else:
            self.fail(broken)

    def _on_told_error(self) -> None:
        """The upstream's own error event stands in the stream; the readers have it."""
        self.fail(UpstreamError("reported an error in the stream", code="upstream_error_event"))

    # --- plain answers --------------------------------------------------------------------------

    def _on_plain(self, data: bytes) -> None:
        self._guarded(self._take_plain, data)

    def _take_plain(self, data: bytes) -> None:
        run = self._run
        run.feed_plain(data)
        is_answer = self._reply.is_success and not run.request.streamed
        if not is_answer and run.attempt.held_bytes > MAX_ERROR_BYTES:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.abort()
            self._finish_plain(is_whole=False)

    def _finish_plain(self, *, is_whole: bool = True) -> None:
        """A whole body: the answer, or the upstream's own error, which may have been cut."""
        run, reply, target = self._run, self._reply, self.target
        body = b"".join(run.attempt.held)
        if reply.is_success:
            reply.check_answer(run.format, body, streamed=run.request.streamed)
            run.learn_id(body)
            run.transcript.count_plain(body)
            if run.response_id is not None and run.request.stored:
                run.transcript.keep_plain(body)
            self._host.answer = reply.pass_on(body)
            self._host.complete()
            return
        body = target.pool.secret.hide_bytes(body)
        wait_s = reply.retry_after_s(time.time())
        fault = fault_of_answer(
            reply.status, body, names_ours=target.names_ours, says_when=wait_s is not None
        )
        if not self._comes_again(fault, body, wait_s):
            error, answer = error_of(target, fault, reply, body, run.format, is_whole=is_whole)
            self.fail(error, fault, answer)

    def _comes_again(self, fault: Fault, body: bytes, wait_s: float | None) -> bool:
        """Notes when an upstream wants to be asked again, and waits if no other one is left."""
        run, reply, target, now_s = self._run, self._reply, self.target, self._loop.time()
        if wait_s is not None:
            target.pool.health.hold(target.model, wait_s, reply.status, now_s)
        if self._failover.has_more() or run.state is not RunState.CONNECTING:
            return False
        if VERDICTS[fault].is_ours:  # no credit comes back by waiting
            return False
        if fault is Fault.DOWN and reply.is_loading(body):
            if not has_time(run, now_s, LOADING_AGAIN_S, is_loading=True):
                return False
            loads = f'upstream "{target.pool.name}" is loading its model'
            self.ask_again_in(LOADING_AGAIN_S, loads)
            return True
        if wait_s is None or run.attempt.waits >= MOST_WAITS:
            return False
        if not (fits_hold(run, now_s, wait_s) and has_time(run, now_s, wait_s)):
            return False
        run.attempt.waits += 1
        why = f'upstream "{target.pool.name}" answered {reply.refusal(body)}'
        self.ask_again_in(wait_s, why)
        return True

    # --- what came of it ------------------------------------------------------------------------

    def fail(
        self,
        error: UpstreamError | LedgerFull,
        fault: Fault | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Report the failure: `fault` where it is known, `answer` what the upstream itself said."""
        if isinstance(error, LedgerFull):
            self.let_go()
            reason = self.target.pool.secret.hide(str(error))
            self._host.end(Trigger.FAIL, reason, error.code)
            return
        after = ""
        if self._run.state in {RunState.CONNECTING, RunState.STREAMING}:
            after = f", {self._loop.time() - self._asked_s:.1f} s after the request"
        status = self._reply.status
        failure = failure_of(self.target, error, fault, answer, status=status, after=after)
        self._failover.settle(self, failure)

    def expire(self, expiry: Expiry) -> None:
        """Report that the upstream took longer than a limit allows."""
        reason = f'upstream "{self.target.pool.name}" {expiry.reason}'
        if self._former and self._run.state is RunState.CONNECTING:
            # The clock of the try before ran on: that one had an answer, if no good one.
            reason = f"{self._former}; asked again, it {expiry.reason} in all"
        fault = FAULT_OF_CODE[expiry.limit]
        failure = Failure(fault, reason, expiry.limit, trigger=expiry.trigger)
        self._failover.settle(self, failure)

    def succeed(self) -> None:
        """Tell the upstream's health of the whole answer."""
        self._on_trial = False
        self.target.pool.succeeded(self.target.model, is_plain=not self._run.request.streamed)
        if self._phase is AttemptPhase.STREAMING and self._run.format.framing is not RAW:
            self._note_speed()

    def _note_speed(self) -> None:
        """How fast the answer came, for people who choose between models."""
        run, pool, model = self._run, self.target.pool, self.target.model
        took_s = self._loop.time() - self._begun_s
        if took_s <= 0.0 or run.window.next_seq < FEWEST_EVENTS:
            return
        if tokens := run.transcript.usage().output:
            pool.note_speed(model, tokens / took_s, "tokens/s")
        else:
            pool.note_speed(model, run.window.next_seq / took_s, "events/s")

    def judge(self, failure: Failure, caller: str) -> None:
        """Tell the upstream's health; what is only shown leaves a trial undecided."""
        pool, model, verdict = self.target.pool, self.target.model, VERDICTS[failure.fault]
        held = verdict.held
        if held is Held.ALIVE and not verdict.is_ours:
            self._on_trial = False
            pool.alive(model)
            return
        if failure.refusal is not None:
            pool.health.refuse(*failure.refusal, self._loop.time())
        is_plain = failure.fault is Fault.SILENT and not self._run.request.streamed
        if is_plain and pool.health.answered_since(model, self._run.attempt.started_s):
            held = Held.NOTHING  # it is slow, and answers others
        self._on_trial = self._on_trial and held is Held.NOTHING
        is_suspect = held is Held.SUSPECTED
        witness = Witness(caller, hash(self._run.body)) if is_suspect else None
        pool.failed(model, failure.reason, held, witness)

    def let_go(self) -> None:
        """Leave no connection, slot, timer or task behind."""
        if self._phase is AttemptPhase.OVER:
            return
        self._phase, self.on_body = AttemptPhase.OVER, _ignore
        pool = self.target.pool
        if self._on_trial:
            pool.health.gave_up(self.target.model, self._loop.time())
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None
        self._drop_connection()
        pool.release_slot()

    def _drop_connection(self) -> None:
        if self.connection is not None:
            self.connection.give_up(f"run {self._run.id}")
            self.connection = None
        if self._run.is_sending:
            self._run.sent()


def _ignore(data: bytes) -> None:
    """A piece of an answer that is not wanted any more."""
