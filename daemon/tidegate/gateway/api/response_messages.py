"""The events of a response as messages of a WebSocket, and errors as OpenAI's servers tell them.

What never began is told as `{"type": "error", "status", "error"}`, what broke off in the middle by
`response.failed`. The connection outlives both, so either is the one last message of its answer:
a client that stopped at the first of two took the second for the next one's. Their codes are text
whatever an upstream sends, for Codex reads no others.
"""

from __future__ import annotations

import time

import msgspec
from msgspec import Raw

from tidegate.core.formats import RESPONSES
from tidegate.core.formats.base import About, ErrorText, Meaning
from tidegate.core.formats.conversation import Turn
from tidegate.core.formats.foreign_json import UnreadableJson, as_object, as_utf8, members_of
from tidegate.core.formats.framing import SSE
from tidegate.core.formats.openai import error_body
from tidegate.core.formats.responses import bare_response
from tidegate.core.runs.window import Cursor
from tidegate.gateway.api.heads import failure
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.server.websocket import WRITE_BYTES, text_frame

_encode = msgspec.json.encode
_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class AnswerMessages:
    """The messages of a run's events; what the answer holds is noted in the turn."""

    def __init__(self, relay: Relay, turn: Turn | None) -> None:
        """`turn` is what the connection remembers of the answer, if anything."""
        self.is_over = False  # an error has been told that nothing follows
        self._relay = relay
        self._turn = turn
        self._flat = b""  # an error after which only `response.failed` counts, or nothing

    def read(self, cursor: Cursor) -> tuple[bytes, Cursor]:
        """Read the next events as frames, and the cursor behind them. Raises CursorEvicted."""
        block, _ = self._relay.run.window.read(cursor)
        frames: list[bytes] = []
        size = 0
        for event in SSE.split(block):
            data = self._take(event, cursor.seq)
            cursor = Cursor(cursor.seq + 1, cursor.offset + len(event))
            if data is not None:
                frames.append(text_frame(data))
                size += len(data)
            if self.is_over or size >= WRITE_BYTES:
                break
        return b"".join(frames), cursor

    def rest(self) -> bytes | None:
        """Return what is left to say when the run is over."""
        if not self._flat:
            return None
        told = RESPONSES.told_error(self._flat)
        return _error_of(told.status, told.body)

    def _take(self, event: bytes, seq: int) -> bytes | None:
        meaning = RESPONSES.meaning(event)
        if meaning is Meaning.ERROR and not seq:
            self.is_over = True
            answer = failure(self._relay)  # it never began, so it has a status
            return _error_of(answer.status, answer.body)
        if meaning is Meaning.ERROR and RESPONSES.is_error_open(event):
            self._flat = event
            return None
        if meaning is not Meaning.ERROR and self._flat:
            return None
        self._flat = b""
        data = SSE.data(event)
        if meaning is Meaning.ERROR:
            return _with_text_code(data)
        turn = self._turn
        if turn is not None and turn.start:
            turn.add_item(event)
            name = RESPONSES.response_id(data) if meaning is Meaning.DONE else None
            if name is not None:
                turn.finish(name, event)
        return None if data == b"[DONE]" else data


def remembered(response_id: str, model: str) -> bytes:
    """Make the frames that answer a request which is only to be remembered."""
    about = About(b"", response_id, model, time.time())
    begun = bare_response(about, "in_progress")
    done = bare_response(about, "completed") | {"usage": _NO_USAGE}
    events = (("response.created", begun), ("response.completed", done))
    return b"".join(
        text_frame(_encode({"type": kind, "sequence_number": number, "response": response}))
        for number, (kind, response) in enumerate(events)
    )


def error_message(error: ErrorText) -> bytes:
    """Make a message of an error of ours."""
    return _error_of(error.status, error_body(error))


def _error_of(status: int, body: bytes) -> bytes:
    """Make a message of an error's body and its status."""
    body = as_utf8(body)
    try:
        error = members_of(body)["error"]
        error = Raw(as_object(_texts(members_of(error))))
    except (KeyError, UnreadableJson):
        told = {"message": body.decode(), "type": "upstream_error", "code": None}
        error = Raw(_encode(told))
    return _encode({"type": "error", "status": status, "error": error})


def _with_text_code(data: bytes) -> bytes:
    """Make the code of the error in a `response.failed` a text."""
    try:
        event = members_of(data)
        response = members_of(event["response"])
        response["error"] = Raw(as_object(_texts(members_of(response["error"]))))
    except (KeyError, UnreadableJson):
        return data
    event["response"] = Raw(as_object(response))
    return as_object(event)


def _texts(error: dict[str, Raw]) -> dict[str, Raw]:
    """Make an error's members texts; clients take nothing else for these."""
    for name in ("code", "message", "type"):
        value = bytes(error.get(name, Raw(b"null")))
        if value != b"null" and not value.startswith(b'"'):
            error[name] = Raw(_encode(value.decode()))
    return error
