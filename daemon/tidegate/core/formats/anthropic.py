"""Anthropic's messages.

Facts: https://docs.anthropic.com/en/api/messages-streaming and the error shape that
anthropic-python and the TypeScript client raise on.
"""

from __future__ import annotations

from itertools import islice

import msgspec
from msgspec import Raw, Struct

from tidegate.core.formats.base import (
    EMPTY,
    About,
    ErrorText,
    Format,
    Meaning,
    is_keep_alive,
    may_say,
)
from tidegate.core.formats.counting import NO_COUNTS, Counts, counts_in
from tidegate.core.formats.foreign_json import JsonReader, OtherShape, UnreadableJson
from tidegate.core.formats.framing import SSE

_FIRST_EVENTS = 4  # of which one opens the answer; a ping may come before it
PING = b'event: ping\ndata: {"type": "ping"}\n\n'

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class _Delta(Struct):
    type: str = ""
    stop_reason: str | None = None
    text: Raw = Raw()
    thinking: Raw = Raw()
    partial_json: Raw = Raw()


class _Block(Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None


class _Event(Struct):
    type: str = ""
    delta: _Delta | None = None
    content_block: _Block | None = None


class _Kind(Struct):
    type: str = ""


_event = JsonReader(_Event)
_kind = JsonReader(_Kind)


def error_body(error: ErrorText) -> bytes:
    """Write Anthropic's error object, as an answer and as an event's data."""
    ours = error.status >= 500 or error.status in {408, 409}
    kind = _TYPES.get(error.status, "api_error" if ours else "invalid_request_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})


class Messages(Format):
    """`/v1/messages`."""

    name = "message"
    path = "/messages"
    keep_alive = PING
    end_marker = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    forwarded = ("anthropic-version", "anthropic-beta")

    def meaning(self, event: bytes) -> Meaning:
        try:
            said = _read(SSE.data(event))
        except UnreadableJson:
            return Meaning.OTHER
        if is_keep_alive(said.type, event):
            return Meaning.KEEP_ALIVE
        match said.type:
            case "message_stop":
                return Meaning.DONE
            case "error":
                return Meaning.ERROR
            case "message_start":
                return Meaning.OPENING
            case "content_block_start":
                block = said.content_block or _Block()
                empty = block.type in {"text", "thinking"} and not (block.text or block.thinking)
                return Meaning.OPENING if empty else Meaning.OUTPUT
            case "content_block_delta" if said.delta is not None and _is_empty(said.delta):
                return Meaning.KEEP_ALIVE
            case "message_delta" if said.delta is not None and said.delta.stop_reason:
                return Meaning.FINISH
            case "":
                return Meaning.OTHER
        return Meaning.OUTPUT

    def may_end(self, block: bytes) -> bool:
        return may_say(b"message_stop", block)

    def opening_counts(self, block: bytes) -> Counts:
        for event in islice(SSE.each(block), _FIRST_EVENTS):
            if b'"message_start"' in event:
                # Of the output it tells what there is so far.
                return counts_in(SSE.data(event))._replace(output=None)
        return NO_COUNTS

    def error_body(self, error: ErrorText) -> bytes:
        return error_body(error)

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        return [b"event: error\ndata: " + error_body(error) + b"\n\n"]


def _read(data: bytes) -> _Event:
    """Read an event, or at least its type. Raises UnreadableJson."""
    try:
        return _event(data)
    except OtherShape:  # a member of another kind than it should be
        return _Event(type=_kind(data).type)


def _is_empty(delta: _Delta) -> bool:
    """Say whether there is no text in a piece of text."""
    match delta.type:
        case "text_delta":
            return bytes(delta.text) in EMPTY
        case "thinking_delta":
            return bytes(delta.thinking) in EMPTY
        case "input_json_delta":
            return bytes(delta.partial_json) in EMPTY
    return False


class CountTokens(Messages):
    """`/v1/messages/count_tokens`: one answer."""

    name = "token count"
    path = "/messages/count_tokens"
    streams = False
