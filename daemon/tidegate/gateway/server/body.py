"""A request's body, read whole and never larger than it may be.

Every byte is counted as it arrives and again as it is inflated. aiohttp's own inflating is off,
for it looks at a limit only after it has inflated: 466 MB at the peak for a bomb of 298 KB.
zlib's `max_length` stops at the first byte too many instead.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from aiohttp import HttpVersion11, StreamReader, hdrs

from tidegate.gateway import web
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.web import BaseRequest

# One step of inflating takes some 3 ms; then other connections have their turn.
_STEP_BYTES = 1024 * 1024
_MOST_DIGITS = 20  # of a length in 64 bits

_ACCEPTED = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "identity": None, "": None}


async def read_body(
    request: BaseRequest,
    *,
    max_bytes: int,
    deadline_s: float,
    charge: Callable[[int], None],
    fits_bytes: int | None = None,
) -> bytes:
    """Read the body whole, inflated.

    `max_bytes` bounds it both as sent and as inflated; `deadline_s` bounds the time until the
    last byte has arrived. `fits_bytes` is what memory ever has room for, where that is known: who
    sends more need not come again. `charge` is told, before each piece is kept, how much is held
    then, and may raise: that is the memory taken, up to an eighth more than the content. It is the
    caller's to give back, after an error too, where it releases the rest.

    Raises Refused: 400 for what can't be decoded, 408 late, 413 too large, 415 for another
    encoding, 417 for another expectation. 408 and 413 end the connection: the rest of such a
    body is not worth reading.
    """
    encoding = _encoding(request)
    bound = _Bound(max_bytes, "limits.max_body")
    if fits_bytes is not None and fits_bytes < max_bytes:
        bound = _Bound(fits_bytes, "which memory.budget leaves room for")
    if content_length(request.headers) > bound.bytes:
        raise bound.refusal()
    content = request.content
    kept = _Kept(bound, charge)
    try:
        if encoding is None and content.is_eof():  # it came together with its head, as most do
            return kept.whole(content.read_nowait())
        _invite(request)
        async with asyncio.timeout(deadline_s):
            if encoding is None:
                while chunk := await content.readany():
                    kept.add(chunk)
            else:
                await _inflate(content, encoding, kept)
    except TimeoutError:
        raise Refused(
            408,
            f"the body was not complete after {deadline_s:g} s (limits.body_s)",
            "body_timeout",
            close=True,
        ) from None
    except web.RequestPayloadError:
        raise Refused(400, "the framing of the body is broken", "bad_body", close=True) from None
    return kept.value()


def content_length(headers: Mapping[str, str]) -> int:
    """Read the announced length; 0 without one. A parser has seen that it has only digits.

    5,000 of them may be zeros, and Python makes no number of more than 4,300 digits.
    """
    digits = headers.get(hdrs.CONTENT_LENGTH, "").lstrip("0")
    return int(digits[:_MOST_DIGITS] or "0")


def too_large(max_bytes: int) -> Refused:
    """Refuse a body that is larger than `limits.max_body`."""
    return _Bound(max_bytes, "limits.max_body").refusal()


class _Bound(NamedTuple):
    """How large a body may be, and which setting says so."""

    bytes: int
    why: str

    def refusal(self) -> Refused:
        return Refused(
            413,
            f"the body is larger than {self.bytes} bytes ({self.why});"
            " send less at once, or raise that setting",
            "body_too_large",
            close=True,
        )


class _Kept:
    """The bytes read so far."""

    __slots__ = ("_bound", "_buffer", "_charge", "room")

    def __init__(self, bound: _Bound, charge: Callable[[int], None]) -> None:
        self._bound = bound
        self._charge = charge
        self._buffer: io.BytesIO | None = None
        self.room = bound.bytes

    def refusal(self) -> Refused:
        """Make the answer that it is too large."""
        return self._bound.refusal()

    def _take(self, size: int) -> None:
        if size > self.room:
            raise self.refusal()
        self.room -= size
        held_bytes = self._bound.bytes - self.room
        # A BytesIO that has to grow takes an eighth more, so as not to grow with every piece.
        self._charge(held_bytes if size == held_bytes else held_bytes + held_bytes // 8)

    def add(self, piece: bytes) -> None:
        """Keep one more piece. Raises Refused."""
        self._take(len(piece))
        if self._buffer is None:
            self._buffer = io.BytesIO()
        self._buffer.write(piece)

    def whole(self, body: bytes) -> bytes:
        """Count a body that is all there already. Raises Refused."""
        self._take(len(body))
        return body

    def value(self) -> bytes:
        """Hand out all of it; BytesIO gives its buffer away without another copy."""
        return b"" if self._buffer is None else self._buffer.getvalue()


async def _inflate(content: StreamReader, encoding: str, kept: _Kept) -> None:
    """Read and inflate to the end. Raises Refused."""
    inflater = None
    sent_limit = kept.room  # blocks that inflate to nothing could be sent for ever
    while chunk := await content.readany():
        if content.total_bytes > sent_limit:
            raise kept.refusal()
        if inflater is None:
            inflater = zlib.decompressobj(_window(encoding, chunk[0]))
        more = True
        while more:
            if inflater.eof:
                raise _undecodable("more follows after its end")
            step_bytes = min(_STEP_BYTES, kept.room + 1)
            try:
                piece = inflater.decompress(chunk, step_bytes)
            except zlib.error:
                raise _undecodable("it is not what Content-Encoding says") from None
            kept.add(piece)
            chunk = inflater.unconsumed_tail or inflater.unused_data
            # After a full step zlib may hold more without needing input for it.
            more = bool(chunk) or (len(piece) == step_bytes and not inflater.eof)
            del piece  # a step of each of many bodies would be held while others have their turn
            if more:
                await asyncio.sleep(0)
    if inflater is not None and not inflater.eof:
        raise _undecodable("its end is missing")


def _window(encoding: str, first: int) -> int:
    """zlib's name for a format. "deflate" is sent both with a zlib header, as RFC 9110 has it,
    and without one, as some clients do; its low four bits are 8 (RFC 1950)."""
    if encoding == "gzip":
        return 16 + zlib.MAX_WBITS
    return zlib.MAX_WBITS if first & 0x0F == 8 else -zlib.MAX_WBITS


def _encoding(request: BaseRequest) -> str | None:
    """Read the encoding: "gzip", "deflate" or None. Raises Refused."""
    if hdrs.CONTENT_ENCODING not in request.headers:
        return None
    values = request.headers.getall(hdrs.CONTENT_ENCODING)
    name = values[0].strip().lower()
    if len(values) > 1 or name not in _ACCEPTED:
        raise Refused(
            415,
            "a body may be sent as gzip, as deflate or as it is",
            "unsupported_encoding",
            headers={hdrs.ACCEPT_ENCODING: "gzip, deflate"},
        )
    return _ACCEPTED[name]


def _invite(request: BaseRequest) -> None:
    """Ask for the body of a client that waits to be asked (curl does, above 1 MiB)."""
    expectation = request.headers.get(hdrs.EXPECT)
    if expectation is None or request.version != HttpVersion11:
        return
    if expectation.lower() != "100-continue":
        raise Refused(417, "the only expectation known is 100-continue", "bad_expectation")
    transport = request.transport
    if not request.content.is_eof() and transport is not None and not transport.is_closing():
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _undecodable(what: str) -> Refused:
    return Refused(400, f"the body cannot be decoded: {what}", "bad_body", close=True)
