"""What the relay must know of a wire format: one small description each, one relay for all.

Where the model's name is, what counts as output, what ends an answer, how an error is told, what
keeps a silent connection alive. The relay itself handles bytes; a description looks into an event
only before the first output and at the very end. In between an event is only asked whether it is
JSON at all, for a client's parser would die of one that isn't, and once a second whether
the answer gets on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw, Struct

from tidegate.core.formats import multipart
from tidegate.core.formats.counting import NO_COUNTS, USAGE, Counts, last_counts
from tidegate.core.formats.foreign_json import (
    JsonReader,
    OtherShape,
    UnreadableJson,
    are_json,
    as_name,
    is_json,
    is_object,
    is_utf8,
    members_of,
)
from tidegate.core.formats.framing import SSE, Framing
from tidegate.core.formats.members import members
from tidegate.core.records.usage import TokenUsage

Piece = bytes | memoryview  # of a request's body

# A body with more colons than this may have more members than can be decoded: 10 MB of objects.
MOST_DECODED = 50_000
LARGE_BYTES = 64 * 1024  # a value from here on is sent from where it lies
TAIL_EVENTS = 8  # what ends an answer, usage and marker included; some upstreams add one or two
COMMENT = b": tidegate\n"  # one newline: a comment that every client's parser skips


class Meaning(Enum):
    """What one event says."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and costs 0.3 us each time

    KEEP_ALIVE = "keep-alive"  # says nothing: a ping, an empty delta
    OPENING = "opening"  # a role, an empty block: the answer has not begun
    OUTPUT = "output"
    FINISH = "finish"  # says why the answer ends: a finish_reason, a stop_reason
    DONE = "done"  # the terminal marker
    ERROR = "error"
    OTHER = "other"  # not an event of this format: passed on as it is


# To search for a member in its class takes as long each time as to look into an event's fields.
_OUTPUT, _ERROR, _OPENING = Meaning.OUTPUT, Meaning.ERROR, Meaning.OPENING
_FINISH, _DONE = Meaning.FINISH, Meaning.DONE

# With any of these the answer has begun. What cannot be read counts: it may be the answer.
OUTPUT = frozenset({Meaning.OUTPUT, Meaning.FINISH, Meaning.DONE, Meaning.OTHER})


class ErrorText(NamedTuple):
    """An error as callers are told it; a format gives it its shape."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None


Shape = Callable[[ErrorText], bytes]


class ToldError(NamedTuple):
    """An upstream's own error, found where an answer should be."""

    status: int
    body: bytes  # in the caller's format
    label: str  # " (overloaded_error)", or nothing: see `error_label`


class About(NamedTuple):
    """The answer that an error event ends."""

    last_event: bytes
    response_id: str
    model: str
    created: float  # Unix seconds
    background: bool = False


class Rewrite(Protocol):
    """Makes of an upstream's events what the creator is sent; most pass as they are."""

    usage: TokenUsage  # of the answer, where it was told and is not passed on

    def __call__(self, block: bytes, events: int, first_seq: int) -> tuple[bytes, int]:
        """Rewrite a block; returns it and its number of events. The first is `first_seq`."""


class RequestInfo(NamedTuple):
    """The part of a request that routing needs; everything else passes untouched."""

    model: str
    stream: bool
    keep_running: bool = False  # when the last reader has gone
    background: bool = False  # the creator comes back for it
    previous: str | None = None  # the id of the answer that this one goes on from
    store: bool = True


class _Request(Struct):
    model: str
    stream: bool | None = None


class _Answer(Struct):
    error: Raw = Raw()


class _Said(Struct):
    """An error object, or what it lies in. Raw: what else is in it may be large."""

    code: Raw = Raw()
    type: Raw = Raw()
    error: Raw = Raw()
    response: Raw = Raw()


# "rate_limit_exceeded", "InternalServerError", "429": words without digits, or a short number. A
# key is neither.
_LABEL = re.compile(r"(?=.{1,40}$)[A-Za-z]+(?:[_.-][A-Za-z]+)*|[0-9]{1,5}")
MAX_ID_CHARS = 200  # of an answer; a longer one cannot be asked for by our routes
MAX_MODEL_CHARS = 1024  # it stays with its run, in listings and in log lines
MAX_WORD_BYTES = 200  # of an error's code or type, as JSON
_ERROR_STATUS = re.compile(r"[45][0-9]{2}")
_ESCAPED = re.compile(rb"\\u00[2-7]")  # of ASCII; no server is known to, but any may
_request = JsonReader(_Request)
_answer = JsonReader(_Answer)
_said = JsonReader(_Said)
_value = JsonReader(object)
_any = msgspec.json.Decoder(Raw).decode
# The types of events that some upstreams send into a silence, whatever the format.
KEEP_ALIVES = frozenset({"keepalive", "ping"})
EMPTY = frozenset({b"null", b'""'})  # a piece of text without any
NOTHING = EMPTY | {b"", b"[]"}  # a member that is as good as absent

# What an error event that opens a 200 would have been as a status.
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "invalid_prompt": 400,
}


class Format:
    """One wire format. Stateless: a run carries the description, not a copy of it."""

    name = ""
    path = ""  # at the upstream, behind its base URL
    at_root = False  # or behind its root, past the "/v1" of a base URL
    framing: Framing = SSE
    streams = True  # whether it can stream at all
    streams_unasked = False  # whether it does so unless told not to
    answers_json = True  # what is not a stream is JSON
    accept = "application/json"
    needs_end = False  # what is done so far is all only where the body has its own end
    keep_alive: bytes | None = COMMENT  # None: nothing can be said, so the head is held back
    # What an upstream may say for ever without getting on.
    idle_meanings = frozenset({Meaning.KEEP_ALIVE})
    choices = 1  # answers in one; it is whole when each has said why it ends
    count_words: tuple[bytes, ...] = (USAGE,)  # one of these stands where tokens are counted
    only_input = False  # the answer is not made of tokens
    end_marker = b""  # what an answer that is whole lacks, where its upstream left it out
    forwarded: tuple[str, ...] = ()  # the client's headers that the upstream needs

    # --- requests -----------------------------------------------------------------------------

    def of_request(self, body: bytes, content_type: str) -> Format:
        """Give the format of this very request's answer, where a request may ask for another."""
        return self

    def parse_request(self, body: bytes, content_type: str) -> RequestInfo:
        """Read what routing needs. Raises ValueError with a sentence for the client."""
        if content_type.startswith("multipart/"):
            fields = multipart.fields(body, content_type, ("model", "stream"))
            if "model" not in fields:
                raise ValueError("the form has no field `model`")
            wanted = _Request(fields["model"], fields.get("stream", "").lower() in {"true", "1"})
        else:
            try:
                wanted = _request(body)
            except OtherShape as error:
                raise ValueError(
                    f"the request body is not a {self.name} request: {error}"
                ) from None
            except UnreadableJson as error:
                raise ValueError(f"the request body is not valid JSON: {error}") from None
        if len(wanted.model) > MAX_MODEL_CHARS:
            raise ValueError(f"the model's name is longer than {MAX_MODEL_CHARS} characters")
        stream = self.streams_unasked if wanted.stream is None else wanted.stream
        return RequestInfo(wanted.model, self.streams and stream)

    def asking_usage(self, body: bytes) -> dict[str, Raw | None] | None:
        """Give what makes an upstream count tokens where the client did not ask; None: nothing."""
        return None

    # --- events -------------------------------------------------------------------------------

    def meaning(self, event: bytes) -> Meaning:
        """Classify one event. What cannot be read is OTHER: it is not ours to judge."""
        raise NotImplementedError

    def may_end(self, block: bytes) -> bool:
        """Say whether the terminal marker may be the last event; cheap enough for every block."""
        raise NotImplementedError

    def whole_events(self, block: bytes, events: int, payloads: Sequence[bytes] = ()) -> int:
        """Count the events before the first that a client's parser would die of.

        Each is judged by itself: two halves of a value are none. `payloads` are the framer's.
        """
        payloads = payloads or self.framing.payloads(block)
        is_text = block.isascii() or is_utf8(block)
        ends = payloads and payloads[-1].strip() == self.framing.marker
        if is_text and are_json(payloads[:-1] if ends else payloads):
            return events
        for number, payload in enumerate(payloads):
            try:
                _any(payload)
            except (msgspec.DecodeError, RecursionError):
                if not (payload.strip() == self.framing.marker or is_json(payload)):
                    return number
            if not (is_text or is_utf8(payload)):
                return number
        return events

    def gets_on(self, block: bytes) -> bool:
        """Say whether any event of the block brings the answer further."""
        if self.meaning(self.framing.last(block, 1)[0]) not in self.idle_meanings:
            return True  # nearly always
        return any(
            self.meaning(event) not in self.idle_meanings for event in self.framing.each(block)
        )

    def finished_choices(self, block: bytes) -> set[int]:
        """Find which of several choices say in it why they end, by number."""
        return set()

    def without_empty(self, block: bytes) -> tuple[bytes, int]:
        """Drop the events that say nothing; returns the block and its number of events.

        Some servers send `data:` alone to keep a connection alive; JSON parsers die of it.
        """
        kept = [each for each in self.framing.split(block) if self.framing.data(each).strip()]
        return b"".join(kept), len(kept)

    def verdict(self, last_events: list[bytes]) -> Meaning:
        """Say how an answer ended, by its last events: ERROR, DONE, FINISH, or OPENING if it broke.

        A finish_reason without the marker is a completion, unless more output came after it; an
        error anywhere in the end is one.
        """
        end, goes_on = _OPENING, False
        for event in reversed(last_events[-TAIL_EVENTS:]):
            if end is not _OPENING and not may_say(b"error", event):
                continue
            said = self.meaning(event)
            if said is _ERROR:
                return said
            if said is _DONE or (said is _FINISH and not goes_on):
                end = stronger(end, said)
            goes_on = goes_on or said is _OUTPUT
        return end

    def response_id(self, data: bytes) -> str | None:
        """Find the answer's id in an opening event or a whole answer, where it can be asked for."""
        return None

    def opening_counts(self, block: bytes) -> Counts:
        """Find what an answer's first events tell of its tokens, where the last ones may not."""
        return NO_COUNTS

    def usage(self, last_events: Sequence[bytes], opening: Counts = NO_COUNTS) -> TokenUsage:
        """Find what a stream took in tokens, where its end says so."""
        told = last_counts(last_events, self.count_words, self.framing.data)
        return told.after(opening).usage()

    def usage_of(self, answer: bytes, *, streamed: bool) -> TokenUsage:
        """Find what an answer took in tokens, where it says so; it is whole."""
        if streamed:
            return self.usage(self.framing.last(answer, TAIL_EVENTS), self.opening_counts(answer))
        told = last_counts((answer,), self.count_words, bytes)
        return told.usage(only_input=self.only_input)

    # --- errors -------------------------------------------------------------------------------

    def error_body(self, error: ErrorText) -> bytes:
        """Write an error as a whole answer."""
        raise NotImplementedError

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        """Write the events on which the official clients raise."""
        raise NotImplementedError

    def is_error_open(self, last_event: bytes) -> bool:
        """Say whether more has to follow the error that an upstream told, as its last event."""
        return False

    def told_error(self, event: bytes) -> ToldError:
        """Read the error event that opens a stream."""
        data = self.framing.data(event)
        return ToldError(status_of_error(data), data, error_label(data))

    def error_in(self, body: bytes) -> ToldError | None:
        """Find the error in a whole answer that claims to be none (OpenRouter sends such)."""
        try:
            error = _answer(body).error
        except UnreadableJson:
            return None
        if len(memoryview(error)) <= 5 and bytes(error) in {b"", b"null", b"false", b'""', b"{}"}:
            return None
        return ToldError(status_of_error(body), body, error_label(body))


def with_values(body: bytes, content_type: str, values: Mapping[str, Raw | None]) -> list[Piece]:
    """Replace some values of a request, or leave them out; every other one keeps its bytes.

    In pieces: whatever is large is a view of `body`, for a second copy of it would be in no ledger.
    Raises ValueError where the body cannot be taken apart.
    """
    if content_type.startswith("multipart/"):
        texts = {n: msgspec.json.decode(value, type=str) for n, value in values.items() if value}
        return multipart.with_fields(body, content_type, texts)
    try:
        many = body.count(b":") > MOST_DECODED
        fields: dict[str, Raw | memoryview]
        fields = dict(members(body) if many else members_of(body))
    except UnreadableJson as error:
        raise ValueError(f"the request body is not valid JSON: {error}") from None
    for name, value in values.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    pieces: list[Piece] = []
    small = bytearray(b"{")
    for number, (name, kept) in enumerate(fields.items()):
        small += (b"," if number else b"") + as_name(name) + b":"
        view = memoryview(kept)
        if len(view) < LARGE_BYTES:
            small += view
        else:
            pieces += (bytes(small), view)
            small.clear()
    return [*pieces, bytes(small + b"}")]


def may_say(word: bytes, block: bytes) -> bool:
    """Say whether a string of the JSON in it may be `word`, which JSON may spell with escapes."""
    return may_say_any((word,), block)


def may_say_any(words: Iterable[bytes], block: bytes) -> bool:
    """Say whether a string of the JSON in it may be one of `words`: see `may_say`."""
    for word in words:
        if word in block:
            return True
    # One byte is found much faster than five.
    return b"\\" in block and b"\\u00" in block and _ESCAPED.search(block) is not None


def is_keep_alive(kind: str, event: bytes) -> bool:
    """Say whether an event is a keep-alive by its type, or by its name where it has no type."""
    return (kind or SSE.event_name(event)) in KEEP_ALIVES


def stronger(one: Meaning, other: Meaning) -> Meaning:
    """Choose of two verdicts the one that says more about the end."""
    for end in (_ERROR, _DONE, _FINISH):
        if one is end or other is end:
            return end
    return _OPENING


def error_label(event_or_body: bytes) -> str:
    """Label the error that an upstream reports: " (overloaded_error)", or nothing.

    Only its code or type, and only where that is a plain word. The message may repeat the request,
    so it goes to the caller alone and never into a reason, which logs and `status` show.
    """
    labels = (str(value) for value in _error_values(event_or_body))
    return next((f" ({label})" for label in labels if _LABEL.fullmatch(label)), "")


def status_of_error(data: bytes) -> int:
    """Find the status that an error would have had: 502 where it does not say."""
    for value in _error_values(data):
        if isinstance(value, int) and 400 <= value < 600:
            return value
        if isinstance(value, str) and _ERROR_STATUS.fullmatch(value):
            return int(value)
        status = _STATUS_OF_TYPE.get(str(value))
        if status is not None:
            return status
    return 502


def _error_values(data: bytes) -> Iterable[int | str]:
    """Read the code and the type of an error object, or of the one inside it."""
    try:
        said = _said(SSE.data(data) or data)
        if is_object(said.response):
            said = _said(said.response)
        if is_object(said.error):
            said = _said(said.error)
        for raw in (said.code, said.type):
            value = _value(raw) if 0 < len(memoryview(raw)) <= MAX_WORD_BYTES else None
            if isinstance(value, int | str):
                yield value
    except UnreadableJson:
        return
