"""One HTTP/1.1 connection to an upstream: bytes in, head, body and end out.

A protocol of our own, because an HTTP client library costs more per chunk than all the rest of
the relay. httptools parses; we count what it does not bound (the head), collect the body pieces of
one read into one call, and never call back from inside the parser.

Exactly one `Exchange` uses a connection at a time. It hears `on_head` once, `on_body` any number
of times, then either `on_end` or `on_lost`, and nothing after it has let go.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol, cast

import httptools

log = logging.getLogger("tidegate.upstream")

# What is no body: the head, and trailers and chunk extensions behind it, which the parser would
# collect for ever. nginx takes 32 KiB of head in all, llama.cpp and Ollama send well under 1 KiB.
MAX_HEAD_BYTES = 64 * 1024
# Loopback and LAN need no more to run at full speed, and it is what a paused stream hides from
# the ledger in the kernel.
RECEIVE_BUFFER_BYTES = 256 * 1024
# The most that one read brings, and so the most that a paused upstream still adds to a window. It
# is also the most that one upstream brings in a turn of the event loop: uvloop would read a socket
# 32 times, and with 24 fast upstreams a turn took more than a second.
READ_BYTES = 64 * 1024
# A body is given to the transport in slices, the next one when the kernel has taken the last. Plain
# asyncio and TLS copy what they are given and can't send at once: that was all of it once more.
SLICE_BYTES = 256 * 1024
IDLE_S = 4.0  # llama.cpp announces 5 s and closes at 4.5
GONE_AFTER_S = 0.5  # one that is given up is closed in the loop's next turn
LINGER_S = 1.0  # between the terminal marker and the end of the body


class Exchange(Protocol):
    """One request and what becomes of it: hears what the upstream answers."""

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        """Take the status and the headers, names in lower case."""

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""

    def on_end(self) -> None:
        """Note that the answer is complete; the connection is no longer the exchange's."""

    def on_lost(self, reason: str, *, answered: bool) -> None:
        """Note that the connection broke; `answered` if any byte of the answer had come."""


class _Discard:
    """Takes the rest of an answer that is not needed."""

    def on_head(self, status: int, headers: dict[str, str]) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_lost(self, reason: str, *, answered: bool) -> None: ...


_DISCARD = _Discard()


def _nothing() -> None:
    """A caller that does not want to know that all is sent."""


def _slices(body: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    for piece in body:
        view = memoryview(piece)
        for at in range(0, len(view), SLICE_BYTES):
            yield view[at : at + SLICE_BYTES]


# The names that most heads consist of, so that thousands of heads share these texts.
_NAMES = {
    written.encode(): name
    for name in (
        *("cache-control", "connection", "content-length", "content-type", "date", "keep-alive"),
        *("server", "transfer-encoding", "x-request-id"),
    )
    for written in (name, name.title())
}

# All connections read into the same buffer: what is in it is taken before the next one reads. So
# are the pieces of bodies that a parser finds in it.
_buffer = memoryview(bytearray(READ_BYTES))
_pieces: list[bytes] = []


class UpstreamConnection(asyncio.BufferedProtocol):
    """A connection, used for one exchange after the other."""

    __slots__ = (
        "__weakref__", "_bodiless_bytes", "_complete", "_exchange", "_head_bytes", "_head_done",
        "_head_told", "_headers", "_is_full", "_linger", "_loop", "_on_free", "_on_sent",
        "_parser", "_paused", "_resting", "_reusable", "_status", "_transport", "_unsent",
        "_whole", "exchanges", "idle_until_s",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_free: Callable[[UpstreamConnection], None]
    ) -> None:
        self._loop = loop
        self._on_free = on_free  # idle and reusable, or closed: the pool looks at `is_usable`
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._whole = 0  # how many pieces of a read were the answer's, when it was complete
        self._headers: dict[str, str] = {}
        self._status = 0
        self._head_bytes = self._bodiless_bytes = 0
        self._head_done = self._head_told = self._complete = self._paused = False
        self._resting = False
        self._reusable = True
        self._unsent: Iterator[bytes | memoryview] | None = None  # of a body: what is left of it
        self._on_sent: Callable[[], None] = _nothing
        self._is_full = False  # the transport holds what the kernel has not taken
        self._linger: asyncio.TimerHandle | None = None
        self.exchanges = 0
        self.idle_until_s = 0.0

    # --- for its user ---------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Open and free."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and self._exchange is None

    @property
    def is_reused(self) -> bool:
        """It has answered before, so that it may have died of idleness."""
        return self.exchanges > 1

    def send(
        self,
        head: bytes,
        exchange: Exchange,
        body: Sequence[bytes | memoryview] = (),
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Start an exchange.

        What `body` points to must stay as it is until `on_sent` is called, which is before this
        returns where the kernel takes it all, and never where the connection ends before.
        """
        assert self._transport is not None
        assert self._exchange is None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._headers = {}
        self._head_bytes = self._bodiless_bytes = 0
        self._head_done = self._head_told = self._complete = False
        self.exchanges += 1
        if sum(map(len, body)) <= SLICE_BYTES:
            self._transport.write(b"".join((head, *body)))
            self._unsent = iter(())
        else:
            self._transport.write(head)
            self._unsent = _slices(body)
        self._on_sent = on_sent or _nothing
        self._send_on()

    def _send_on(self) -> None:
        """Write slices as long as the kernel takes them."""
        transport = self._transport
        while self._unsent is not None and not self._is_full:
            if transport is None or transport.is_closing():
                return
            piece = next(self._unsent, None)
            if piece is not None:
                transport.write(piece)
            else:
                on_sent, self._on_sent, self._unsent = self._on_sent, _nothing, None
                on_sent()

    def pass_to(self, exchange: Exchange) -> None:
        """Let another exchange hear what is still to come."""
        self._exchange = exchange

    def pause(self) -> None:
        """Stop reading: the upstream feels it once the kernel's buffers are full."""
        if not self._paused:
            self._paused = True
            self._read(on=False)

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._read(on=not self._resting)

    def let_go(self) -> None:
        """Let go: the exchange has read all it wants, the terminal marker included.

        The connection stays reusable if the answer's own end follows within LINGER_S.
        """
        self._exchange = _DISCARD
        if self._unsent is not None:
            self.abort()  # the next request would be taken for the rest of this
        elif not self._complete:
            self.resume()
            self._linger = self._loop.call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        """End the connection now; the exchange hears nothing more."""
        self._exchange = None
        self._unsent = None
        self._stop_lingering()
        if self._transport is not None:
            self._transport.abort()

    def give_up(self, whose: str) -> None:
        """End it now and make sure: a GPU would go on for no reader. `whose` is for the log."""
        self.abort()
        self._loop.call_later(GONE_AFTER_S, self._close_by_force, whose)

    def _close_by_force(self, whose: str) -> None:
        """End it below the event loop, where the transport has not let go."""
        if self._transport is None:
            return
        log.warning(
            "%s: its upstream connection was still there %g s after it was given up;"
            " closed by force",
            whose,
            GONE_AFTER_S,
        )
        sock = self._transport.get_extra_info("socket")
        if sock is not None and (descriptor := sock.fileno()) >= 0:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as own:
                own.shutdown(socket.SHUT_RDWR)

    # --- from the event loop ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        # We are told of every byte that waits. Not 0: over TLS even an empty buffer would be full.
        self._transport.set_write_buffer_limits(high=1, low=0)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._send_on()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what one read of the socket brought, READ_BYTES at most."""
        if nbytes == READ_BYTES:
            self._rest()  # there is more, but the others come first
        exchange = self._exchange
        if exchange is None or self._parser is None:
            self.abort()  # it speaks without being asked
            return
        pieces, broken = _pieces, False
        pieces.clear()
        try:
            self._parser.feed_data(_buffer[:nbytes])  # it copies the pieces of the body
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            broken = True
            self._reusable = False  # bytes behind a complete answer: not known whose
        if self._complete or not self._head_done:
            del pieces[self._whole if self._complete else 0 :]  # of no answer that was asked for
        if not (pieces and self._head_told) and self._is_too_much(nbytes):
            self._break(f"sent a head or a trailer of more than {MAX_HEAD_BYTES} bytes")
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._head_done and not self._head_told:
            self._head_told = True
            exchange.on_head(self._status, self._headers)
        if body:
            self._bodiless_bytes = 0
            if self._exchange is not None:  # another, if the head has been passed on
                self._exchange.on_body(body)
        if self._complete:
            if self._exchange is not None:
                self._finish(self._exchange)
        elif broken:  # told last: what came before it counts, wherever the read was cut
            self._break("sent what is not HTTP")

    def _is_too_much(self, read_bytes: int) -> bool:
        """Count a read with more than pieces of the body: a head, trailers, chunk extensions."""
        if not self._head_done:
            self._head_bytes += read_bytes  # a head that came in pieces counts twice at worst
        self._bodiless_bytes = 0 if _pieces else self._bodiless_bytes + read_bytes
        return max(self._head_bytes, self._bodiless_bytes) > MAX_HEAD_BYTES

    def eof_received(self) -> bool:
        return False  # close: a half-open upstream has nothing more to say

    def connection_lost(self, error: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        self._transport = self._unsent = None
        self._parser = None  # it holds us, and we would hold it
        self._stop_lingering()
        self._on_free(self)
        if exchange is None:
            return
        if self._head_done and self._is_until_close() and error is None:
            exchange.on_end()
        else:
            what = "reset the connection" if error is not None else "closed the connection"
            exchange.on_lost(what, answered=self._head_bytes > 0 or self._head_done)

    # --- from the parser ----------------------------------------------------------------------

    on_body = staticmethod(_pieces.append)

    def on_message_begin(self) -> None:
        if self._complete:
            self._reusable = False  # a second answer that was not asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer
        self._head_bytes += len(name) + len(value)
        known = _NAMES.get(name) or name.decode("latin-1").lower()
        self._headers[known] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if not self._complete:
            self._status = self._parser.get_status_code()
            self._head_done = self._status >= 200

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if self._head_done:
            assert self._parser is not None
            self._complete, self._whole = True, len(_pieces)
            # Asked here, for afterwards the parser has forgotten what it read.
            self._reusable = self._parser.should_keep_alive()
        else:
            self._headers = {}  # a 1xx head: the real one follows, and a body of it is none
            _pieces.clear()

    # --- inside ----------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Read on in the loop's next turn."""
        if not self._resting:
            self._resting = True
            self._read(on=False)
            self._loop.call_soon(self._end_rest)

    def _end_rest(self) -> None:
        self._resting = False
        self._read(on=not self._paused)

    def _read(self, *, on: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _is_until_close(self) -> bool:
        return (
            "content-length" not in self._headers
            and "chunked" not in self._headers.get("transfer-encoding", "").lower()
        )

    def _finish(self, exchange: Exchange) -> None:
        """Free the connection, for the answer is complete; then tell."""
        self._exchange = None
        self._stop_lingering()
        if self._reusable and self._unsent is None:
            self.resume()
            self.idle_until_s = self._loop.time() + self._idle_s()
            self._headers = {}  # the exchange has them
        else:
            self.abort()
        self._on_free(self)
        exchange.on_end()

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _idle_s(self) -> float:
        """Tell how long it may lie idle: a second less than the upstream announced."""
        for part in self._headers.get("keep-alive", "").split(","):
            name, _, value = part.strip().partition("=")
            if name.lower() == "timeout" and value.isascii() and value.isdigit():
                return min(IDLE_S, float(value) - 1.0)
        return IDLE_S

    def _break(self, reason: str) -> None:
        exchange, self._exchange = self._exchange, None
        self.abort()
        if exchange is not None:
            exchange.on_lost(reason, answered=True)
