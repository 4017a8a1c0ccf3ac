"""Ollama's own API: one JSON object a line.

It has no comments, so nothing can be said while a model loads: the head is held back instead.
Facts: https://docs.ollama.com/api; its clients raise on a line with `error`.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from tidegate.core.formats.base import NOTHING, About, ErrorText, Format, Meaning, RequestInfo
from tidegate.core.formats.foreign_json import JsonReader, OtherShape, UnreadableJson
from tidegate.core.formats.framing import NDJSON


class _Message(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: Raw = Raw()
    images: Raw = Raw()


class _Line(Struct):
    done: bool | None = None
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    completed: int | None = None  # steps of an image
    error: Raw = Raw()


class _Ending(Struct):
    done: bool | None = None
    error: Raw = Raw()


class _Named(Struct):
    model: str = ""
    name: str = ""  # what older clients call it


_line = JsonReader(_Line)
_ending = JsonReader(_Ending)
_named = JsonReader(_Named)


def error_body(error: ErrorText) -> bytes:
    """Write Ollama's error object."""
    return msgspec.json.encode({"error": error.message})


class Ollama(Format):
    """`/api/chat` and `/api/generate`, and what of this API is one answer."""

    at_root = True
    count_words = (b'_count"',)
    framing = NDJSON
    keep_alive = None

    def __init__(self, name: str, path: str, *, streams: bool = True) -> None:
        self.name = name
        self.path = path
        self.streams = self.streams_unasked = streams

    def meaning(self, event: bytes) -> Meaning:
        try:
            line = _read(event)
        except UnreadableJson:
            return Meaning.OTHER
        if bytes(line.error) not in NOTHING:
            return Meaning.ERROR
        if line.done:
            return Meaning.DONE
        if isinstance(line, _Ending):
            return Meaning.OTHER
        message = line.message or _Message()
        if line.response or line.thinking or message.content or message.thinking or line.completed:
            return Meaning.OUTPUT
        if bytes(message.tool_calls) not in NOTHING or bytes(message.images) not in NOTHING:
            return Meaning.OUTPUT
        return Meaning.OTHER if line.done is None else Meaning.KEEP_ALIVE

    def may_end(self, block: bytes) -> bool:
        return b"true" in block  # which nothing but text says before the end

    def error_body(self, error: ErrorText) -> bytes:
        return error_body(error)

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        return [error_body(error) + b"\n"]


class Show(Ollama):
    """`/api/show`: what there is to know of a model, which older clients call its `name`."""

    def __init__(self) -> None:
        super().__init__("show", "/api/show", streams=False)

    def parse_request(self, body: bytes, content_type: str) -> RequestInfo:
        try:
            named = _named(body)
        except UnreadableJson:
            named = _Named()
        if named.name and not named.model:
            return RequestInfo(named.name, stream=False)
        return super().parse_request(body, content_type)


def _read(line: bytes) -> _Line | _Ending:
    """Read as much of a line as has the kind that it should. Raises UnreadableJson."""
    try:
        return _line(line)
    except OtherShape:
        return _ending(line)
