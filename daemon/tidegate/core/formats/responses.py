"""OpenAI's responses.

Every event says its type twice, in its `event:` line and in its data, and carries a
`sequence_number`. Three of them end a stream: completed, incomplete (a limit was reached), failed.
Facts: https://platform.openai.com/docs/api-reference/responses-streaming and openai-python.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from tidegate.core.formats.base import (
    EMPTY,
    MAX_ID_CHARS,
    About,
    ErrorText,
    Meaning,
    RequestInfo,
    ToldError,
    error_label,
    is_keep_alive,
    may_say,
    status_of_error,
)
from tidegate.core.formats.foreign_json import (
    JsonReader,
    OtherShape,
    UnreadableJson,
    as_object,
    is_object,
    members_of,
)
from tidegate.core.formats.framing import SSE
from tidegate.core.formats.openai import OpenAIFormat
from tidegate.core.records.usage import NO_USAGE

_ENDS = (b"response.completed", b"response.incomplete", b"response.failed")
_PARTS = (
    "response.content_part.",
    "response.output_text.",
    "response.reasoning_text.",
    "response.refusal.",
)
MOST_ITEMS = 1000  # outputs of one response that are told apart; real ones have a handful
_MEANINGS = {
    "response.created": Meaning.OPENING,
    # Some servers say these again and again.
    "response.queued": Meaning.KEEP_ALIVE,
    "response.in_progress": Meaning.KEEP_ALIVE,
    "response.completed": Meaning.DONE,
    "response.incomplete": Meaning.DONE,
    "response.failed": Meaning.ERROR,
    "error": Meaning.ERROR,
    "": Meaning.OTHER,
}


class _Item(Struct):
    id: str | None = None
    type: str = ""
    text: str | None = None


class _Event(Struct):
    type: str = ""
    sequence_number: int | None = None
    item_id: str | None = None
    output_index: int | None = None
    item: _Item | None = None
    part: _Item | None = None
    delta: Raw = Raw()


class _Kind(Struct):
    type: str = ""


_event = JsonReader(_Event)
_kind = JsonReader(_Kind)


class _Failed(Struct):
    error: Raw = Raw()
    response: Raw = Raw()
    status: str = ""


class _Request(Struct):
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None


_request = JsonReader(_Request)


class _Name(Struct):
    id: str | None = None


class _Named(Struct):
    id: str | None = None
    response: _Name | None = None


_named = JsonReader(_Named)
_failed = JsonReader(_Failed)
_encode = msgspec.json.encode


class Responses(OpenAIFormat):
    """`/v1/responses`."""

    name = "response"
    path = "/responses"

    def parse_request(self, body: bytes, content_type: str) -> RequestInfo:
        wanted = super().parse_request(body, "")
        try:
            more = _request(body)
        except UnreadableJson as error:
            raise ValueError(f"the request body is not a response request: {error}") from None
        store = more.store is not False
        if more.background and not store:
            raise ValueError("background needs store: true, for its answer is asked for later")
        return wanted._replace(
            background=more.background is True, previous=more.previous_response_id, store=store
        )

    def meaning(self, event: bytes) -> Meaning:
        try:
            said = _read(SSE.data(event))
        except UnreadableJson:
            return Meaning.OTHER
        if is_keep_alive(said.type, event):
            return Meaning.KEEP_ALIVE
        known = _MEANINGS.get(said.type)
        if known is not None:
            return known
        if said.type == "response.output_item.added" and said.item is not None:
            return Meaning.OPENING if said.item.type in {"message", "reasoning"} else Meaning.OUTPUT
        if said.type.endswith("_part.added") and said.part is not None:
            return Meaning.OUTPUT if said.part.text else Meaning.OPENING
        if said.type.endswith(".delta") and bytes(said.delta) in EMPTY:
            return Meaning.KEEP_ALIVE
        return Meaning.OUTPUT

    def may_end(self, block: bytes) -> bool:
        return any(may_say(end, block) for end in _ENDS)

    def response_id(self, data: bytes) -> str | None:
        try:
            said = _named(data)
        except UnreadableJson:
            return None
        return said.response.id if said.response is not None else said.id

    def error_events(self, error: ErrorText, about: About) -> list[bytes]:
        """Write a flat error, unless there is one, and that the response failed: it has a state."""
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
        """Say whether it is a flat error, which does not say what became of the response."""
        try:
            return _read(SSE.data(last_event)).type == "error"
        except UnreadableJson:
            return False

    def told_error(self, event: bytes) -> ToldError:
        data = SSE.data(event)
        said = _error_members(data)
        text = {key: said.get(key) for key in ("message", "code", "param")}
        body = _encode({"error": {"type": "upstream_error", **text}})
        return ToldError(status_of_error(data), body, error_label(data))

    def error_in(self, body: bytes) -> ToldError | None:
        """Find a bare error: a response that failed is a whole answer all the same."""
        try:
            if _failed(body).status:
                return None
        except UnreadableJson:
            return None
        return super().error_in(body)


class Rewriter:
    """Gives the events of a background response our id and our numbers.

    Its clients follow it by id, as they follow OpenAI's, and count on members that smaller servers
    leave out (llama.cpp: which output an event belongs to, the model): those are filled in. What is
    there is not changed.
    """

    __slots__ = ("_about", "_outputs", "usage")

    def __init__(self, about: About) -> None:
        self.usage = NO_USAGE  # it stays in the events
        self._about = about
        self._outputs: dict[str, int] = {}  # the place of an item in the output, by its id

    def __call__(self, block: bytes, events: int, first_seq: int) -> tuple[bytes, int]:
        numbered = enumerate(SSE.split(block), first_seq)
        return b"".join(self._event(event, seq) for seq, event in numbered), events

    def _event(self, event: bytes, seq: int) -> bytes:
        data = SSE.data(event)
        try:
            fields = members_of(data)
            said = _read(data)
            if "response" in fields:
                fields["response"] = self._response(members_of(fields["response"]))
        except UnreadableJson:
            return event  # "[DONE]", and what is not ours to judge
        if not (said.type and said.type.isascii() and said.type.isprintable()):
            return event
        self._place(fields, said)
        fields["sequence_number"] = Raw(b"%d" % seq)
        return b"event: %b\ndata: %b\n\n" % (said.type.encode("ascii"), as_object(fields))

    def _response(self, response: dict[str, Raw]) -> Raw:
        bare = bare_response(self._about, "in_progress")
        ours = {"id": self._about.response_id, "background": True}
        known = {name: Raw(_encode(value)) for name, value in bare.items()}
        return Raw(as_object(known | response | members_of(_encode(ours))))

    def _place(self, fields: dict[str, Raw], said: _Event) -> None:
        """Fill in which output an event belongs to, and which part of it, where it does not say."""
        item_id = said.item.id if said.item is not None else said.item_id
        if not item_id or len(item_id) > MAX_ID_CHARS:
            return
        if item_id not in self._outputs and len(self._outputs) < MOST_ITEMS:
            here = said.output_index
            self._outputs[item_id] = len(self._outputs) if here is None else here
        fields.setdefault("output_index", Raw(b"%d" % self._outputs.get(item_id, 0)))
        if said.type.startswith(_PARTS):
            fields.setdefault("content_index", Raw(b"0"))


def _read(data: bytes) -> _Event:
    """Read what is looked at of an event, at least its type. Raises UnreadableJson."""
    try:
        return _event(data)
    except OtherShape:  # a member of another kind than it should be
        return _Event(type=_kind(data).type)


def response_in(event: bytes) -> bytes | None:
    """Find the response object that an event carries."""
    try:
        response = members_of(SSE.data(event)).get("response")
    except UnreadableJson:
        return None
    return None if response is None else bytes(response)


def as_event(name: str, data: object) -> bytes:
    """Write an event whose data is `data` as JSON."""
    return b"event: %b\ndata: %b\n\n" % (name.encode("ascii"), _encode(data))


def bare_response(about: About, status: str) -> dict[str, object]:
    """Make a response without an answer, with every member that clients count on."""
    return {
        "id": about.response_id,
        "object": "response",
        "created_at": int(about.created),
        "status": status,
        "background": about.background,
        "model": about.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def failed_response(error: ErrorText, about: About) -> dict[str, object]:
    """Make a response that came to nothing, and say why."""
    if error.type == "cancelled":
        return bare_response(about, "cancelled")
    why = {"code": error.code, "message": error.message}
    return bare_response(about, "failed") | {"error": why}


def _error_members(data: bytes) -> dict[str, Raw]:
    """Read the members of an error object, or of the one inside it; none if unreadable."""
    try:
        error = members_of(data)
        for inner in ("response", "error"):
            if is_object(error.get(inner, Raw())):
                error = members_of(error[inner])
    except UnreadableJson:
        return {}
    return error


def _sequence_number(event: bytes) -> int:
    try:
        number = _read(SSE.data(event)).sequence_number
    except UnreadableJson:
        return -1
    return -1 if number is None else number
