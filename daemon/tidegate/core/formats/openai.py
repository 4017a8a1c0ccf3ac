"""OpenAI's chat completions, its older completions, and everything of its API that is one answer.

Facts: https://platform.openai.com/docs/api-reference/chat-streaming and the error shapes that
openai-python and openai-node raise on.
"""

from __future__ import annotations

import re
from contextlib import suppress

import msgspec
from msgspec import Raw, Struct

from tidegate.core.formats.base import (
    KEEP_ALIVES,
    NOTHING,
    About,
    ErrorText,
    Format,
    Meaning,
    is_keep_alive,
    may_say,
    may_say_any,
)
from tidegate.core.formats.counting import TIMINGS, USAGE, counts_in
from tidegate.core.formats.foreign_json import (
    JsonReader,
    OtherShape,
    UnreadableJson,
    as_object,
    members_of,
)
from tidegate.core.formats.framing import SSE
from tidegate.core.formats.members import count_texts, has_several
from tidegate.core.records.usage import NO_USAGE

DONE = b"data: [DONE]\n\n"
_LIST_OF_PROMPTS = re.compile(rb'\[\s*+["\[]')
MAX_OPTIONS_BYTES = 4096  # of `stream_options`, which has two members
MOST_CHOICES = 1024  # that are told apart; OpenAI's own bound is 128
_LAST_BYTES = 64  # of a block: the marker, and whatever blanks stand around it
# An error of these is none, as openai-python sees it.
NO_ERROR = frozenset({b"", b"null", b'""', b"{}", b"[]", b"false", b"0"})


# To search for a member in its class takes as long each time as to look into a chunk.
_KEEP_ALIVE, _OPENING, _OUTPUT = Meaning.KEEP_ALIVE, Meaning.OPENING, Meaning.OUTPUT
_FINISH, _DONE, _OTHER = Meaning.FINISH, Meaning.DONE, Meaning.OTHER
_ABSENT = Raw()
_SEVERAL = (b'"n"', b'"prompt"')  # one of these is in a request that asks for several answers
_NO_DELTA: dict[str, object] = {}


class _Choice(Struct):
    index: Raw = Raw(b"0")
    delta: dict[str, object] | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    error: Raw = _ABSENT
    usage: Raw = Raw()
    type: Raw = Raw()


class _Options(Struct):
    stream_options: Raw = Raw()


class _Failed(Struct):
    error: Raw = _ABSENT


class _Several(Struct):
    n: int | None = None
    prompt: Raw = Raw()


class _Usage(Struct):
    choices: list[Raw]
    usage: dict[str, object]


_chunk = JsonReader(_Chunk)
_failed = JsonReader(_Failed)
_options = JsonReader(_Options)
_several = JsonReader(_Several)
_usage = JsonReader(_Usage)
_QUIET_TYPES = {msgspec.json.encode(kind) for kind in KEEP_ALIVES}


def error_body(error: ErrorText) -> bytes:
    """Write OpenAI's error object, which nearly every client reads."""
    inner = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": inner})


class UsageStripper:
    """Removes the chunk with the usage that the client did not ask for."""

    __slots__ = ("usage",)

    def __init__(self) -> None:
        self.usage = NO_USAGE

    def __call__(self, block: bytes, events: int, first_seq: int) -> tuple[bytes, int]:
        if b'"usage":{' not in block and b'"usage": {' not in block:
            return block, events
        kept = [event for event in SSE.split(block) if not self._is_usage(event)]
        return b"".join(kept), len(kept)

    def _is_usage(self, event: bytes) -> bool:
        data = SSE.data(event)
        try:
            chunk = _usage(data)
        except UnreadableJson:
            return False
        self.usage = counts_in(data).usage()
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
    # A role that is said again, or what was used so far, is no more progress than nothing.
    idle_meanings = frozenset({Meaning.KEEP_ALIVE, Meaning.OPENING})
    end_marker = DONE
    count_words = (USAGE, TIMINGS)

    def __init__(self, choices: int = 1) -> None:
        """Expect so many choices; of several, that one is finished ends nothing."""
        self.choices = choices

    def of_request(self, body: bytes, content_type: str) -> Format:
        if not may_say_any(_SEVERAL, body):
            return self
        try:
            asked = _several(body)
        except UnreadableJson:
            return self
        choices = (asked.n or 1) * _prompts(memoryview(asked.prompt))
        return type(self)(choices) if choices > 1 else self

    def asking_usage(self, body: bytes) -> dict[str, Raw | None] | None:
        asked = _options(body).stream_options
        if len(memoryview(asked)) > MAX_OPTIONS_BYTES:
            return None  # no API has so many: its upstream will say so
        options = members_of(asked) if bytes(asked) not in NOTHING else {}
        if bytes(options.get("include_usage", b"")) == b"true":
            return None
        options["include_usage"] = Raw(b"true")
        return {"stream_options": Raw(as_object(options))}

    def meaning(self, event: bytes) -> Meaning:
        data = SSE.data(event).strip()
        if data == b"[DONE]":
            return _DONE
        try:
            chunk = _read(data)
        except UnreadableJson:
            return _OTHER
        if chunk.error is not _ABSENT and bytes(chunk.error) not in NO_ERROR:
            return Meaning.ERROR
        if isinstance(chunk, _Failed):
            return _OTHER
        if chunk.choices is None:
            quiet = bytes(chunk.type) in _QUIET_TYPES or is_keep_alive("", event)
            return _KEEP_ALIVE if quiet else _OTHER
        said = _KEEP_ALIVE
        for choice in chunk.choices:
            if choice.finish_reason:
                return _FINISH
            if _has_output(choice):
                said = _OUTPUT
            elif said is _KEEP_ALIVE and choice.delta and choice.delta.get("role"):
                said = _OPENING
        is_usage = said is _KEEP_ALIVE and bytes(chunk.usage) not in NOTHING
        return _OPENING if is_usage else said

    def finished_choices(self, block: bytes) -> set[int]:
        found = set()
        for event in SSE.split(block) if may_say(b"finish_reason", block) else ():
            with suppress(UnreadableJson):
                choices = _chunk(SSE.data(event)).choices or []
                found |= {_number(choice.index) for choice in choices if choice.finish_reason}
        return {number for number in found if number < min(self.choices, MOST_CHOICES)}

    def may_end(self, block: bytes) -> bool:
        if block.endswith(b"}\n\n"):
            return False  # nearly always
        return block[-_LAST_BYTES:].rstrip().endswith(b"[DONE]")

    def verdict(self, last_events: list[bytes]) -> Meaning:
        end = super().verdict(last_events)
        return Meaning.OPENING if self.choices > 1 and end is Meaning.FINISH else end


class Completions(Chat):
    """`/v1/completions`: the same stream with `text` in place of a delta."""

    name = "completion"
    path = "/completions"


class Plain(OpenAIFormat):
    """One request, one answer, which never streams: embeddings, rerank, translations."""

    streams = False

    def __init__(
        self, name: str, path: str, *, answers_json: bool = True, only_input: bool = False
    ) -> None:
        self.name = name
        self.path = path
        self.only_input = only_input
        self.answers_json = answers_json
        self.accept = "application/json" if answers_json else "*/*"

    def meaning(self, event: bytes) -> Meaning:
        return Meaning.OTHER

    def may_end(self, block: bytes) -> bool:
        return False


def _prompts(prompt: memoryview) -> int:
    """Count the prompts. A list of numbers is one, in tokens; lists of lists are not counted."""
    if not _LIST_OF_PROMPTS.match(prompt) or not has_several(prompt):
        return 1
    return count_texts(prompt, MOST_CHOICES)


def _read(data: bytes) -> _Chunk | _Failed:
    """Read as much of a chunk as has the kind that it should. Raises UnreadableJson."""
    try:
        return _chunk(data)
    except OtherShape:
        return _failed(data)


def _number(index: Raw) -> int:
    """Read the number of a choice; one that no answer has where it cannot be read."""
    digits = bytes(index)
    return int(digits) if digits.isdigit() and len(digits) < 5 else MOST_CHOICES


def _has_output(choice: _Choice) -> bool:
    delta = choice.delta or _NO_DELTA
    if choice.text or "role" not in delta:
        return bool(choice.text) or any(delta.values())
    for name, value in delta.items():  # noqa: SIM110  (a generator costs as much as the rest)
        if value and name != "role":
            return True
    return False
