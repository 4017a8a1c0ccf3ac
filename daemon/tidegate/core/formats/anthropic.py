"""Anthropic's messages.

Facts: https://docs.anthropic.com/en/api/messages-streaming and the error shape that
anthropic-python and the TypeScript client raise on.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from tidegate.core.formats.base import About, ErrorText, Format, Meaning, may_say
from tidegate.core.framing import SSE

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
    stop_reason: str | None = None


class _Block(Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None


class _Event(Struct):
    type: str = ""
    delta: _Delta | None = None
    content_block: _Block | None = None


_event = msgspec.json.Decoder(_Event)


def error_body(error: ErrorText) -> bytes:
    """Anthropic's error object, as an answer and as an event's data."""
    ours = error.status >= 500 or error.status in {408, 409}
    kind = _TYPES.get(error.status, "api_error" if ours else "invalid_request_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})


class Messages(Format):
    """`/v1/messages`."""

    name = "message"
    path = "/messages"
    keep_alive = PING
    ping = b"event: ping"
    forwarded = ("anthropic-version", "anthropic-beta")

    def meaning(self, event: bytes) -> Meaning:
        try:
            said = _event.decode(SSE.data(event))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Meaning.OTHER
        match said.type:
            case "message_stop":
                return Meaning.DONE
            case "error":
                return Meaning.ERROR
            case "message_start" | "ping":
                return Meaning.OPENING
            case "content_block_start":
                block = said.content_block or _Block()
                empty = block.type in {"text", "thinking"} and not (block.text or block.thinking)
                return Meaning.OPENING if empty else Meaning.OUTPUT
            case "message_delta" if said.delta is not None and said.delta.stop_reason:
                return Meaning.FINISH
            case "":
                return Meaning.OTHER
        return Meaning.OUTPUT

    def may_end(self, block: bytes) -> bool:
        return may_say(b"message_stop", block)

    def error_body(self, error: ErrorText) -> bytes:
        return error_body(error)

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        return [b"event: error\ndata: " + error_body(error) + b"\n\n"]


class CountTokens(Messages):
    """`/v1/messages/count_tokens`: one answer."""

    name = "token count"
    path = "/messages/count_tokens"
    streams = False
