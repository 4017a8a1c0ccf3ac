"""What a client sends, on its way into aiohttp's parser: one head or one body at a time, counted.

Given a whole read, the parser takes in whatever is there: heads of 1 MB, and 32 requests behind
the one in hand; a fault in the last of them loses the others. So it is fed here in pieces:

* A head is kept as it came until it is whole, and only its request line is shown to the parser
  before, which turns away what isn't HTTP. An open head therefore costs its bytes and no more.
* A body goes through at once, as far as it belongs to the request in hand.
* What comes behind waits here, as it came, until that request has been answered.

What follows a request for another protocol (WebSocket) waits in the same way until it is granted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, hdrs
from aiohttp.http import HttpProcessingError, RawRequestMessage

from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import ErrorText
from tidegate.core.http.chunks import ChunkCounter, ChunksTooLarge
from tidegate.core.http.head import HeadCounter, HeadTooLarge
from tidegate.gateway import web
from tidegate.gateway.server.body import content_length, too_large
from tidegate.gateway.server.errors import INVALID_REQUEST, SERVER_ERROR, Refused

# What a head costs once the parser has taken it apart, which lasts as long as its request: its
# bytes are there as bytes and as text, and each field is five objects. Measured over 2,000 requests
# in hand with heads of 0.5, 4 and 30 KB: 6, 37 and 96 KB, which this meets within 6 %.
PARSED_COPIES = 2
FIELD_BYTES = 320

Parsed = tuple[Sequence[tuple[RawRequestMessage, StreamReader]], bool, bytes]
_NOTHING: Parsed = ((), False, b"")
_RETRY_AFTER = {"Retry-After": "5"}
_VERSIONS = (HttpVersion11, HttpVersion10)


def _never() -> bool:
    return False


def _none(path: str) -> None:
    return None


def _free(held_bytes: int) -> None:
    """It costs nothing any more."""


class HeadRefused(HttpProcessingError):
    """A head that is refused before its request begins; aiohttp queues it as it does its own."""

    def __init__(self, error: ErrorText, headers: dict[str, str] | None = None) -> None:
        """`headers` go with the answer."""
        super().__init__(code=error.status, message=error.message)
        self.error = error
        self.more = headers


class Intake:
    """Stands in for aiohttp's parser on one connection, and feeds it."""

    __slots__ = (
        "_body",
        "_charge",
        "_head",
        "_is_free",
        "_kept",
        "_max_body_bytes",
        "_parser",
        "_payload",
        "_refusal_of",
        "_taken_bytes",
        "_waiting",
        "_was_shown_line",
        "is_over",
        "is_upgraded",
        "path",
    )

    def __init__(
        self,
        parser: Any,  # aiohttp's, in C or in Python; neither has a type
        *,
        is_free: Callable[[], bool],
        refusal: Callable[[str], ErrorText | None],
        max_body_bytes: Callable[[], int],
        charge: Callable[[int], None],
    ) -> None:
        """`is_free`: no request is in hand or queued. `refusal`: why a path can't be asked for.

        `charge` is told what a head costs, and may raise LedgerFull.
        """
        self._parser = parser
        self._is_free = is_free
        self._refusal_of = refusal
        self._max_body_bytes = max_body_bytes
        self._charge = charge
        self._head = HeadCounter()
        self._kept = bytearray()  # of an open head, not shown to the parser yet
        self._was_shown_line = False
        self._body: int | ChunkCounter = 0  # what is left of the body that is arriving
        self._payload: StreamReader | None = None
        self._waiting = b""  # behind the request in hand
        self._taken_bytes = 0  # what the parser made of the head of the request in hand
        self.is_over = False  # nothing more is taken
        self.is_upgraded = False  # the request in hand asks for another protocol
        self.path = ""  # of the last head that was refused or given up

    def __repr__(self) -> str:
        return f"<Intake {self._head!r} body={self._body!r} waiting={len(self._waiting)}>"

    @property
    def held_bytes(self) -> int:
        """What the client makes us hold here, and in its request's head."""
        return self._head.size + len(self._waiting) + self._taken_bytes

    @property
    def waiting_bytes(self) -> int:
        """What came behind the request in hand, and waits for its answer."""
        return len(self._waiting)

    @property
    def has_open_head(self) -> bool:
        """A part of a head has come."""
        return bool(self._head.size)

    @property
    def goes_on(self) -> bool:
        """Whether something waits that the parser can have now: feed it nothing to go on."""
        return bool(self._waiting) and (bool(self._body) or self._is_free())

    def end(self) -> None:
        """Take nothing more, and forget what was kept."""
        self.path = self._head.path
        self.is_over = True
        self._kept.clear()
        self._waiting = b""
        self._head = HeadCounter()

    def let_go(self) -> None:
        """Hold on to nothing of a connection that is gone, so that no collector is needed."""
        self.end()
        self._is_free, self._refusal_of, self._charge = _never, _none, _free
        self._parser = self._payload = None

    def answered(self) -> None:
        """Charge no longer for the head of the request in hand: it has been answered."""
        self._taken_bytes = 0

    # --- another protocol ---------------------------------------------------------------------

    def hold(self, data: bytes) -> None:
        """Keep what follows a request for another protocol until it is granted or not."""
        if not self.is_over:
            self._waiting += data

    def hand_over(self) -> bytes:
        """Begin another protocol: return what came for it; from now on nothing passes here."""
        self.is_upgraded = False
        data, self._waiting = self._waiting, b""
        return data

    # --- what aiohttp asks of its parser ------------------------------------------------------

    def feed_data(self, data: bytes) -> Parsed:
        """Parse the next head, or the next part of a body. Raises HttpProcessingError."""
        if self.is_over:
            return _NOTHING
        if self._waiting:
            data, self._waiting = self._waiting + data, b""
        try:
            if self._body:
                return self._feed_body(data)
            if data and self._is_free():
                return self._feed_head(data)
            self._waiting = data
            return self._feed(b"")  # while it was paused it may have kept a part of the last body
        except HttpProcessingError:
            self.end()
            raise

    def message_consumed(self) -> None:
        """Tell the parser that a request which was queued is in hand."""
        self._parser.message_consumed()

    def pause_reading(self) -> None:
        """Tell the parser that the reader of a body has enough for now."""
        self._parser.pause_reading()

    def set_upgraded(self, val: bool) -> None:
        """Go on with HTTP: the other protocol was not granted."""
        self.is_upgraded = val
        self._parser.set_upgraded(val)

    def feed_eof(self) -> Any:
        """Tell the parser that the client sends nothing more."""
        return self._parser.feed_eof()

    # --- heads --------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> Parsed:
        head = self._head
        is_first = not head.beginning
        try:
            end = head.feed(data)
        except HeadTooLarge as error:
            raise self._refusal(431, str(error), "head_too_large") from None
        if end is None:
            self._charge_head(head.size)
            return self._keep(data, is_first=is_first)
        parsed_bytes = PARSED_COPIES * head.size + FIELD_BYTES * head.lines
        self._charge_head(parsed_bytes)
        whole = bytes(self._kept) + data[:end] if self._kept else data[:end]
        self._kept.clear()
        self._waiting = data[end:]
        parsed = self._feed(whole)
        if not parsed[0]:
            return parsed  # what the parser is waiting for will be counted with it
        ((message, payload),) = parsed[0]
        self._check(message)
        self._taken_bytes = parsed_bytes
        self._head, self._was_shown_line = HeadCounter(), False
        if not payload.is_eof() and not self.is_upgraded:
            self._payload = payload
            self._body = ChunkCounter() if message.chunked else content_length(message.headers)
        return parsed

    def _keep(self, data: bytes, *, is_first: bool) -> Parsed:
        """Keep a part of a head; only its request line is looked at by the parser."""
        if self._was_shown_line:
            self._kept += data
            return _NOTHING
        begin = len(data) - len(data.lstrip(b"\r\n")) if is_first else 0
        line_end = data.find(b"\n", begin) + 1
        self._was_shown_line = bool(line_end)
        shown = data[: line_end or len(data)]
        self._kept += data[len(shown) :]
        parsed = self._feed(shown)
        if parsed[0]:
            raise self._refusal(400, "this is not valid HTTP/1.1", "malformed_request")
        return parsed

    def _charge_head(self, size: int) -> None:
        try:
            self._charge(size)
        except LedgerFull as full:
            message = f"no memory for this request now: {full}"
            raise self._refusal(503, message, full.code, _RETRY_AFTER) from None

    def _check(self, message: RawRequestMessage) -> None:
        """Check what a parser lets through, and a server must not. Raises HeadRefused."""
        headers = message.headers
        if error := self._refusal_of(message.path.partition("?")[0]):
            raise HeadRefused(error, _RETRY_AFTER)
        if message.version not in _VERSIONS:
            raise self._refusal(505, "HTTP/1.1 and HTTP/1.0 are spoken here", "bad_http_version")
        if hdrs.TRANSFER_ENCODING in headers:
            coding = ",".join(headers.getall(hdrs.TRANSFER_ENCODING)).strip().lower()
            if message.version == HttpVersion10:  # RFC 9112, 6.1: its framing is faulty
                raise self._refusal(400, "HTTP/1.0 has no Transfer-Encoding", "bad_coding")
            if coding != "chunked":
                raise self._refusal(501, "the only transfer coding known is chunked", "bad_coding")
        if hdrs.UPGRADE in headers:
            for name, value in headers.items():
                if name.lower().startswith("sec-websocket-") and not value.isascii():
                    raise self._refusal(400, f"{name} is not ASCII", "bad_handshake")

    def _refusal(
        self, status: int, message: str, code: str, headers: dict[str, str] | None = None
    ) -> HeadRefused:
        kind = SERVER_ERROR if status == 503 else INVALID_REQUEST
        return HeadRefused(ErrorText(status, message, kind, code), headers)

    # --- bodies -------------------------------------------------------------------------------

    def _feed_body(self, data: bytes) -> Parsed:
        body = self._body
        if isinstance(body, int):
            piece, self._waiting = (data, b"") if len(data) <= body else (data[:body], data[body:])
            self._body = body - len(piece)
            return self._feed(piece)
        try:
            end = body.feed(data)
        except ChunksTooLarge as error:
            return self._break(Refused(431, str(error), "trailer_too_large", close=True))
        max_bytes = self._max_body_bytes()
        if body.announced_bytes > max_bytes:
            return self._break(too_large(max_bytes))
        if end is not None:
            self._body = 0
            data, self._waiting = data[:end], data[end:]
        try:
            return self._feed(data)
        except HttpProcessingError:
            return self._break(web.RequestPayloadError("broken framing"))

    def _break(self, error: Exception) -> Parsed:
        """Break off a body that never ends: its reader hears why, and nothing more is taken."""
        assert self._payload is not None, "a body has its reader"
        self._body = 0
        self.end()
        self._payload.set_exception(error)
        return _NOTHING

    def _feed(self, piece: bytes) -> Parsed:
        """Hand it to the parser. What follows for another protocol stays here."""
        messages, upgraded, tail = self._parser.feed_data(piece)
        if upgraded:
            self.is_upgraded = True
            self._waiting = tail + self._waiting
        return messages, upgraded, b""
