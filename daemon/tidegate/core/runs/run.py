"""A run: one answer to one request, from the queue to its release.

There is one record and one path: every way an answer can end goes through `Run.end`, every way
its bytes can go through `Run.release`. End is about the answer (state, reason, the last events);
release is about memory (afterwards nothing of the run is held). They are apart because a finished
answer stays resumable for a while.

What happens when is a table (`core.runs.state`). Time comes in as `now_s`, on a monotonic clock;
nothing here reads, writes or waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats import CHAT
from tidegate.core.formats.base import MAX_ID_CHARS, About, ErrorText, Format, Meaning
from tidegate.core.formats.foreign_json import is_json
from tidegate.core.formats.framing import RAW
from tidegate.core.runs.advice import advise
from tidegate.core.runs.attempt import LOOK_EVERY_S, AttemptRecord
from tidegate.core.runs.ledger import RECORD_BYTES, Account, Entry
from tidegate.core.runs.state import TERMINAL, Census, RunState, Trigger, step
from tidegate.core.runs.transcript import Transcript
from tidegate.core.runs.window import Window
from tidegate.core.secret import NO_SECRET, Secret
from tidegate.core.settings import Limits

_STREAMING = RunState.STREAMING  # a member is searched for in its class, each time


class RunRequest(NamedTuple):
    """What was asked, beside the body; it stays as it is while the run goes its way."""

    model: str
    streamed: bool = True  # the answer comes as a stream, and can be resumed
    keep_running: bool = False  # that no subscriber is left is no reason to stop
    background: bool = False  # the creator comes back for the answer
    stored: bool = True  # whether the answer may be asked for by its id


class Run:
    """One answer to one request."""

    __slots__ = (
        "_is_taking", "abandoned_s", "account", "attempts", "body", "census", "created",
        "created_s", "delivered", "ended", "ended_s", "error_code", "first_output_s", "format",
        "id", "is_sending", "limits", "owner", "paused_s", "queued_s", "readers", "reason",
        "released", "request", "request_bytes", "response_id", "state", "transcript",
        "upstream_response_id", "window",
    )  # fmt: skip

    def __init__(
        self,
        *,
        run_id: str,
        owner: str,
        request: RunRequest,
        body: bytes,
        limits: Limits,
        account: Account,
        now_s: float,
        created: float,
        format: Format = CHAT,  # noqa: A002 - what it is called everywhere
    ) -> None:
        self.id = run_id
        self.owner = owner
        self.request = request
        self.format = format
        self.limits = limits
        self.account = account
        self.state = RunState.QUEUED
        self.census: Census | None = None  # where it is counted, while it is held
        self.reason: str | None = None
        self.error_code: str | None = None
        self.created_s = self.queued_s = now_s  # it has been waiting for a slot since `queued_s`
        self.created = created  # Unix seconds, for people
        self.request_bytes = len(body)
        self.first_output_s: float | None = None  # how long after the request it came
        self.ended_s: float | None = None
        self.ended: float | None = None
        self.released = self.delivered = False  # `delivered`: a reader has had all of it
        self.body = body  # kept as long as another attempt may need it
        self.is_sending = False  # an upstream has not taken all of it yet
        self.readers = 0  # subscribers attached
        self.abandoned_s: float | None = None  # since when it has had no subscriber
        self.paused_s: float | None = None  # since when we have not been reading
        self.attempts: list[AttemptRecord] = []
        self.upstream_response_id: str | None = None
        self.response_id: str | None = None  # what its creator calls it, where the format has that
        self._is_taking = True  # what an upstream still sends after the end is not kept
        self.window = Window(limits.window_bytes, format.framing if request.streamed else RAW)
        self.transcript = Transcript(format, self.window, account)
        account.set(Entry.BODY, len(body))
        account.set(Entry.RECORD, RECORD_BYTES)

    def __repr__(self) -> str:
        seqs = f"[{self.window.first_seq},{self.window.next_seq})"
        return f"<Run {self.id} {self.state.value} {seqs} {self.account.total_bytes} B>"

    @property
    def is_over(self) -> bool:
        """Whether the answer has ended, whatever way."""
        return self.state in TERMINAL

    @property
    def attempt(self) -> AttemptRecord:
        """The try under way."""
        return self.attempts[-1]

    # --- how many there are -----------------------------------------------------------------

    def join(self, census: Census) -> None:
        """Be counted there from now on, in whatever state the run is."""
        self.census = census
        census[self.state] += 1

    def leave_census(self) -> None:
        """Be counted no longer."""
        if self.census is not None:
            self.census[self.state] -= 1
            self.census = None

    def _become(self, state: RunState) -> None:
        if self.census is not None:
            self.census[self.state] -= 1
            self.census[state] += 1
        self.state = state

    # --- the answer grows -------------------------------------------------------------------

    def wait_for_slot(self, now_s: float) -> None:
        """Queue for the next try; what the former one held is released."""
        self._become(step(self.state, Trigger.QUEUE))
        self.queued_s = now_s
        self._drop_attempt()

    def begin_attempt(
        self, upstream: str, model: str, now_s: float, secret: Secret = NO_SECRET
    ) -> AttemptRecord:
        """Start the next try; what the former one held is released."""
        self._become(step(self.state, Trigger.ATTEMPT))
        self._drop_attempt()
        framer = self.format.framing.framer()
        attempt = AttemptRecord(len(self.attempts) + 1, upstream, model, now_s, framer, secret)
        attempt.last_event_s = now_s
        self.attempts.append(attempt)
        return attempt

    def try_again(self) -> None:
        """Go on with the same try: what went before was no failure, and its clock runs on."""
        assert self.state is RunState.CONNECTING
        self._drop_attempt(again=True)
        self.attempt.tries += 1

    def feed(self, data: bytes, now_s: float) -> bytes:
        """Take what was read from the upstream; returns what the subscribers are to be sent.

        Whole events only, possibly none; none before the first output, so that a failure can still
        fail over. Raises UpstreamError when the upstream says it failed or sends what cannot be
        kept, LedgerFull when there is no room.
        """
        if not self._is_taking:
            return b""
        attempt = self.attempts[-1]
        framer = attempt.framer
        partial_bytes = framer.partial_bytes
        block, events = framer.feed(data)
        said, framer.payloads = framer.payloads, ()
        if framer.partial_bytes != partial_bytes:
            self.account.set(Entry.PARTIAL, framer.partial_bytes)
        is_usual = events == 1 and said and now_s - attempt.proven_s < LOOK_EVERY_S
        if is_usual and self.state is _STREAMING and is_json(said[0]):
            attempt.last_event_s = now_s  # what `_take` comes to nearly always, at half the cost
            return self.transcript.append(block, 1, attempt.secret)
        return self._take(block, events, now_s, said) if events else b""

    def _take(self, block: bytes, events: int, now_s: float, said: Sequence[bytes] = ()) -> bytes:
        """Take whole events to the window, or hold them as long as the answer has not begun."""
        form, attempt = self.format, self.attempts[-1]
        readable = form.whole_events(block, events, said)
        if readable < events:
            block, events = form.without_empty(block)
            if not events:
                return b""
            readable = form.whole_events(block, events)
        if readable < events:
            if readable and self.state is RunState.STREAMING:
                block = b"".join(form.framing.split(block)[:readable])
                self.transcript.append(block, readable, attempt.secret)
            raise UpstreamError("sent an event that is not JSON", code="malformed_event")
        if self.state is not _STREAMING:
            begun = attempt.hold(form, block, events, self.learn_id)
            self.account.set(Entry.HELD, attempt.charged_bytes)
            return self._let_go(now_s) if begun else b""
        attempt.note(form, block, now_s)
        return self.transcript.append(block, events, attempt.secret)

    def learn_id(self, data: bytes) -> None:
        """Learn the upstream's id of the answer; its creator uses it too, unless told otherwise."""
        found = self.format.response_id(data)
        if found is not None and len(found) <= MAX_ID_CHARS:
            self.upstream_response_id = found
            if not self.request.background:  # a failover brings another one, until the first output
                self.response_id = found

    def _let_go(self, now_s: float) -> bytes:
        """Begin the answer: what was held moves to the window and is sent."""
        attempt = self.attempt
        attempt.last_event_s = attempt.proven_s = now_s
        self.first_output_s = now_s - self.created_s
        self._become(step(self.state, Trigger.OUTPUT))
        self._drop_body()  # no further attempt can follow
        block, events = attempt.take_held()
        self.account.set(Entry.HELD, 0)
        self.transcript.begin(block)
        return self.transcript.append(block, events, attempt.secret)

    def feed_plain(self, data: bytes) -> None:
        """Take a piece of an answer that is not a stream; it is sent whole, or not at all.

        Raises UpstreamError when it outgrows `max_body`, LedgerFull when there is no room.
        """
        if not self._is_taking:
            return
        attempt = self.attempts[-1]
        attempt.held.append(data)
        attempt.held_bytes += len(data)
        if attempt.held_bytes > (most := self.limits.max_body_bytes):
            what = f"sent an answer of more than max_body = {most} bytes"
            raise UpstreamError(what, code="answer_too_large")
        self.account.set(Entry.HELD, attempt.charged_bytes)

    def feed_end(self, now_s: float) -> tuple[bytes, Meaning]:
        """Take the upstream's end; returns the last block to send, and how the answer ended."""
        if not self._is_taking:
            return b"", Meaning.OPENING
        block, events = self.attempt.framer.finish()
        self.account.set(Entry.PARTIAL, 0)
        sent = self._take(block, events, now_s) if events else b""
        if self.state is not RunState.STREAMING:
            held = self.format.framing.split(b"".join(self.attempt.held))
            said = self.format.verdict(held)
            if said in {Meaning.DONE, Meaning.FINISH}:
                sent = self._let_go(now_s)
            return sent, said
        return sent, self.transcript.verdict()

    # --- what is told of it -----------------------------------------------------------------

    def error_events(self) -> list[bytes]:
        """Make the events that tell every reader why the answer broke off."""
        return self.format.error_events(self.error(), self.about())

    def error_block(self, reason: str, kind: str, code: str) -> bytes:
        """Make the block that tells one reader alone why it reads no further."""
        error = ErrorText(502, advise(reason, code), kind, code)
        return b"".join(self.format.error_events(error, self.about()))

    def error(self) -> ErrorText:
        """Say why there is no whole answer, as clients are told it."""
        return ErrorText(
            status=_ERROR_STATUS.get(self.state, 502),
            message=advise(self.reason or "there was no answer", self.error_code),
            type=_ERROR_KINDS.get(self.state, "upstream_error"),
            code=self.error_code or "failed",
        )

    def about(self) -> About:
        """Collect what an error event says of the answer that it ends."""
        return About(
            last_event=self.transcript.last_event,
            response_id=self.response_id or "",
            model=self.request.model,
            created=self.created,
            background=self.request.background,
        )

    # --- the answer ends --------------------------------------------------------------------

    def end(
        self, trigger: Trigger, reason: str | None, code: str | None, now_s: float, now: float
    ) -> bool:
        """End the answer, the one way to a terminal state. False if it was over already."""
        if self.is_over:
            return False
        self._become(step(self.state, trigger))
        self.reason, self.error_code = reason, code
        self.ended_s, self.ended = now_s, now
        self._is_taking = False
        if self.attempts:
            self.end_attempt(reason or self.state.value, now_s)
        self._drop_attempt()
        self._drop_body()
        return True

    def end_attempt(self, outcome: str, now_s: float) -> None:
        """Record what became of the try under way."""
        self.attempt.outcome = outcome
        self.attempt.ended_s = now_s

    def release(self) -> int:
        """Let go of everything but what subscribers' transports still hold; returns the bytes.

        What is outbound belongs to connections that close within their flush limit; the account
        is closed when they have.
        """
        self.released, self._is_taking, self.is_sending = True, False, False
        before = self.account.total_bytes
        self._drop_attempt()
        self._drop_body()
        self.window.trim(0)
        self.account.set(Entry.WINDOW, 0)
        self.account.set(Entry.RECORD, 0)
        return before - self.account.total_bytes

    def charge_record(self, beside_bytes: int) -> None:
        """Charge what is kept of the client's and the upstream's heads, beyond the usual ones."""
        with suppress(LedgerFull):  # charged all the same
            self.account.set(Entry.RECORD, max(RECORD_BYTES, RECORD_BYTES - 1024 + beside_bytes))

    def sending(self, held_bytes: int) -> None:
        """Charge what is held of the body that an upstream is being sent, until it has taken it."""
        self.is_sending = True
        with suppress(LedgerFull):  # charged all the same: what comes next is refused, not this
            self.account.set(Entry.BODY, held_bytes)

    def sent(self) -> None:
        """Charge the body alone: the upstream has taken all of it, or will take no more."""
        self.is_sending = False
        self.account.set(Entry.BODY, len(self.body))

    def _drop_body(self) -> None:
        """Drop the body, for no attempt can follow; while it is sent its connection holds it."""
        self.body = b""
        if not self.is_sending:
            self.account.set(Entry.BODY, 0)

    def _drop_attempt(self, *, again: bool = False) -> None:
        if self.attempts:
            self.attempt.drop(again=again)
        self.account.set(Entry.PARTIAL, 0)
        self.account.set(Entry.HELD, 0)

    def adopt(
        self,
        *,
        state: RunState,
        attempts: list[AttemptRecord],
        events: bytes,
        first_seq: int,
        next_seq: int,
        ended_s: float,
    ) -> None:
        """Become a run that ended in another process. Raises ValueError where that is untrue."""
        if state not in TERMINAL or not 0 <= first_seq <= next_seq:
            raise ValueError("only a finished run can be handed over")
        if len(self.window.framing.split(events)) != next_seq - first_seq:
            raise ValueError("the events of a run that was handed over do not add up")
        self._become(state)
        self.attempts, self.ended_s, self._is_taking = attempts, ended_s, False
        self.window.begin_at(first_seq)
        if events:
            self.window.append(events, next_seq - first_seq)
        self.account.set(Entry.WINDOW, self.window.held_bytes)

    # --- readers come and go, and the upstream waits for them ---------------------------------

    def attach(self) -> None:
        """Count a subscriber: the run is not abandoned, or no longer."""
        self.readers += 1
        self.abandoned_s = None

    def detach(self, now_s: float) -> None:
        """Count a subscriber no more; after the last one the disconnect grace begins."""
        self.readers -= 1
        assert self.readers >= 0, "more subscribers left than came"
        if self.readers == 0 and not self.is_over:
            self.abandoned_s = now_s

    def pause(self, now_s: float) -> None:
        """Stop the upstream's idle clock: it is not being read."""
        if self.paused_s is None:
            self.paused_s = now_s

    def resume(self, now_s: float) -> None:
        """Let the clocks run on: the upstream is read again."""
        if self.paused_s is not None and self.attempts:
            is_connecting = self.state is RunState.CONNECTING
            self.attempt.pause_clocks(self.paused_s, now_s, is_connecting=is_connecting)
        self.paused_s = None


_ERROR_STATUS = {RunState.FAILED: 502, RunState.CANCELLED: 409, RunState.EXPIRED: 504}
_ERROR_KINDS = {
    RunState.FAILED: "upstream_error",
    RunState.CANCELLED: "cancelled",
    RunState.EXPIRED: "timeout_error",
}
