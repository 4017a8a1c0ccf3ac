"""How a stream is divided into events: server-sent events, one JSON value a line, or not at all.

A framer takes an upstream's bytes as they come and hands out blocks of complete events. The rest
are questions about such blocks, which a window, a replay and a verdict ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from tidegate.core.formats import ndjson, sse
from tidegate.core.formats.ndjson import NdjsonFramer
from tidegate.core.formats.sse import SseFramer


class Framer(Protocol):
    """Cuts a byte stream into blocks of complete events."""

    # What the last block's events say, where all have the framing's simplest form; else nothing.
    # As large as the block: it is for who takes the block to let go of.
    payloads: Sequence[bytes]
    partial_bytes: int  # the memory that the unfinished tail takes; 0 between events

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Add what was read; returns the events it completed, as one block, and their number.

        Raises EventTooLarge when one event exceeds the limit.
        """

    def finish(self) -> tuple[bytes, int]:
        """End the stream; returns what is complete after all, and the number of its events."""


class Framing:
    """Server-sent events."""

    name = "sse"
    content_type = "text/event-stream; charset=utf-8"
    accept = "text/event-stream"
    accepted: tuple[str, ...] = ("text/event-stream",)  # what an upstream's content type may be
    marker: bytes | None = b"[DONE]"  # what an event may say instead of JSON

    def takes(self, content_type: str) -> bool:
        """Say whether an answer of this content type, in lower case, is a stream of ours."""
        return content_type.startswith(self.accepted)

    def framer(self) -> Framer:
        return SseFramer()

    def split(self, block: bytes) -> list[bytes]:
        """Split a block into its events, each with its end."""
        return sse.split_events(block)

    def each(self, block: bytes) -> Iterator[bytes]:
        """Go through a block's events, the first ones at no cost for the rest."""
        return sse.each_event(block)

    def last(self, block: bytes, most: int) -> list[bytes]:
        """Find the last events of a block, at most `most`."""
        return sse.last_events(block, most)

    def data(self, event: bytes) -> bytes:
        """Give the payload of one event."""
        return sse.event_data(event)

    def event_name(self, event: bytes) -> str:
        """Give the event's type, "message" where it has none."""
        return sse.event_name(event)

    def numbered(self, block: bytes, first_seq: int) -> bytes:
        """Write the block as server-sent events with their `id:`, numbered from `first_seq`."""
        return sse.with_ids(block, first_seq)

    def as_sse(self, block: bytes) -> bytes:
        """Write the block as server-sent events."""
        return block

    def payloads(self, block: bytes) -> list[bytes]:
        """Give the payload of each event."""
        return [sse.event_data(event) for event in sse.split_events(block)]


class _Ndjson(Framing):
    """One JSON value a line, as Ollama streams."""

    name = "ndjson"
    content_type = "application/x-ndjson"
    accept = "application/x-ndjson"
    accepted = ("application/x-ndjson", "application/jsonl", "application/json")
    marker = None

    def framer(self) -> Framer:
        return NdjsonFramer()

    def split(self, block: bytes) -> list[bytes]:
        return ndjson.split_lines(block)

    def each(self, block: bytes) -> Iterator[bytes]:
        return iter(self.split(block))

    def last(self, block: bytes, most: int) -> list[bytes]:
        return [line + b"\n" for line in block.rsplit(b"\n", most + 1)[-most - 1 : -1]]

    def data(self, event: bytes) -> bytes:
        # Between two tokens JSON allows a CR, which would end a line of a server-sent event.
        return event.rstrip(b"\r\n").replace(b"\r", b" ")

    def event_name(self, event: bytes) -> str:
        return "message"

    def numbered(self, block: bytes, first_seq: int) -> bytes:
        lines = enumerate(self.split(block), first_seq)
        return b"".join(b"id: %d\ndata: %b\n\n" % (seq, self.data(line)) for seq, line in lines)

    def as_sse(self, block: bytes) -> bytes:
        return b"".join(b"data: %b\n\n" % self.data(line) for line in self.split(block))

    def payloads(self, block: bytes) -> list[bytes]:
        return block.split(b"\n")[:-1]


class _RawFramer:
    """Every read is an event."""

    partial_bytes = 0

    def __init__(self) -> None:
        self.payloads: Sequence[bytes] = ()

    def feed(self, data: bytes) -> tuple[bytes, int]:
        return data, 1

    def finish(self) -> tuple[bytes, int]:
        return b"", 0


class _Raw(Framing):
    """Bytes without events, cut wherever a read was: sound, for instance."""

    name = "raw"
    content_type = "application/octet-stream"
    accept = "*/*"

    def takes(self, content_type: str) -> bool:
        return "json" not in content_type

    def framer(self) -> Framer:
        return _RawFramer()

    def split(self, block: bytes) -> list[bytes]:
        return [block] if block else []

    def each(self, block: bytes) -> Iterator[bytes]:
        return iter(self.split(block))

    def last(self, block: bytes, most: int) -> list[bytes]:
        return self.split(block)

    def data(self, event: bytes) -> bytes:
        return event


SSE = Framing()
NDJSON = _Ndjson()
RAW = _Raw()
