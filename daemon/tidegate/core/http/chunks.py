"""Where a body that comes in chunks ends, what it announces, and what it costs beside its bytes.

A parser says what is in the chunks. This follows it on the side, for what a parser doesn't tell: a
chunk announces its size before it comes, so a body that will be too large is known at once; and
the lines of chunks and the trailer behind them are bounded in sum. Plain values, no I/O.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from tidegate.core.settings import KIB

# Of a line with a chunk's size, its extension included; no client we know sends extensions.
MAX_SIZE_LINE_BYTES = 256
MAX_EXTENSION_BYTES = 16 * KIB  # of a whole body, the bound that Node.js has
MAX_TRAILER_BYTES = 8 * KIB
MOST_DIGITS = 16  # of a size in hex: 2**64

_SIZE = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(;[^\n]*)?\r?\n")


class ChunksTooLarge(Exception):
    """Raised when more comes around the chunks than may; the text says what."""


class _Part(Enum):
    """Where in a chunked body we are."""

    SIZE = auto()
    DATA = auto()
    TRAILER = auto()
    OVER = auto()
    BROKEN = auto()  # this is no chunk; the parser says so to the client


class ChunkCounter:
    """Follows one chunked body, from its first chunk to the empty line behind its trailer."""

    __slots__ = ("_extensions", "_left", "_line", "_part", "announced_bytes", "trailer_bytes")

    def __init__(self) -> None:
        self.announced_bytes = 0  # the sum of all sizes so far
        self.trailer_bytes = 0
        self._part = _Part.SIZE
        self._line = b""  # the unfinished line
        self._left = 0  # of a chunk, with the line's end behind it
        self._extensions = 0

    def __repr__(self) -> str:
        return f"<ChunkCounter {self._part.name} announced={self.announced_bytes}>"

    def feed(self, data: bytes) -> int | None:
        """Follow what was read; returns the index in `data` behind the body, None while it goes on.

        Raises ChunksTooLarge.
        """
        at = 0
        while at < len(data):
            match self._part:
                case _Part.DATA:
                    step = min(self._left, len(data) - at)
                    at += step
                    self._left -= step
                    if not self._left:
                        self._part = _Part.SIZE
                case _Part.SIZE | _Part.TRAILER:
                    at = self._take_line(data, at)
                case _Part.OVER | _Part.BROKEN:
                    break
            if self._part is _Part.OVER:
                return at
        return None

    def _take_line(self, data: bytes, at: int) -> int:
        """Add to the unfinished line, and understand it when it is whole."""
        most = MAX_SIZE_LINE_BYTES if self._part is _Part.SIZE else MAX_TRAILER_BYTES
        end = data.find(b"\n", at, at + most + 1) + 1
        piece = data[at : end or at + most + 1]
        self._line += piece
        if self._part is _Part.TRAILER:
            self.trailer_bytes += len(piece)
            if self.trailer_bytes > MAX_TRAILER_BYTES:
                raise ChunksTooLarge(f"the trailer is longer than {MAX_TRAILER_BYTES} bytes")
        elif len(self._line) > MAX_SIZE_LINE_BYTES:
            raise ChunksTooLarge(f"a chunk's first line is longer than {MAX_SIZE_LINE_BYTES} bytes")
        if end:
            line, self._line = self._line, b""
            self._understand(line)
        return at + len(piece)

    def _understand(self, line: bytes) -> None:
        if self._part is _Part.TRAILER:
            if line in (b"\r\n", b"\n"):
                self._part = _Part.OVER
            return
        found = _SIZE.fullmatch(line)
        if found is None:
            self._part = _Part.BROKEN
            return
        digits, extension = found[1].lstrip(b"0"), found[2]
        self._extensions += len(extension or b"")
        if self._extensions > MAX_EXTENSION_BYTES:
            raise ChunksTooLarge(f"chunk extensions are longer than {MAX_EXTENSION_BYTES} bytes")
        size = int(digits[:MOST_DIGITS] or b"0", 16)
        self.announced_bytes += size
        self._part = _Part.DATA if size else _Part.TRAILER
        self._left = size + len(b"\r\n")
