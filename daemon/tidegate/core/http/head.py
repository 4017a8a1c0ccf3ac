"""Where the head of a request ends, and how much of it there may be.

Counted while it arrives, before anything of it is understood: aiohttp and llhttp bound a line and
the number of lines, and so let one head be 1 MB. nginx and Envoy bound the sum as well, at 32 and
60 KiB. Plain values, no I/O: bytes come in as they were read, cut anywhere, and the verdict is the
same for every cut.
"""

from __future__ import annotations

import re

from tidegate.core.settings import KIB

# Four cookies of 4 KiB, a long key and a long target together are half of this.
MAX_HEAD_BYTES = 32 * KIB
MAX_FIELDS = 128  # browsers send some 20, proxies add a few
MAX_LINES = MAX_FIELDS + 2  # the request line, and the empty one at the end

_BEGINNING_BYTES = 128  # enough to tell which route a head is for
_EMPTY_LINES = re.compile(rb"[\r\n]*")
_END = re.compile(rb"\n\r?\n")


class HeadTooLarge(Exception):
    """Raised when a head is larger than it may be; the text says by which bound."""


class HeadCounter:
    """Counts one head, from its first byte to the empty line that ends it.

    Empty lines before the request line are skipped, as RFC 9112 (2.2) asks, and counted.
    """

    __slots__ = ("_edge", "beginning", "lines", "size")

    def __init__(self) -> None:
        self.size = 0  # bytes so far
        self.lines = 0
        self.beginning = b""  # the first bytes of the request line
        self._edge = b""  # a line's end at the cut, which the next bytes may make the last one

    def __repr__(self) -> str:
        return f"<HeadCounter {self.size} bytes, {self.lines} lines>"

    def feed(self, data: bytes) -> int | None:
        """Count what was read; return the index in `data` behind the head, None while it goes on.

        Raises HeadTooLarge.
        """
        room = MAX_HEAD_BYTES - self.size
        end = self._find_end(data, room)
        stop = min(len(data), room) if end is None else end
        self.lines += data.count(b"\n", 0, stop)
        if self.lines > MAX_LINES:
            raise HeadTooLarge(f"the head has more than {MAX_FIELDS} fields")
        if end is None and len(data) > room:
            raise HeadTooLarge(f"the head is longer than {MAX_HEAD_BYTES} bytes")
        self.size += stop
        return end

    def _find_end(self, data: bytes, room: int) -> int | None:
        at = 0
        if not self.beginning:
            found = _EMPTY_LINES.match(data, 0, room)
            assert found is not None, "it matches nothing, too"
            at = found.end()
        if len(self.beginning) < _BEGINNING_BYTES:
            self.beginning += data[at : at + _BEGINNING_BYTES - len(self.beginning)]
        if self._edge:
            joined = self._edge + data[:2]
            if (found := _END.match(joined)) and found.end() - len(self._edge) <= room:
                return found.end() - len(self._edge)
        if found := _END.search(data, at, room):
            return found.end()
        if self.beginning:
            last = (self._edge + data[-2:])[-2:]
            self._edge = last if last == b"\n\r" else b"\n" if last.endswith(b"\n") else b""
        return None

    @property
    def path(self) -> str:
        """The path of the request line as far as it is known, for errors in its route's shape."""
        words = self.beginning.split(b" ", 2)
        return words[1].partition(b"?")[0].decode("latin-1") if len(words) > 1 else ""
