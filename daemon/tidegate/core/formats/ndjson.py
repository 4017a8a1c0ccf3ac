r"""Newline-delimited JSON: from bytes as they come to whole lines, bytes unchanged.

Blank lines are dropped; a line ends at LF, and a CR before it stays. A last line without its end
is kept if it is JSON, for some servers leave the end out, and is discarded otherwise: it broke off.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tidegate.core.errors import EventTooLarge
from tidegate.core.formats.foreign_json import is_json
from tidegate.core.formats.sse import MAX_EVENT_BYTES


def split_lines(block: bytes) -> list[bytes]:
    """Split a block that a framer handed out into its lines, each with its end."""
    return [line + b"\n" for line in block.split(b"\n")[:-1]]


class NdjsonFramer:
    """Cuts a byte stream into blocks of complete lines."""

    __slots__ = ("_limit_bytes", "_tail", "partial_bytes", "payloads")

    def __init__(self, limit_bytes: int = MAX_EVENT_BYTES) -> None:
        self._tail = bytearray()
        self._limit_bytes = limit_bytes
        self.payloads: Sequence[bytes] = ()
        self.partial_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Add what was read; returns the lines it completed, as one block, and their number.

        Raises EventTooLarge when one line exceeds the limit.
        """
        self.payloads = ()
        block, lines = self._cut(data)
        self.partial_bytes = sys.getsizeof(self._tail) if self._tail else 0
        return block, lines

    def _cut(self, data: bytes) -> tuple[bytes, int]:
        end = data.rfind(b"\n") + 1
        if not end:
            self._tail += data
            self._check(len(self._tail))
            return b"", 0
        block = data[:end]
        if self._tail:
            block = bytes(self._tail) + block
            self._tail = bytearray()
        self._tail += data[end:]
        self._check(len(self._tail))
        payloads = block.split(b"\n")[:-1]
        if block.count(b"}\n") == len(payloads) and len(block) <= self._limit_bytes:
            self.payloads = payloads  # and none is blank
            return block, len(payloads)
        lines = [line for line in split_lines(block) if line.strip()]
        self._check(max(map(len, lines), default=0))
        return b"".join(lines), len(lines)

    def finish(self) -> tuple[bytes, int]:
        """End the stream; a last line that is whole but for its end counts."""
        tail, self._tail, self.partial_bytes = bytes(self._tail), bytearray(), 0
        return (tail + b"\n", 1) if is_json(tail) else (b"", 0)

    def _check(self, size: int) -> None:
        if size > self._limit_bytes:
            raise EventTooLarge(self._limit_bytes)
