"""What the relay must know of OpenAI's chat completions, and nothing more.

Where the model's name is, what counts as output, what ends an answer, how an error is told. The
relay itself handles bytes; these functions look into an event only before the first output and at
the very end, never in between.
Facts: https://platform.openai.com/docs/api-reference/chat-streaming and the error shapes that
openai-python and openai-node raise on.
"""

from __future__ import annotations

import re
from enum import Enum

import msgspec
from msgspec import Raw, Struct

from tidegate.core.sse import event_data

DONE = b"data: [DONE]\n\n"
TAIL_EVENTS = 8  # finish_reason, then usage, then [DONE]; some upstreams add one or two


class Meaning(Enum):
    """What one event says."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and costs 0.3 us each time

    OPENING = "opening"  # a role, an empty delta, no choices: the answer has not begun
    OUTPUT = "output"
    FINISH = "finish"  # carries a finish_reason
    DONE = "done"  # the terminal marker
    ERROR = "error"
    OTHER = "other"  # not a chat completion chunk: passed on as it is


# With any of these the answer has begun. What cannot be read counts: it may be the answer.
OUTPUT = frozenset({Meaning.OUTPUT, Meaning.FINISH, Meaning.DONE, Meaning.OTHER})


class _Choice(Struct):
    delta: dict[str, object] | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    error: Raw = Raw()


class ChatRequest(Struct):
    """The part of a request that routing needs; everything else passes untouched."""

    model: str
    stream: bool | None = None


# "rate_limit_exceeded", "InternalServerError", "429": words without digits, or a short number. A
# key is neither.
_LABEL = re.compile(r"(?=.{1,40}$)[A-Za-z]+(?:[_.-][A-Za-z]+)*|[0-9]{1,5}")
_chunk = msgspec.json.Decoder(_Chunk)
_request = msgspec.json.Decoder(ChatRequest)
_fields = msgspec.json.Decoder(dict[str, Raw])


def parse_request(body: bytes) -> ChatRequest:
    """Raises ValueError with a sentence for the caller."""
    try:
        return _request.decode(body)
    except msgspec.ValidationError as error:
        raise ValueError(f"the request body is not a chat completion request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the request body is not valid JSON: {error}") from None


def with_model(body: bytes, model: str) -> bytes:
    """The same request for another model name; every other value keeps its bytes."""
    fields = _fields.decode(body)
    fields["model"] = Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def meaning(event: bytes) -> Meaning:
    """Classifies one event. What cannot be read is OTHER: it is not ours to judge."""
    data = event_data(event).strip()
    if data == b"[DONE]":
        return Meaning.DONE
    try:
        chunk = _chunk.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Meaning.OTHER
    if bytes(chunk.error) not in {b"", b"null"}:
        return Meaning.ERROR
    if chunk.choices is None:
        return Meaning.OTHER
    if any(choice.finish_reason for choice in chunk.choices):
        return Meaning.FINISH
    if any(_has_output(choice) for choice in chunk.choices):
        return Meaning.OUTPUT
    return Meaning.OPENING


def _has_output(choice: _Choice) -> bool:
    delta = choice.delta or {}
    return bool(choice.text) or any(value for name, value in delta.items() if name != "role")


def error_label(event_or_body: bytes) -> str:
    """What kind of error an upstream reports: " (overloaded_error)", or nothing.

    Only its code or type, and only where that is a plain word. The message may repeat the request,
    so it goes to the caller alone and never into a reason, which logs and `status` show.
    """
    data = event_data(event_or_body) or event_or_body
    try:
        error: object = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if not isinstance(error, dict):
        return ""
    labels = (str(error[key]) for key in ("code", "type") if isinstance(error.get(key), int | str))
    return next((f" ({label})" for label in labels if _LABEL.fullmatch(label)), "")


def error_event(message: str, kind: str, code: str) -> bytes:
    """The event on which the official clients raise."""
    return b"data: " + error_body(message, kind, code) + b"\n\n"


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def ends_with_done(block: bytes) -> bool:
    """Whether the terminal marker is the last event; cheap enough for every block."""
    return block.endswith((DONE, b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"))


def verdict(last_events: list[bytes]) -> Meaning:
    """How an answer ended, from its last events: ERROR, DONE, FINISH, or OPENING if it broke off.

    A finish_reason without the marker is a completion; an error anywhere in the end is an error.
    """
    end = Meaning.OPENING
    for event in reversed(last_events[-TAIL_EVENTS:]):
        if b'"error"' in event and meaning(event) is Meaning.ERROR:
            return Meaning.ERROR
        if end is Meaning.OPENING:
            said = meaning(event)
            if said is Meaning.DONE or said is Meaning.FINISH:
                end = said
    return end


def stronger(one: Meaning, other: Meaning) -> Meaning:
    """Of two verdicts the one that says more about the end."""
    for end in (Meaning.ERROR, Meaning.DONE, Meaning.FINISH):
        if one is end or other is end:
            return end
    return Meaning.OPENING
