"""A run: one answer to one request, from the queue to its release.

There is one record and one path: every way an answer can end goes through `Run.end`, every way
its bytes can go through `Run.release`. End is about the answer (state, reason, the last events);
release is about memory (afterwards nothing of the run is held). They are apart because a finished
answer stays resumable for a while.

What happens when is a table (`core.runs.state`). Time comes in as `now_s`, on a monotonic clock;
nothing here reads, writes or waits.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats import CHAT
from tidegate.core.formats.base import (
    KEEP_ALIVES,
    MAX_ID_CHARS,
    OUTPUT,
    TAIL_EVENTS,
    About,
    ErrorText,
    Format,
    Meaning,
    Rewrite,
    may_say,
    stronger,
)
from tidegate.core.formats.framing import RAW, Framer
from tidegate.core.formats.sse import SseFramer
from tidegate.core.runs.advice import advise
from tidegate.core.runs.ledger import RECORD_BYTES, Account, Entry
from tidegate.core.runs.state import TERMINAL, Census, Happening, State, step
from tidegate.core.runs.window import Cursor, Window
from tidegate.core.secret import NO_SECRET, Secret
from tidegate.core.settings import Limits

# What an attempt may hold back while it waits for the first output: enough for any preamble seen,
# little enough that a chatty upstream cannot hide an answer from its reader.
HOLD_EVENTS = 64
HOLD_BYTES = 256 * 1024
# How long after an event that brought the answer further the next ones are taken for such without
# a look: to read each would cost as much as framing it.
LOOK_EVERY_S = 0.25
_TROUBLE = (b"error", b"failed")  # one of these is in every event that reports an error
_NO_CHOICES: frozenset[int] = frozenset()
PIECE_BYTES = sys.getsizeof(b"") + 8  # what a held piece costs beside its content


@dataclass(slots=True)
class Attempt:
    """One try at one upstream. Until its first output it holds what it received."""

    number: int
    upstream: str
    model: str
    started_s: float
    framer: Framer = field(default_factory=SseFramer)
    tries: int = 1  # asked again where that was no failure: told to wait, a dead idle connection
    waits: int = 0  # of these, because the upstream said when to come again
    last_event_s: float = 0.0  # real events only, no keep-alives
    proven_s: float = 0.0  # when one was last seen to be real
    request_id: str | None = None  # the upstream's own name for it
    ended_s: float | None = None
    held: list[bytes] = field(default_factory=list)
    held_events: int = 0
    held_bytes: int = 0
    outcome: str | None = None  # why it ended, for people
    secret: Secret = NO_SECRET  # what it may not repeat where it reports an error

    @property
    def charged_bytes(self) -> int:
        """The memory that the held pieces take."""
        return self.held_bytes + PIECE_BYTES * len(self.held)

    def drop(self) -> None:
        """Lets go of every byte."""
        self.held.clear()
        self.held_bytes = self.held_events = 0
        self.framer = type(self.framer)()


class Run:
    """One answer to one request."""

    __slots__ = (
        "_finished",
        "_framing",
        "_is_taking",
        "_is_whole",
        "_judged_seq",
        "_said",
        "abandoned_s",
        "account",
        "attempts",
        "background",
        "body",
        "census",
        "created",
        "created_s",
        "delivered",
        "ended",
        "ended_s",
        "error_code",
        "format",
        "id",
        "is_sending",
        "keep_running",
        "limits",
        "model",
        "owner",
        "paused_s",
        "queued_s",
        "readers",
        "reason",
        "released",
        "response_id",
        "rewrite",
        "state",
        "stored",
        "streamed",
        "upstream_response_id",
        "window",
    )

    def __init__(
        self,
        *,
        run_id: str,
        owner: str,
        model: str,
        body: bytes,
        limits: Limits,
        account: Account,
        now_s: float,
        created: float,
        streamed: bool = True,
        keep_running: bool = False,
        format: Format = CHAT,  # noqa: A002 - what it is called everywhere
    ) -> None:
        self.id = run_id
        self.format = format
        self.owner = owner
        self.model = model
        self.limits = limits
        self.account = account
        self.state = State.QUEUED
        self.census: Census | None = None  # where it is counted, while it is held
        self.reason: str | None = None
        self.error_code: str | None = None
        self.created_s = now_s
        self.queued_s = now_s  # since when it has been waiting for a place
        self.created = created  # Unix seconds, for people
        self.ended_s: float | None = None
        self.ended: float | None = None
        self.released = False
        self.delivered = False  # somebody has had all of it
        self.streamed = streamed
        self.keep_running = keep_running  # nobody listening is no reason to stop
        self.body = body  # kept as long as another attempt may need it
        self.is_sending = False  # an upstream has not taken all of it yet
        self.readers = 0  # subscribers attached
        self.abandoned_s: float | None = None  # since when nobody has been listening
        self.paused_s: float | None = None  # since when we have not been reading
        self.attempts: list[Attempt] = []
        self._is_taking = True  # what an upstream still sends after the end is nobody's
        self._said = Meaning.OPENING  # what events said that the window could not hold
        self._finished: frozenset[int] = _NO_CHOICES  # of several, those that said why they end
        self._judged_seq = -1  # up to where it was asked whether the answer is whole
        self._is_whole = False
        self._framing = format.framing if streamed else RAW
        self.window = Window(limits.window_bytes, self._framing)
        self.background = False  # its creator comes back for it
        self.stored = True  # whether it may be asked for by that id
        self.upstream_response_id: str | None = None
        self.response_id: str | None = None  # what its creator calls it, where the format has that
        self.rewrite: Rewrite | None = None
        account.set(Entry.BODY, len(body))
        account.set(Entry.RECORD, RECORD_BYTES)

    def __repr__(self) -> str:
        seqs = f"[{self.window.first_seq},{self.window.next_seq})"
        return f"<Run {self.id} {self.state.value} {seqs} {self.account.total_bytes} B>"

    @property
    def is_over(self) -> bool:
        """The answer has ended, whatever way."""
        return self.state in TERMINAL

    @property
    def attempt(self) -> Attempt:
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

    def _become(self, state: State) -> None:
        if self.census is not None:
            self.census[self.state] -= 1
            self.census[state] += 1
        self.state = state

    # --- the answer grows -------------------------------------------------------------------

    def wait_for_place(self, now_s: float) -> None:
        """The next try has to wait; what the former one held is released."""
        self._become(step(self.state, Happening.QUEUE))
        self.queued_s = now_s
        if self.attempts:
            self._drop_attempt()

    def begin_attempt(
        self, upstream: str, model: str, now_s: float, secret: Secret = NO_SECRET
    ) -> Attempt:
        """Starts the next try; what the former one held is released."""
        self._become(step(self.state, Happening.ATTEMPT))
        if self.attempts:
            self._drop_attempt()
        framer = self.format.framing.framer()
        attempt = Attempt(len(self.attempts) + 1, upstream, model, now_s, framer)
        attempt.secret = secret
        attempt.last_event_s = now_s
        self.attempts.append(attempt)
        return attempt

    def try_again(self) -> None:
        """The same try once more: what went before was no failure, and its clock runs on."""
        assert self.state is State.CONNECTING
        self._drop_attempt()
        self.attempt.tries += 1

    def feed(self, data: bytes, now_s: float) -> bytes:
        """Takes what was read from the upstream; returns what the subscribers are to be sent.

        Whole events only, possibly none. Before the first output they are held, so that a failure
        can still fail over. Raises UpstreamError when the upstream says it failed or sends what
        cannot be kept, LedgerFull when there is no room.
        """
        if not self._is_taking:
            return b""
        attempt = self.attempts[-1]
        block, events = attempt.framer.feed(data)
        self.account.set(Entry.PARTIAL, attempt.framer.partial_bytes)
        if not events:
            return b""
        return self._take(block, events, now_s, is_plain=attempt.framer.is_plain)

    def _take(self, block: bytes, events: int, now_s: float, *, is_plain: bool = False) -> bytes:
        """Whole events: to the window, or held as long as the answer has not begun."""
        form, attempt = self.format, self.attempts[-1]
        readable = form.whole_events(block, events, is_plain=is_plain)
        if readable < events:
            block, events = form.without_empty(block)
            if not events:
                return b""
            readable = form.whole_events(block, events)
        if readable < events:
            if readable and self.state is State.STREAMING:
                block = b"".join(form.framing.split(block)[:readable])
                self._append(block, readable)
            raise UpstreamError("sent an event that is not JSON", code="malformed_event")
        if self.state is not State.STREAMING:
            return self._hold(block, now_s)
        if now_s - attempt.proven_s < LOOK_EVERY_S:
            attempt.last_event_s = now_s
        elif form.gets_on(block):
            attempt.last_event_s = attempt.proven_s = now_s
        return self._append(block, events)

    def _append(self, block: bytes, events: int) -> bytes:
        """Adds to the window; returns what was added.

        What the window can't hold is asked at once how it bears on the end.
        """
        window = self.window
        if self.attempts[-1].secret and any(may_say(word, block) for word in _TROUBLE):
            block = self._without_key(block)
        if self.rewrite is not None:
            block, events = self.rewrite(block, events, window.next_seq)
            if not events:
                return b""
        if self.format.choices > 1 and len(self._finished) < self.format.choices:
            self._finished |= self.format.finished_choices(block)
        window.append(block, events)
        self.account.set(Entry.WINDOW, window.held_bytes)
        if window.first_seq and window.next_seq - window.first_seq < TAIL_EVENTS:
            events_then = self.format.framing.split(block)
            self._said = stronger(self._said, self.format.verdict(events_then))
        return block

    def _without_key(self, block: bytes) -> bytes:
        """The block, with the key that the upstream was sent hidden where it reports an error."""
        form, secret = self.format, self.attempts[-1].secret
        return b"".join(
            secret.hide_bytes(event) if form.meaning(event) is Meaning.ERROR else event
            for event in form.framing.split(block)
        )

    def _hold(self, block: bytes, now_s: float) -> bytes:
        """Keeps a preamble back until the answer has begun.

        What says nothing never makes it begin: it is not kept twice in a row, nor once the hold is
        full. Any other preamble that outgrows the hold is let go before its first output.
        """
        form, attempt = self.format, self.attempt
        begun = False
        kept: list[bytes] = []
        size = attempt.held_bytes
        events = form.framing.split(block)
        for number, event in enumerate(events):
            said = form.meaning(event)
            if said is Meaning.ERROR:
                told = form.told_error(event)
                raise UpstreamError(
                    f"reported an error{told.label}",
                    code="upstream_error_event",
                    said=told.body,
                    status=told.status,
                )
            self.learn_id(form.framing.data(event))
            if begun := said in OUTPUT:
                kept += events[number:]
                break
            is_full = attempt.held_events + len(kept) >= HOLD_EVENTS or size >= HOLD_BYTES
            if said in form.idle_meanings and (is_full or self._repeats(event, said, kept)):
                continue
            kept.append(event)
            size += len(event)
            if is_full:
                begun = True
                kept += events[number + 1 :]
                break
        if not kept:
            return b""
        attempt.held.append(block if len(kept) == len(events) else b"".join(kept))
        attempt.held_events += len(kept)
        attempt.held_bytes += len(attempt.held[-1])
        self.account.set(Entry.HELD, attempt.charged_bytes)
        return self._let_go(now_s) if begun else b""

    def _repeats(self, event: bytes, said: Meaning, kept: list[bytes]) -> bool:
        """Whether it says nothing, as the event before it did."""
        if said is not Meaning.KEEP_ALIVE:
            return False
        form, held = self.format, self.attempt.held
        if kept:
            before = kept[-1]
        elif held:
            before = form.framing.last(held[-1], 1)[0]
        else:
            return form.framing.event_name(event) in KEEP_ALIVES  # of no use before anything else
        names = {form.framing.event_name(each) for each in (before, event)}
        return len(names) == 1 and form.meaning(before) is Meaning.KEEP_ALIVE

    def learn_id(self, data: bytes) -> None:
        """What the upstream calls the answer; its creator does so too, unless told otherwise."""
        found = self.format.response_id(data)
        if found is not None and len(found) <= MAX_ID_CHARS:
            self.upstream_response_id = found
            if not self.background:  # a failover brings another one, until the first output
                self.response_id = found

    def _let_go(self, now_s: float) -> bytes:
        """The answer has begun: what was held moves to the window and is sent."""
        attempt = self.attempt
        attempt.last_event_s = attempt.proven_s = now_s
        self._become(step(self.state, Happening.OUTPUT))
        self._drop_body()  # no further attempt can follow
        block = b"".join(attempt.held)
        events = attempt.held_events
        attempt.held.clear()
        attempt.held_bytes = attempt.held_events = 0
        self.account.set(Entry.HELD, 0)
        return self._append(block, events)

    def feed_plain(self, data: bytes) -> None:
        """Takes a piece of an answer that is not a stream; it is sent whole, or not at all.

        Raises UpstreamError when it outgrows `max_body`, LedgerFull when there is no room.
        """
        if not self._is_taking:
            return
        attempt = self.attempts[-1]
        attempt.held.append(data)
        attempt.held_bytes += len(data)
        if attempt.held_bytes > self.limits.max_body_bytes:
            raise UpstreamError(
                f"sent an answer of more than max_body = {self.limits.max_body_bytes} bytes",
                code="answer_too_large",
            )
        self.account.set(Entry.HELD, attempt.charged_bytes)

    def keep_plain(self, body: bytes) -> None:
        """Keeps a whole answer for whoever asks for it again; as long as there is room."""
        self.window.append(body, 1)
        try:
            self.account.set(Entry.WINDOW, self.window.held_bytes)
        except LedgerFull:
            self.shrink(0)

    def feed_end(self, now_s: float) -> tuple[bytes, Meaning]:
        """The upstream has nothing more: the last block to send, and how the answer ended."""
        if not self._is_taking:
            return b"", Meaning.OPENING
        block, events = self.attempt.framer.finish()
        self.account.set(Entry.PARTIAL, 0)
        sent = self._take(block, events, now_s) if events else b""
        if self.state is not State.STREAMING:
            held = self.format.framing.split(b"".join(self.attempt.held))
            said = self.format.verdict(held)
            if said in {Meaning.DONE, Meaning.FINISH}:
                sent = self._let_go(now_s)
            return sent, said
        return sent, self.verdict()

    def verdict(self) -> Meaning:
        """How the answer ended, as far as it has come: see `Format.verdict`."""
        said = stronger(self._said, self.format.verdict(self.window.last_events(TAIL_EVENTS)))
        all_finished = len(self._finished) >= self.format.choices > 1
        return Meaning.FINISH if all_finished and said is Meaning.OPENING else said

    def lacks_only_end(self) -> bool:
        """Whether it has said why it ends, so that nothing but the terminal marker is to come."""
        if self._judged_seq != self.window.next_seq:
            self._judged_seq = self.window.next_seq
            self._is_whole = not self.format.needs_end and self.verdict() is Meaning.FINISH
        return self._is_whole

    def append_end(self) -> bytes:
        """Records the terminal marker that the upstream left out, where the format has one."""
        return self._append_ours([self.format.end_marker])

    def shrink(self, keep_bytes: int) -> None:
        """Drops the oldest events, for memory; what they say about the end is kept."""
        window = self.window
        if window.held_bytes > keep_bytes:
            self._said = self.verdict()
            window.trim(keep_bytes)
            self.account.set(Entry.WINDOW, window.held_bytes)

    def has_told_error(self) -> bool:
        """Whether the upstream's own error stands in the stream, with all that belongs to it."""
        if self.verdict() is not Meaning.ERROR:
            return False
        return not self.format.is_error_open(b"".join(self.window.last_events(1)))

    def append_error(self) -> bytes:
        """Records the events that tell every reader why the answer broke off."""
        return self._append_ours(self._error_events(self.error()))

    def _append_ours(self, events: list[bytes]) -> bytes:
        block = b"".join(events)
        self.window.append(block, len(events))
        with suppress(LedgerFull):  # charged all the same; how it ended must reach the reader
            self.account.set(Entry.WINDOW, self.window.held_bytes)
        return block

    def error_block(self, reason: str, kind: str, code: str) -> bytes:
        """The same for one reader alone, unrecorded."""
        error = ErrorText(502, advise(reason, code), kind, code)
        return b"".join(self._error_events(error))

    def error(self) -> ErrorText:
        """Why there is no whole answer, as callers are told it."""
        return ErrorText(
            status=_ERROR_STATUS.get(self.state, 502),
            message=advise(self.reason or "there was no answer", self.error_code),
            type=_ERROR_KINDS.get(self.state, "upstream_error"),
            code=self.error_code or "failed",
        )

    def about(self) -> About:
        """What an error event says of the answer that it ends."""
        return About(
            last_event=b"".join(self.window.last_events(1)),
            response_id=self.response_id or "",
            model=self.model,
            created=self.created,
            background=self.background,
        )

    def _error_events(self, error: ErrorText) -> list[bytes]:
        return self.format.error_events(error, self.about())

    # --- the answer ends --------------------------------------------------------------------

    def end(
        self, happening: Happening, reason: str | None, code: str | None, now_s: float, now: float
    ) -> bool:
        """Ends the answer; the one way to a terminal state. False if it was over already."""
        if self.is_over:
            return False
        self._become(step(self.state, happening))
        self.reason = reason
        self.error_code = code
        self.ended_s = now_s
        self.ended = now
        self._is_taking = False
        if self.attempts:
            self.end_attempt(reason or self.state.value, now_s)
            self._drop_attempt()
        self._drop_body()
        return True

    def end_attempt(self, outcome: str, now_s: float) -> None:
        """What became of the try under way."""
        self.attempt.outcome = outcome
        self.attempt.ended_s = now_s

    def release(self) -> int:
        """Lets go of everything but what subscribers' transports still hold; returns the bytes.

        What is outbound belongs to connections that close within their flush limit; the account
        is closed when they have.
        """
        self.released = True
        self._is_taking = False
        before = self.account.total_bytes
        if self.attempts:
            self._drop_attempt()
        self.is_sending = False
        self._drop_body()
        self.window.trim(0)
        self.account.set(Entry.WINDOW, 0)
        self.account.set(Entry.RECORD, 0)
        return before - self.account.total_bytes

    def charge_record(self, beside_bytes: int) -> None:
        """Counts what is kept of heads, the client's and the upstream's; usual ones are counted."""
        with suppress(LedgerFull):  # charged all the same
            self.account.set(Entry.RECORD, max(RECORD_BYTES, RECORD_BYTES - 1024 + beside_bytes))

    def sending(self, held_bytes: int) -> None:
        """An upstream is being sent the body, for which so much is held until it has taken it."""
        self.is_sending = True
        with suppress(LedgerFull):  # charged all the same: what comes next is refused, not this
            self.account.set(Entry.BODY, held_bytes)

    def sent(self) -> None:
        """The upstream has taken all of the body, or will take no more of it."""
        self.is_sending = False
        self.account.set(Entry.BODY, len(self.body))

    def _drop_body(self) -> None:
        """No further attempt can follow; what is being sent is held by its connection."""
        self.body = b""
        if not self.is_sending:
            self.account.set(Entry.BODY, 0)

    def _drop_attempt(self) -> None:
        self.attempt.drop()
        self.account.set(Entry.PARTIAL, 0)
        self.account.set(Entry.HELD, 0)

    def adopt(
        self,
        *,
        state: State,
        reason: str | None,
        attempts: list[Attempt],
        events: bytes,
        first_seq: int,
        next_seq: int,
        ended_s: float,
        ended: float,
    ) -> None:
        """Becomes a run that ended in another process. Raises ValueError where that is untrue."""
        if state not in TERMINAL or not 0 <= first_seq <= next_seq:
            raise ValueError("only a finished run can be handed over")
        if len(self._framing.split(events)) != next_seq - first_seq:
            raise ValueError("the events of a run that was handed over do not add up")
        self._become(state)
        self.reason, self.attempts = reason, attempts
        self._is_taking = False
        self.ended_s, self.ended = ended_s, ended
        self.window.end = Cursor(first_seq, 0)
        if events:
            self.window.append(events, next_seq - first_seq)
        self.account.set(Entry.WINDOW, self.window.held_bytes)

    # --- readers come and go ------------------------------------------------------------------

    def attach(self) -> None:
        """A subscriber reads the run: it is not abandoned, or no longer."""
        self.readers += 1
        self.abandoned_s = None

    def detach(self, now_s: float) -> None:
        """A subscriber has gone; after the last one the disconnect grace begins."""
        self.readers -= 1
        assert self.readers >= 0, "more subscribers left than came"
        if self.readers == 0 and not self.is_over:
            self.abandoned_s = now_s

    # --- the answer waits -------------------------------------------------------------------

    def pause(self, now_s: float) -> None:
        """We stop reading the upstream: its idle clock stands still."""
        if self.paused_s is None:
            self.paused_s = now_s

    def resume(self, now_s: float) -> None:
        """We read on."""
        if self.paused_s is not None and self.attempts:
            attempt = self.attempt
            attempt.last_event_s += now_s - max(self.paused_s, attempt.last_event_s)
            if self.state is State.CONNECTING:
                attempt.started_s += now_s - max(self.paused_s, attempt.started_s)
        self.paused_s = None

    def statistics(self) -> dict[str, int]:
        """The buffers by name, in bytes."""
        return {entry.name.lower(): self.account.entries[entry] for entry in Entry}


_ERROR_STATUS = {State.FAILED: 502, State.CANCELLED: 409, State.EXPIRED: 504}
_ERROR_KINDS = {
    State.FAILED: "upstream_error",
    State.CANCELLED: "cancelled",
    State.EXPIRED: "timeout_error",
}
