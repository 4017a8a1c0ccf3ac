"""WebSocket frames (RFC 6455), as a server reads and writes them: bytes in, whole messages out.

A reader of our own, because what a client has sent of a message must be known while it arrives:
`held_bytes` is the memory taken, after every read, so that a message can be charged, bounded and
given up before it is whole. A piece is unmasked and checked for UTF-8 as it comes, into the one
buffer that is handed out in the end; a library that joins, unmasks and decodes afterwards holds a
message three times, and seven times where its text is not Latin.

No extension is spoken: `permessage-deflate` is never agreed to, so nothing is ever inflated.
"""

from __future__ import annotations

import codecs
import re
import sys
from base64 import b64encode
from collections.abc import Callable
from enum import IntEnum
from hashlib import sha1
from typing import NamedTuple, Protocol

_CONTROL_BYTES = 125  # of payload in a ping, a pong or a close
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Opcode(IntEnum):
    """The kinds of frames."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Why a connection ends."""

    OK = 1000
    GOING_AWAY = 1001
    PROTOCOL = 1002
    BAD_TEXT = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    TRY_AGAIN = 1013


class WebSocketFault(Exception):
    """Raised when a client broke the protocol or sent more than it may: the connection ends."""

    def __init__(self, code: CloseCode, message: str) -> None:
        """Name the fault; `message` is what the client is told, at most 123 bytes."""
        super().__init__(message)
        self.code = code
        self.message = message


class Frame(NamedTuple):
    """A whole message, TEXT in valid UTF-8 or BINARY, or a control frame."""

    opcode: Opcode
    data: bytes


class Buffer(Protocol):
    """Collects a message: `io.BytesIO`, which hands its memory out without a copy."""

    def write(self, piece: bytes, /) -> int:
        """Add a piece."""

    def getvalue(self) -> bytes:
        """Give all of it."""


class FrameReader:
    """Reads a client's bytes as they come. Feed it, then call `next` until it returns None."""

    __slots__ = (
        "_at",
        "_backlog",
        "_control",
        "_decoder",
        "_fin",
        "_left",
        "_mask",
        "_message",
        "_message_bytes",
        "_new_buffer",
        "_opcode",
        "_opened",
        "has_more",
        "keeps",
        "max_bytes",
    )

    def __init__(self, max_bytes: int, new_buffer: Callable[[], Buffer]) -> None:
        """Read frames; `max_bytes` bounds a message, whatever the number of its frames."""
        self._new_buffer = new_buffer
        self.keeps = True  # False: messages are read over, control frames are not
        self.has_more = False  # `next` has stopped before the end of what was read
        self.max_bytes = max_bytes
        self._backlog = b""  # what was read, of which `_at` bytes have been taken
        self._at = 0
        self._opened: Opcode | None = None  # the message that is arriving
        self._message: Buffer | None = None
        self._message_bytes = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._opcode: Opcode | None = None  # the frame that is arriving
        self._control = bytearray()
        self._fin = False
        self._left = 0  # of its payload
        self._mask = b""

    @property
    def held_bytes(self) -> int:
        """The memory that what has arrived takes; 0 between messages."""
        message = 0 if self._message is None else sys.getsizeof(self._message)
        return len(self._backlog) + message

    @property
    def is_between(self) -> bool:
        """Whether nothing is unfinished: no message, no frame, no part of a header."""
        return not self._backlog and self._opcode is None and self._opened is None

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._backlog = self._backlog[self._at :] + data if self._backlog else data
        self._at = 0

    def discard(self) -> None:
        """Let go of what it holds of a message, and keep nothing of those that follow."""
        self.keeps = False
        self._message = None

    def next(self, most: int = 1000) -> Frame | None:
        """Give the next whole message or control frame; None where there is none yet.

        It looks at `most` frames, so that tiny ones can't keep it for long, and then `has_more`
        says to come again. Raises WebSocketFault.
        """
        self.has_more = False
        for _ in range(most):
            if self._opcode is None and not self._read_header():
                break
            if not self._read_payload():
                break
            found = self._finish_frame()
            if found is not None:
                return found
        else:
            self.has_more = True
        if self._at:
            self._backlog, self._at = self._backlog[self._at :], 0
        return None

    # --- one frame --------------------------------------------------------------------------------

    def _read_header(self) -> bool:
        """Take a header, if it is whole."""
        at, backlog = self._at, self._backlog
        if len(backlog) - at < 2:
            return False
        first, second = backlog[at], backlog[at + 1]
        length = second & 0x7F
        more = {126: 2, 127: 8}.get(length, 0)
        size = 2 + more + 4
        if len(backlog) - at < size:
            # What is wrong already is said at once, not when the rest has come.
            self._check_header(first, second, length)
            return False
        if more:
            length = int.from_bytes(backlog[at + 2 : at + 2 + more])
        self._opcode = self._check_header(first, second, length)
        self._fin = bool(first & 0x80)
        self._left = length
        self._mask = backlog[at + size - 4 : at + size]
        self._at = at + size
        return True

    def _check_header(self, first: int, second: int, length: int) -> Opcode:
        """Check a header; returns the kind of frame. Raises WebSocketFault."""
        if first & 0x70:
            raise _broken("a reserved bit is set, and no extension was agreed on")
        if not second & 0x80:
            raise _broken("a client's frames are masked")
        try:
            opcode = Opcode(first & 0x0F)
        except ValueError:
            raise _broken("a frame of an unknown kind") from None
        if opcode >= Opcode.CLOSE:
            if not first & 0x80 or length > _CONTROL_BYTES:
                raise _broken("a control frame is whole and at most 125 bytes long")
        elif (opcode is Opcode.CONTINUATION) is (self._opened is None):
            raise _broken("a message begins with its kind and goes on with continuations")
        elif self._message_bytes + length > self.max_bytes:
            raise WebSocketFault(
                CloseCode.TOO_LARGE, f"the message is larger than {self.max_bytes} bytes"
            )
        return opcode

    def _read_payload(self) -> bool:
        """Take what there is of it; returns whether that is all."""
        at, left = self._at, self._left
        piece = self._backlog[at : at + left]
        self._at = at + len(piece)
        self._left = left - len(piece)
        if self._at == len(self._backlog):
            self._backlog, self._at = b"", 0
        if piece:
            turn = len(piece) % 4
            piece, self._mask = unmasked(piece, self._mask), self._mask[turn:] + self._mask[:turn]
            self._keep(piece)
        return not self._left

    def _keep(self, piece: bytes) -> None:
        opcode = self._opcode
        assert opcode is not None
        if opcode >= Opcode.CLOSE:
            self._control += piece
            return
        self._message_bytes += len(piece)
        if not self.keeps:
            return
        if (self._opened or opcode) is Opcode.TEXT:
            self._check_text(piece)
        if self._message is None:
            self._message = self._new_buffer()
        self._message.write(piece)

    def _check_text(self, piece: bytes, *, final: bool = False) -> None:
        if piece.isascii() and not self._decoder.getstate()[0]:
            return
        try:
            self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            raise WebSocketFault(CloseCode.BAD_TEXT, "a text is valid UTF-8") from None

    def _finish_frame(self) -> Frame | None:
        """Give what the frame that has ended completes."""
        opcode, self._opcode = self._opcode, None
        assert opcode is not None
        if opcode >= Opcode.CLOSE:
            data = bytes(self._control)
            self._control.clear()
            return Frame(opcode, data)
        kind = opcode if self._opened is None else self._opened
        if not self._fin:
            self._opened = kind
            return None
        self._opened = None
        self._message_bytes = 0
        if not self.keeps:
            return None
        if kind is Opcode.TEXT:
            self._check_text(b"", final=True)
        message, self._message = self._message, None
        return Frame(kind, b"" if message is None else message.getvalue())


def unmasked(piece: bytes, mask: bytes) -> bytes:
    """Combine each byte with its own of the four; as one number, for that is fast."""
    size = len(piece)
    key = (mask * (size // 4 + 1))[:size]
    number = int.from_bytes(piece, "little") ^ int.from_bytes(key, "little")
    return number.to_bytes(size, "little")


def frame(opcode: Opcode, data: bytes) -> bytes:
    """Write a server's frame: whole, and not masked."""
    size = len(data)
    if size < 126:
        return b"%c%c%b" % (0x80 | opcode, size, data)
    if size < 65536:
        return b"%c%c%b%b" % (0x80 | opcode, 126, size.to_bytes(2), data)
    return b"%c%c%b%b" % (0x80 | opcode, 127, size.to_bytes(8), data)


def close_frame(code: int, reason: str = "") -> bytes:
    """Write a close frame; a reason has at most 123 bytes."""
    text = reason.encode()[: _CONTROL_BYTES - 2].decode("utf-8", "ignore").encode()
    return frame(Opcode.CLOSE, code.to_bytes(2) + text)


def read_close(data: bytes) -> int:
    """Read a client's close frame; returns the code to answer with. Raises WebSocketFault."""
    if not data:
        return CloseCode.OK
    code = int.from_bytes(data[:2])
    if len(data) == 1 or not (3000 <= code < 5000 or code in _CODES):
        raise _broken("a close frame with a code that is none")
    try:
        data[2:].decode()
    except UnicodeDecodeError:
        raise WebSocketFault(CloseCode.BAD_TEXT, "a text is valid UTF-8") from None
    return code


# What may be sent; 1004, 1005, 1006 and 1015 may not.
_CODES = frozenset({*range(1000, 1004), *range(1007, 1015)})


def accept_of(key: str) -> str | None:
    """Answer a handshake's key; None where it is none."""
    if not _KEY.fullmatch(key):
        return None
    return b64encode(sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()).decode()


def _broken(what: str) -> WebSocketFault:
    return WebSocketFault(CloseCode.PROTOCOL, what)
