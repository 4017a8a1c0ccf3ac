"""What a WebSocket's next request may go on from: its last request, and the answer to that.

Where an upstream keeps no responses, `previous_response_id` says nothing to it. So the connection
keeps what it was sent and what it sent, and puts both before the new input: former input, items of
the answer, new items. Nothing here is decoded or copied that need not be: an input is a slice of
the request that it came in, and every value keeps its bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from msgspec import Raw

from tidegate.core.formats.foreign_json import JsonReader, UnreadableJson, as_name, members_of
from tidegate.core.formats.framing import SSE

_BLANKS = b" \t\r\n"
_NULL = Raw(b"null")
_value = JsonReader(object)
_ITEM_DONE = b'"response.output_item.done"'


class ClientEvent(NamedTuple):
    """One message of a client: an event of its own, as `response.create` is."""

    type: str
    fields: dict[str, Raw]  # of the request in it
    generates: bool = True  # False: the input is only to be remembered
    previous: str | None = None  # the id of the response that it goes on from
    stores: bool = True


class Turn:
    """One turn of a conversation: a request, and what has been answered to it so far."""

    __slots__ = ("body", "items", "items_bytes", "response_id", "start")

    def __init__(self, body: bytes, start: int) -> None:
        """Keep a request; its input begins at `start` and ends the body; 0: it has none."""
        self.body = body
        self.start = start
        self.items: list[bytes] = []
        self.items_bytes = 0
        self.response_id: str | None = None  # known when the answer is whole

    @property
    def held_bytes(self) -> int:
        """The memory that the turn takes."""
        return len(self.body) + self.items_bytes

    def drop(self) -> None:
        """Let go of request and answer, also while it is being answered."""
        self.body, self.start = b"", 0
        self.items, self.items_bytes = [], 0

    def add_item(self, event: bytes) -> bool:
        """Take an item of the answer, where the event completes one; return whether it did."""
        if _ITEM_DONE not in event:
            return False
        try:
            told = members_of(SSE.data(event))
            item = told["item"] if bytes(told["type"]) == _ITEM_DONE else None
        except (UnreadableJson, KeyError):
            return False
        if item is not None:
            self._add(item)
        return item is not None

    def finish(self, response_id: str, last_event: bytes) -> None:
        """Note that the answer is whole; its last event has the items where no other had them."""
        self.response_id = response_id
        if not self.items:
            with suppress(UnreadableJson, KeyError):  # an answer without items
                response = members_of(members_of(SSE.data(last_event))["response"])
                if said := _items(memoryview(response["output"])):
                    self._add(b"".join(said))

    def _add(self, item: Raw | bytes) -> None:
        self.items.append(bytes(item))
        self.items_bytes += sys.getsizeof(self.items[-1])

    def pieces(self) -> list[bytes | memoryview]:
        """Return input and answer as the items of a list, without its brackets."""
        said = _items(memoryview(self.body)[self.start : -1]) if self.start else []
        for item in self.items:
            said += [b",", item] if said else [item]
        return said


def read(message: bytes) -> ClientEvent:
    """Read a client's message. Raises ValueError with a sentence for the client."""
    try:
        fields = members_of(message)
        kind = _value(fields.pop("type", _NULL))
        generates = _value(fields.pop("generate", _NULL))
        stores = _value(fields.get("store", _NULL))
        previous = _value(fields.get("previous_response_id", _NULL))
    except UnreadableJson:
        raise ValueError("a message is an object in JSON") from None
    if previous is not None and not isinstance(previous, str):
        raise ValueError("previous_response_id is a text")
    fields.pop("background", None)
    fields["stream"] = Raw(b"true")
    said = kind if isinstance(kind, str) else ""
    return ClientEvent(said, fields, generates is not False, previous, stores is not False)


def request(fields: Mapping[str, Raw], former: Turn | None = None) -> Turn:
    """Make the request of these fields, behind what `former` holds."""
    parts: list[bytes | memoryview] = [b"{"]
    for name, value in fields.items():
        if name != "input" and not (former is not None and name == "previous_response_id"):
            parts += [as_name(name), b":", memoryview(value), b","]
    if former is None and "input" not in fields:
        parts[-1] = b"}"
        return Turn(b"".join(parts), 0)
    parts.append(b'"input":')
    start = sum(map(len, parts))
    given = memoryview(fields.get("input", b"null"))
    if former is None:
        parts.append(given)
    else:
        earlier, new = former.pieces(), _items(given)
        parts += [b"[", *earlier, b"," if earlier and new else b"", *new, b"]"]
    parts.append(b"}")
    return Turn(b"".join(parts), start)


def _items(given: memoryview) -> list[bytes | memoryview]:
    """Return an input as the items of a list, without its brackets. Raises ValueError."""
    match bytes(given[:1]):
        case b'"':  # a text is short for a message of the user's
            return [b'{"type":"message","role":"user","content":', given, b"}"]
        case b"[":
            inner = given[1:-1]
            return [inner] if any(byte not in _BLANKS for byte in inner) else []
        case b"n":
            return []
    raise ValueError("input is a text or a list of items")
