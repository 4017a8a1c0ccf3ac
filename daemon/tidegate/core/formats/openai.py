"""OpenAI's chat completions, its older completions, and everything of its API that is one answer.

Facts: https://platform.openai.com/docs/api-reference/chat-streaming and the error shapes that
openai-python and openai-node raise on.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from tidegate.core.formats.base import About, ErrorText, Format, Meaning
from tidegate.core.framing import SSE
from tidegate.core.members import has_several

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

DONE = b"data: [DONE]\n\n"
_LIST_OF_PROMPTS = re.compile(rb'\[\s*+["\[]')
MAX_OPTIONS_BYTES = 4096  # of `stream_options`, which has two members
_LAST_BYTES = 64  # of a block: the marker, and whatever blanks stand around it
# An error of these is none, as openai-python sees it.
NO_ERROR = frozenset({b"", b"null", b'""', b"{}", b"[]", b"false", b"0"})


class _Choice(Struct):
    delta: dict[str, object] | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    error: Raw = Raw()


class _Options(Struct):
    stream_options: Raw = Raw()


class _Several(Struct):
    n: int | None = None
    prompt: Raw = Raw()


class _Usage(Struct):
    choices: list[Raw]
    usage: dict[str, object]


_chunk = msgspec.json.Decoder(_Chunk)
_options = msgspec.json.Decoder(_Options)
_members = msgspec.json.Decoder(dict[str, Raw] | None)
_several = msgspec.json.Decoder(_Several)
_usage = msgspec.json.Decoder(_Usage)


def error_body(error: ErrorText) -> bytes:
    """OpenAI's error object, which nearly every client reads."""
    inner = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": inner})


class UsageStripper:
    """Takes the chunk with the usage out again that the client did not ask for."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens: int | None = None

    def __call__(self, block: bytes, events: int, first_seq: int) -> tuple[bytes, int]:
        if b'"usage":{' not in block and b'"usage": {' not in block:
            return block, events
        kept = [event for event in SSE.split(block) if not self._is_usage(event)]
        return b"".join(kept), len(kept)

    def _is_usage(self, event: bytes) -> bool:
        try:
            chunk = _usage.decode(SSE.data(event))
        except _UNREADABLE:
            return False
        tokens = chunk.usage.get("completion_tokens")
        self.tokens = tokens if isinstance(tokens, int) else None
        return not chunk.choices


class OpenAIFormat(Format):
    """What all of OpenAI's formats share."""

    def error_body(self, error: ErrorText) -> bytes:
        return error_body(error)

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        return [b"data: " + error_body(error) + b"\n\n"]


class Chat(OpenAIFormat):
    """`/v1/chat/completions`."""

    name = "chat completion"
    path = "/chat/completions"

    def __init__(self, *, several: bool = False) -> None:
        """With `several` choices, that one of them is finished ends nothing."""
        self._several = several

    def of_request(self, body: bytes, content_type: str) -> Format:
        try:
            asked = _several.decode(body)
        except _UNREADABLE:
            return self
        several = (asked.n or 1) > 1 or _has_several(memoryview(asked.prompt))
        return type(self)(several=True) if several else self

    def asking_usage(self, body: bytes) -> dict[str, Raw | None] | None:
        asked = _options.decode(body).stream_options
        if len(memoryview(asked)) > MAX_OPTIONS_BYTES:
            return None  # no API has so many: its upstream will say so
        options = (_members.decode(asked) if memoryview(asked) else None) or {}
        if bytes(options.get("include_usage", Raw(b""))) == b"true":
            return None
        options["include_usage"] = Raw(b"true")
        return {"stream_options": Raw(msgspec.json.encode(options))}

    def meaning(self, event: bytes) -> Meaning:
        data = SSE.data(event).strip()
        if data == b"[DONE]":
            return Meaning.DONE
        try:
            chunk = _chunk.decode(data)
        except _UNREADABLE:
            return Meaning.OTHER
        if bytes(chunk.error) not in NO_ERROR:
            return Meaning.ERROR
        if chunk.choices is None:
            return Meaning.OTHER
        if any(choice.finish_reason for choice in chunk.choices):
            return Meaning.FINISH
        if any(_has_output(choice) for choice in chunk.choices):
            return Meaning.OUTPUT
        return Meaning.OPENING

    def may_end(self, block: bytes) -> bool:
        return block[-_LAST_BYTES:].rstrip().endswith(b"[DONE]")

    def verdict(self, last_events: list[bytes]) -> Meaning:
        end = super().verdict(last_events)
        return Meaning.OPENING if self._several and end is Meaning.FINISH else end


class Completions(Chat):
    """`/v1/completions`: the same stream with `text` in place of a delta."""

    name = "completion"
    path = "/completions"


class Plain(OpenAIFormat):
    """One question, one answer, which never streams: embeddings, rerank, translations."""

    streams = False

    def __init__(self, name: str, path: str, *, answers_json: bool = True) -> None:
        self.name = name
        self.path = path
        self.answers_json = answers_json
        self.accept = "application/json" if answers_json else "*/*"

    def meaning(self, event: bytes) -> Meaning:
        return Meaning.OTHER

    def may_end(self, block: bytes) -> bool:
        return False


def _has_several(prompt: memoryview) -> bool:
    """Whether it is a list of several prompts. A list of numbers is one, in tokens."""
    first = _LIST_OF_PROMPTS.match(prompt)
    return first is not None and has_several(prompt)


def _has_output(choice: _Choice) -> bool:
    delta = choice.delta or {}
    return bool(choice.text) or any(value for name, value in delta.items() if name != "role")
