r"""Server-sent events: from bytes as they come to whole events, bytes unchanged.

An upstream's bytes arrive cut anywhere. The framer keeps the unfinished tail and hands out
blocks of complete events, so that a reader of a block stands at an event boundary, where an
error event or a keep-alive may be written.

What is dropped: comments, `id:`, `retry:`, a leading BOM, blank lines between events and events
without data (https://html.spec.whatwg.org/multipage/server-sent-events.html). Everything else
keeps its bytes. The cut never shows: fed whole or byte by byte, the concatenated blocks are the
same. For that, a lone CR at the end of the buffer waits for its possible LF, except in a stream
that ends its lines with CR alone, where `\r\r` ends the event and an LF after it is a blank line.

Streams without a CR, which are nearly all, are cut at the last blank line of what came. If each
event is one `data:` line besides, as is common, splitting in C shows it, and none is looked at by
itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tidegate.core.errors import EventTooLarge

MAX_EVENT_BYTES = 4 * 1024 * 1024  # an image in base64 fits; a runaway line does not

_BOM = b"\xef\xbb\xbf"
_LF, _CR = b"\n\r"  # a byte is found faster by its number
_END = re.compile(rb"\r\r|(?:\r\n|\n)(?:\r\n|\n|\r(?!\n))")
_END_BYTES = 4  # the longest end: CR LF CR LF
_DROPPED = re.compile(rb"(?:^|[\r\n])(?::|(?:id|retry)(?=[:\r\n]))")
_DATA = re.compile(rb"(?:^|[\r\n])data(?=[:\r\n])")
_DROPPED_LINE = re.compile(rb":|(?:id|retry)(?::|$)")
_DATA_LINE = re.compile(rb"(?:^|[\r\n])data(?:: ?([^\r\n]*))?(?=[\r\n])")
_EVENT_LINE = re.compile(rb"(?:^|[\r\n])event: ?([^\r\n]*)")


def plain_payloads(block: bytes) -> list[bytes]:
    """Give what each event says if each is one `data:` line ended by LF LF; else nothing."""
    line, _, rest = block.partition(b"\n")
    if _CR in block or line == (payload := line.removeprefix(b"data:")):
        return []
    if rest == b"\n":  # nearly always: one event
        return [payload]
    if not block.endswith(b"\n\n"):
        return []
    payloads = block[5:-2].split(b"\n\ndata:")
    return [] if _LF in b"".join(payloads) else payloads  # faster than counting either


def split_events(block: bytes) -> list[bytes]:
    """Split a block that a framer handed out into its events, each with its end."""
    if _CR not in block:
        return [event + b"\n\n" for event in block.split(b"\n\n")[:-1]]
    ends = [0, *(end.end() for end in _END.finditer(block))]
    return [block[start:end] for start, end in pairwise(ends)]


def each_event(block: bytes) -> Iterator[bytes]:
    """Go through a block's events; what comes behind the last one asked for is not looked at."""
    if _CR in block:
        yield from split_events(block)
        return
    start = 0
    while start < len(block):
        end = block.index(b"\n\n", start) + 2
        yield block[start:end]
        start = end


def last_events(block: bytes, most: int) -> list[bytes]:
    """Find the last events, at most `most`, without a look at all of them where that is easy."""
    if _CR not in block:
        return [event + b"\n\n" for event in block.rsplit(b"\n\n", most + 1)[-most - 1 : -1]]
    return split_events(block)[-most:]


def event_data(event: bytes) -> bytes:
    """Give the payload of one event: its data lines joined with LF."""
    if event.endswith(b"\n\n") and _CR not in event:  # nearly always
        lines = event.count(b"\n")
        if lines == 2 and event.startswith(b"data: "):
            return event[6:-2]
        if lines == 3 and event.startswith(b"event: ") and (at := event.find(b"\ndata: ")) > 0:
            return event[at + 7 : -2]
    return b"\n".join(line or b"" for line in _DATA_LINE.findall(event))


def event_name(event: bytes) -> str:
    """Give the event's type; "message" where none is given, as the standard says."""
    names = _EVENT_LINE.findall(event)
    return names[-1].decode("utf-8", "replace") if names and names[-1] else "message"


def with_ids(block: bytes, first_seq: int) -> bytes:
    """Write an `id:` line before each event, numbered from `first_seq`."""
    if block.find(b"\n\n") == len(block) - 2 and _CR not in block:
        return b"id: %d\n%b" % (first_seq, block)
    events = split_events(block)
    return b"".join(b"id: %d\n%b" % (first_seq + i, event) for i, event in enumerate(events))


class SseFramer:
    """Cuts a byte stream into blocks of complete events."""

    __slots__ = (
        "_has_cr", "_limit_bytes", "_scanned", "_started", "_tail", "partial_bytes", "payloads"
    )  # fmt: skip

    def __init__(self, limit_bytes: int = MAX_EVENT_BYTES) -> None:
        self._tail = bytearray()
        self._has_cr = False  # in the tail, so that an event's end is to be searched for
        self._scanned = 0  # of a tail with a CR: no event ends before this offset
        self._started = False
        self._limit_bytes = limit_bytes
        self.payloads: Sequence[bytes] = ()
        self.partial_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Add what was read; returns the events it completed, as one block, and their number.

        Raises EventTooLarge when one event exceeds the limit.
        """
        if not self.partial_bytes and len(data) <= self._limit_bytes:
            self.payloads = plain_payloads(data)
            if self.payloads:
                self._started = True
                return data, len(self.payloads)
        block, events = self._cut(data)
        self.partial_bytes = sys.getsizeof(self._tail) if self._tail else 0
        return block, events

    def _cut(self, data: bytes) -> tuple[bytes, int]:
        """Cut behind the last event that is whole."""
        if not self._started and not (data := self._without_bom(data)):
            return b"", 0
        if self._has_cr or _CR in data:
            return self._search(data)
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            end = 1 if data.startswith(b"\n") and self._tail.endswith(b"\n") else 0
        if not end:
            self._tail += data
            self._check(len(self._tail))
            return b"", 0
        block = b"".join((self._tail, data[:end])) if self._tail else data[:end]
        self._tail = bytearray(data[end:])
        return self._kept(block)

    def finish(self) -> tuple[bytes, int]:
        """End the stream: an event whose last line end was in doubt is complete after all.

        An unterminated last event is discarded, as the standard says.
        """
        block, events = self._search(b"", final=True) if self._has_cr else (b"", 0)
        self._tail, self._has_cr, self.partial_bytes = bytearray(), False, 0
        return block, events

    def _without_bom(self, data: bytes) -> bytes:
        """Skip a leading BOM; nothing is given while too little has arrived to tell."""
        data = bytes(self._tail) + data
        self._started = len(data) >= len(_BOM) or not _BOM.startswith(data)
        self._tail = bytearray(b"" if self._started else data)
        return data.removeprefix(_BOM) if self._started else b""

    def _search(self, data: bytes, *, final: bool = False) -> tuple[bytes, int]:
        """Search for the ends of events where a CR may be part of one."""
        if not self._has_cr:
            self._scanned = max(0, len(self._tail) - _END_BYTES + 1)
        self._tail += data
        tail, end = self._tail, 0
        for found in _END.finditer(tail, self._scanned):
            in_doubt = found.end() == len(tail) and tail.endswith(b"\r") and tail[-2] != 0x0D
            if not in_doubt or final:
                end = found.end()
        if end:
            self._tail = tail[end:]
        self._has_cr = _CR in self._tail if end else True
        self._scanned = max(0, len(self._tail) - _END_BYTES + 1)
        if end:
            return self._kept(bytes(memoryview(tail)[:end]))
        self._check(len(tail))
        return b"", 0

    def _kept(self, block: bytes) -> tuple[bytes, int]:
        """Give what is kept of whole events, and how many these are."""
        self._check(len(self._tail))
        if len(block) > self._limit_bytes:
            self._check(max(map(len, split_events(block))))
        self.payloads = plain_payloads(block)
        if self.payloads:
            return block, len(self.payloads)
        kept = [event for raw in split_events(block) if (event := _clean(raw))]
        return b"".join(kept), len(kept)

    def _check(self, size: int) -> None:
        if size > self._limit_bytes:
            raise EventTooLarge(self._limit_bytes)


def _clean(raw: bytes) -> bytes:
    """Drop what is dropped of one event; empty when nothing of it is left to dispatch."""
    event = raw.lstrip(b"\r\n")
    if (
        event.startswith(b"event:")
        and b"\ndata:" in event
        and event.count(b"\n") == 3
        and _CR not in event
    ):
        return event  # a name, a line of data, and the end
    if not _DATA.search(event):
        return b""
    if not _DROPPED.search(event):
        return event
    lines = [line for line in event.splitlines() if line and not _DROPPED_LINE.match(line)]
    return b"\n".join(lines) + b"\n\n"
