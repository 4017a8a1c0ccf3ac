"""A run's window: the events that are still retained, `[first_seq, next_seq)`.

Events lie one behind the other in 64 KiB segments, and are split only when a subscriber attaches in
the middle. One object per event costs as much in headers as in text and leaves the heap in holes:
after a burst, memory stayed at idle + 40 % that way, against idle + 5 % with segments.

A cursor carries the byte offset beside the seq, so that reading on is a slice. The bytes counted
are the memory taken (a growing segment has slack), not the content.

What is over can be *packed*: its segments are replaced by themselves, deflated. Seqs, cursors and
offsets stay what they were, and a segment is inflated for the moment in which it is read.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tidegate.core.errors import CursorEvicted
from tidegate.core.formats.framing import SSE, Framing
from tidegate.core.runs.deflated import Packed, inflate, is_worth

SEGMENT_BYTES = 64 * 1024
_BESIDE_BYTES = 256  # what a segment costs beside its data, which counts when that is packed
Part = tuple[bytes, int, int]  # a segment: its data, what that was before it was packed, its events
_LEFT = -1  # the size of a segment that is not worth packing
_EMPTY_BYTES = sys.getsizeof(bytearray())


class Cursor(NamedTuple):
    """Where a reader stands: the next seq it wants, and that event's offset in the run."""

    seq: int
    offset: int


START = Cursor(0, 0)
_cursor = tuple.__new__  # what a NamedTuple is made by otherwise is written in Python


class _Segment:
    """Events from `first` on. The open one, the last, is a bytearray, a closed one is bytes."""

    __slots__ = ("data", "first", "size")

    def __init__(self, first: Cursor, data: bytearray | bytes) -> None:
        self.first = first
        self.data = data
        self.size = 0  # above 0: the data is packed, and was so large

    @property
    def held_bytes(self) -> int:
        return sys.getsizeof(self.data) + (_BESIDE_BYTES if self.size > 0 else 0)

    @property
    def events(self) -> bytes:
        """The events as they came."""
        return inflate(bytes(self.data), self.size) if self.size > 0 else bytes(self.data)


class Window:
    """Retains the events of one run, bounded by `cap_bytes`."""

    __slots__ = (
        "_open", "_open_bytes", "_room_bytes", "_segments", "cap_bytes", "end", "first_seq",
        "framing", "held_bytes",
    )  # fmt: skip

    def __init__(self, cap_bytes: int, framing: Framing = SSE) -> None:
        self.framing = framing
        self.cap_bytes = cap_bytes
        self.held_bytes = 0  # the memory taken, which is what the ledger is charged
        self.first_seq = 0  # the oldest seq held; equal to `next_seq` when nothing is
        self.end = START  # where the next event will stand
        self._segments: list[_Segment] = []
        self._open: bytearray | None = None  # the data of the last segment, while it grows
        self._open_bytes = 0  # the memory that it takes
        self._room_bytes = 0  # how long it may become before it takes more

    @property
    def next_seq(self) -> int:
        """How many events there have been."""
        return self.end.seq

    @property
    def start(self) -> Cursor:
        """The cursor at the oldest event held; the end where there is none."""
        return self._segments[0].first if self._segments else self.end

    def begin_at(self, seq: int) -> None:
        """Number the first event, which is still to come."""
        self.first_seq, self.end = seq, Cursor(seq, 0)

    def append(self, block: bytes, events: int) -> None:
        """Add complete events; the oldest segments go when the cap is exceeded.

        A block of several segments is cut between events, so that what goes is never more than a
        segment too much: one read may bring more than a small window holds.
        """
        size, data = len(block), self._open
        if data is not None and len(data) + size <= SEGMENT_BYTES:
            data += block
            if len(data) >= self._room_bytes:
                self._measure(data)
            seq, offset = self.end
            self.end = _cursor(Cursor, (seq + events, offset + size))
        elif size > SEGMENT_BYTES and events > 1:
            for portion, count in _portions(self.framing.split(block)):
                self._begin_segment(portion, count)
        else:
            self._begin_segment(block, events)
        if self.held_bytes > self.cap_bytes:
            self.trim(self.cap_bytes)

    def _measure(self, data: bytearray) -> None:
        """Count the memory of the last segment, which took more of it as it grew."""
        taken = sys.getsizeof(data)
        self.held_bytes += taken - self._open_bytes
        self._open_bytes, self._room_bytes = taken, taken - _EMPTY_BYTES

    def _begin_segment(self, block: bytes, events: int) -> None:
        """Close the last segment, into which the block does not fit, and open another."""
        if self._open is not None:
            self._close()
        self._open = bytearray(block) if len(block) < SEGMENT_BYTES else None
        data = block if self._open is None else self._open
        self._segments.append(_Segment(self.end, data))
        self._open_bytes = sys.getsizeof(data)
        self._room_bytes = self._open_bytes - _EMPTY_BYTES
        self.held_bytes += self._open_bytes
        self.end = Cursor(self.end.seq + events, self.end.offset + len(block))

    def _close(self) -> None:
        """Let the last segment grow no more: its slack goes."""
        closed = self._segments[-1].data = bytes(self._open or b"")
        self.held_bytes += sys.getsizeof(closed) - self._open_bytes
        self._open, self._open_bytes = None, 0

    def trim(self, keep_bytes: int) -> int:
        """Drop the oldest segments until at most `keep_bytes` are held; returns bytes freed."""
        before = self.held_bytes
        dropped = 0
        while self.held_bytes > keep_bytes:
            self.held_bytes -= self._segments[dropped].held_bytes
            dropped += 1
        del self._segments[:dropped]
        if not self._segments:
            self._open = None
        self.first_seq = self._segments[0].first.seq if self._segments else self.end.seq
        return before - self.held_bytes

    def cursor(self, seq: int) -> Cursor:
        """Find the cursor at `seq`, which may be `next_seq` at most. Raises CursorEvicted."""
        if not self.first_seq <= seq <= self.end.seq:
            raise CursorEvicted(self.first_seq)
        if seq == self.end.seq:
            return self.end
        segment = self._segments[self._index(seq)]
        skipped = self.framing.split(segment.events)[: seq - segment.first.seq]
        return Cursor(seq, segment.first.offset + sum(map(len, skipped)))

    def read(self, cursor: Cursor) -> tuple[bytes, Cursor]:
        """Read from `cursor` to the end of its segment; returns the events and the cursor behind.

        Empty at the end of the window. Raises CursorEvicted.
        """
        if cursor.seq >= self.end.seq:
            return b"", cursor
        if cursor.seq < self.first_seq:
            raise CursorEvicted(self.first_seq)
        index = self._index(cursor.seq)
        segment = self._segments[index]
        behind = self._segments[index + 1].first if index + 1 < len(self._segments) else self.end
        skipped = cursor.offset - segment.first.offset
        if segment.size > 0:
            return segment.events[skipped:], behind
        return bytes(segment.data[skipped:]), behind

    def read_all(self, cursor: Cursor) -> bytes:
        """Read from `cursor` to the end of the window. Raises CursorEvicted."""
        blocks: list[bytes] = []
        while cursor.seq < self.end.seq:
            block, cursor = self.read(cursor)
            blocks.append(block)
        return b"".join(blocks)

    def last_events(self, count: int) -> list[bytes]:
        """Give the last `count` events, fewer where fewer are held."""
        events: list[bytes] = []
        for segment in reversed(self._segments):
            events[:0] = self.framing.last(segment.events, count - len(events))
            if len(events) >= count:
                break
        return events

    # --- packed -------------------------------------------------------------------------------

    def loose(self, most_bytes: int) -> list[bytes]:
        """Find what may be packed: segments of `most_bytes` in all, or one; closes the window."""
        found: list[bytes] = []
        if self._open is not None:
            self._close()
        for segment in self._segments:
            if not segment.size and is_worth(len(segment.data)):
                found.append(bytes(segment.data))
                most_bytes -= len(segment.data)
                if most_bytes <= 0:
                    break
        return found

    def pack(self, found: Iterable[Packed]) -> None:
        """Replace segments that `loose` found by what they are deflated; None is not worth it.

        One that is gone meanwhile is passed over.
        """
        packed = {id(data): (data, small) for data, small in found}
        for segment in self._segments:
            data, small = packed.get(id(segment.data), (None, None))
            if data is None:
                continue
            if small is None:
                segment.size = _LEFT
                continue
            self.held_bytes -= segment.held_bytes
            segment.data, segment.size = small, len(data)
            self.held_bytes += segment.held_bytes

    def parts(self) -> tuple[Part, ...]:
        """Give what is held as plain values, from which `restore` makes it again."""
        firsts = [segment.first.seq for segment in self._segments]
        return tuple(
            (bytes(segment.data), segment.size, behind - first)
            for segment, first, behind in zip(
                self._segments, firsts, (*firsts[1:], self.end.seq), strict=True
            )
        )

    def restore(self, parts: Iterable[Part]) -> None:
        """Hold, in an empty window, what another one gave; it stays packed."""
        for data, size, events in parts:
            segment = _Segment(self.end, data)
            segment.size = size
            self._segments.append(segment)
            self.held_bytes += segment.held_bytes
            seq, offset = self.end
            self.end = Cursor(seq + events, offset + (size if size > 0 else len(data)))

    def _index(self, seq: int) -> int:
        return bisect_right(self._segments, seq, key=lambda segment: segment.first.seq) - 1


def _portions(whole: list[bytes]) -> Iterator[tuple[bytes, int]]:
    """Cut a large block into portions of about a segment, with the number of events in each."""
    events: list[bytes] = []
    size = 0
    for event in whole:
        events.append(event)
        size += len(event)
        if size >= SEGMENT_BYTES:
            yield b"".join(events), len(events)
            events, size = [], 0
    if events:
        yield b"".join(events), len(events)
