"""Images and sound: typed events where a stream is asked for, or bytes as they come.

OpenAI ends such a stream with an event whose type says so, and then the body; others put its chat
chunks or its marker there as well. So what is done is a finish, and the end is the body's own:
of several images each has such an event, and behind the first of them nothing is whole yet.
Facts: https://platform.openai.com/docs/api-reference/images-streaming and audio, openai-python.

The sound of a speech has no events. Nothing can be said in it: no keep-alive, no error. Of a fault
only a broken connection can tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw, Struct

from tidegate.core.formats import multipart
from tidegate.core.formats.base import EMPTY, About, ErrorText, Format, Meaning, is_keep_alive
from tidegate.core.formats.foreign_json import JsonReader, UnreadableJson
from tidegate.core.formats.framing import RAW, SSE
from tidegate.core.formats.openai import NO_ERROR, Chat, OpenAIFormat

_ENDS = (".done", ".completed")
_ERRORS = (".failed", ".error")


class _Event(Struct):
    type: str = ""
    error: Raw = Raw()
    delta: Raw = Raw()


class _Request(Struct):
    stream_format: str | None = None


class _Several(Struct):
    n: int | None = None


_event = JsonReader(_Event)
_request = JsonReader(_Request)
_several = JsonReader(_Several)


class Media(Chat):
    """Images and transcriptions, and speech as events: whole, or typed events."""

    end_marker = b""  # the body's own end

    def __init__(
        self,
        name: str,
        path: str,
        *,
        answers_json: bool = True,
        streams_unasked: bool = False,
        several: bool = False,
    ) -> None:
        super().__init__()
        self.needs_end = several
        self.name = name
        self.path = path
        self.answers_json = answers_json
        self.accept = "application/json" if answers_json else "*/*"
        self.streams_unasked = streams_unasked

    def of_request(self, body: bytes, content_type: str) -> Format:
        if _number(body, content_type) < 2:
            return self
        return type(self)(
            self.name,
            self.path,
            answers_json=self.answers_json,
            streams_unasked=self.streams_unasked,
            several=True,
        )

    def asking_usage(self, body: bytes) -> None:
        return None

    def meaning(self, event: bytes) -> Meaning:
        try:
            said = _event(SSE.data(event))
        except UnreadableJson:
            return super().meaning(event)
        if is_keep_alive(said.type, event):
            return Meaning.KEEP_ALIVE
        if not said.type:
            return super().meaning(event)
        if bytes(said.error) not in NO_ERROR or said.type == "error":
            return Meaning.ERROR
        if said.type.endswith(_ERRORS):
            return Meaning.ERROR
        if said.type.endswith(".delta") and bytes(said.delta) in EMPTY:
            return Meaning.KEEP_ALIVE
        return Meaning.FINISH if said.type.endswith(_ENDS) else Meaning.OUTPUT


class Speech(OpenAIFormat):
    """`/v1/audio/speech`: the sound itself, as it comes."""

    name = "speech"
    path = "/audio/speech"
    framing = RAW
    streams = False
    answers_json = False
    accept = "*/*"
    keep_alive = None

    def __init__(self, as_events: Format) -> None:
        self._as_events = as_events

    def of_request(self, body: bytes, content_type: str) -> Format:
        try:
            asked = _request(body).stream_format
        except UnreadableJson:
            return self
        return self._as_events if asked == "sse" else self

    def meaning(self, event: bytes) -> Meaning:
        return Meaning.OUTPUT

    def may_end(self, block: bytes) -> bool:
        return False

    def whole_events(self, block: bytes, events: int, payloads: Sequence[bytes] = ()) -> int:
        return events

    def verdict(self, last_events: list[bytes]) -> Meaning:
        return Meaning.OPENING

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        return []


def _number(body: bytes, content_type: str) -> int:
    """Count what is asked for; one where no number can be read."""
    try:
        if content_type.startswith("multipart/"):
            return int(multipart.fields(body, content_type, ("n",)).get("n", "1"))
        return _several(body).n or 1
    except ValueError:
        return 1
