"""OpenAI's responses.

Every event says its type twice, in its `event:` line and in its data, and carries a
`sequence_number`. Three of them end a stream: completed, incomplete (a limit was reached), failed.
Facts: https://platform.openai.com/docs/api-reference/responses-streaming and openai-python.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from tidegate.core.formats.base import (
    About,
    ErrorText,
    Meaning,
    ToldError,
    Wanted,
    error_label,
    status_of_error,
)
from tidegate.core.formats.openai import OpenAIFormat
from tidegate.core.framing import SSE

_ENDS = (b"response.completed", b"response.incomplete", b"response.failed")
_MEANINGS = {
    "response.created": Meaning.OPENING,
    "response.queued": Meaning.OPENING,
    "response.in_progress": Meaning.OPENING,
    "response.completed": Meaning.DONE,
    "response.incomplete": Meaning.DONE,
    "response.failed": Meaning.ERROR,
    "error": Meaning.ERROR,
    "": Meaning.OTHER,
}


class _Item(Struct):
    type: str = ""
    text: str | None = None


class _Event(Struct):
    type: str = ""
    sequence_number: int | None = None
    item: _Item | None = None
    part: _Item | None = None


_event = msgspec.json.Decoder(_Event)


class _Failed(Struct):
    error: Raw = Raw()
    response: Raw = Raw()
    status: str = ""


class _Request(Struct):
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None


_request = msgspec.json.Decoder(_Request)


class _Name(Struct):
    id: str | None = None


class _Named(Struct):
    id: str | None = None
    response: _Name | None = None


_named = msgspec.json.Decoder(_Named)
_failed = msgspec.json.Decoder(_Failed)
_encode = msgspec.json.encode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class Responses(OpenAIFormat):
    """`/v1/responses`."""

    name = "response"
    path = "/responses"

    def parse_request(self, body: bytes, content_type: str) -> Wanted:
        wanted = super().parse_request(body, "")
        try:
            more = _request.decode(body)
        except msgspec.ValidationError as error:
            raise ValueError(f"the request body is not a response request: {error}") from None
        store = more.store is not False
        if more.background and not store:
            raise ValueError("background needs store: true, for its answer is asked for later")
        return wanted._replace(
            background=more.background is True, previous=more.previous_response_id, store=store
        )

    def meaning(self, event: bytes) -> Meaning:
        try:
            said = _event.decode(SSE.data(event))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Meaning.OTHER
        known = _MEANINGS.get(said.type)
        if known is not None:
            return known
        if said.type == "response.output_item.added" and said.item is not None:
            return Meaning.OPENING if said.item.type in {"message", "reasoning"} else Meaning.OUTPUT
        if said.type.endswith("_part.added") and said.part is not None:
            return Meaning.OUTPUT if said.part.text else Meaning.OPENING
        return Meaning.OUTPUT

    def may_end(self, block: bytes) -> bool:
        return any(end in block for end in _ENDS)

    def response_id(self, data: bytes) -> str | None:
        try:
            said = _named.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return said.response.id if said.response is not None else said.id

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        """A flat error, unless there is one, and, since a response has a state, that it failed."""
        number = _sequence_number(about.last_event) + 1
        failed = {
            "type": "response.failed",
            "sequence_number": number,
            "response": failed_response(error, about),
        }
        if self.is_error_open(about.last_event):
            return [as_event("response.failed", failed)]
        flat = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "sequence_number": number,
        }
        failed["sequence_number"] = number + 1
        return [as_event("error", flat), as_event("response.failed", failed)]

    def is_error_open(self, last_event: bytes) -> bool:
        """A flat error does not say what became of the response."""
        try:
            return _event.decode(SSE.data(last_event)).type == "error"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False

    def told_error(self, event: bytes) -> ToldError:
        data = SSE.data(event)
        try:
            said = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = {}
        if isinstance(said, dict) and isinstance(said.get("response"), dict):
            said = said["response"]
        if isinstance(said, dict) and isinstance(said.get("error"), dict):
            said = said["error"]
        text = {key: said.get(key) for key in ("message", "code", "param")}
        body = _encode({"error": {"type": "upstream_error", **text}})
        return ToldError(status_of_error(data), body, error_label(data))

    def error_in(self, body: bytes) -> ToldError | None:
        """A response that failed is a whole answer all the same: only a bare error is none."""
        try:
            if _failed.decode(body).status:
                return None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return super().error_in(body)


class Rewriter:
    """Gives the events of a background response our id and our numbers."""

    __slots__ = ("_id", "tokens")

    def __init__(self, response_id: str) -> None:
        self.tokens: int | None = None  # they stay in the events
        self._id = Raw(_encode(response_id))

    def __call__(self, block: bytes, events: int, first_seq: int) -> tuple[bytes, int]:
        numbered = enumerate(SSE.split(block), first_seq)
        return b"".join(self._event(event, seq) for seq, event in numbered), events

    def _event(self, event: bytes, seq: int) -> bytes:
        try:
            fields = _fields(SSE.data(event))
            name = msgspec.json.decode(fields["type"], type=str)
            fields["sequence_number"] = Raw(b"%d" % seq)
            if "response" in fields:
                response = _fields(fields["response"])
                response |= {"id": self._id, "background": Raw(b"true")}
                fields["response"] = Raw(_encode(response))
        except (KeyError, msgspec.MsgspecError, UnicodeDecodeError):
            return event  # "[DONE]", and what is not ours to judge
        return as_event(name, fields) if name.isascii() and name.isprintable() else event


def response_in(event: bytes) -> bytes | None:
    """The response object that an event carries."""
    try:
        response = _fields(SSE.data(event)).get("response")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return None if response is None else bytes(response)


def as_event(name: str, data: object) -> bytes:
    """An event whose data is `data` as JSON."""
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), _encode(data))


def failed_response(error: ErrorText, about: About) -> dict[str, object]:
    """A response without an answer, as much of it as clients read."""
    cancelled = error.type == "cancelled"
    return {
        "id": about.response_id,
        "object": "response",
        "created_at": int(about.created),
        "status": "cancelled" if cancelled else "failed",
        "model": about.model,
        "output": [],
        "error": None if cancelled else {"code": error.code, "message": error.message},
        "incomplete_details": None,
    }


def _sequence_number(event: bytes) -> int:
    try:
        number = _event.decode(SSE.data(event)).sequence_number
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return -1
    return -1 if number is None else number
