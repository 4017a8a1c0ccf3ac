"""The client's end of one request: writes, and knows what has not been read yet.

Answers are written to the transport as bytes, past aiohttp's response machinery, which stays in
charge of everything else: parsing, keep-alive, the connection's life.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from aiohttp import HttpVersion10

from tidegate.core.settings import KIB
from tidegate.gateway import web
from tidegate.gateway.server.client_protocol import ClientProtocol
from tidegate.gateway.server.porch import WRITE_HIGH_WATER_BYTES

# Above this a subscriber lags, and `drained` waits. A fast reader never has this much in user
# space; 4,096 slow ones with this much each are 256 MiB, which the ledger sees.
HIGH_WATER_BYTES = WRITE_HIGH_WATER_BYTES
# What is larger is written in slices, each when the former one has left: plain asyncio copies what
# it can't send at once.
SLICE_BYTES = 256 * KIB
_NO_LINGER = struct.pack("ii", 1, 0)  # what is left unsent is forgotten, and RST sent

RESOLUTION_S = 0.001  # uvloop's clock counts milliseconds
LOOK_AGAIN_S = 1.0  # while something is outbound, so that the ledger stays true


class AnswerConnection(Protocol):
    """A connection, as far as an answer needs it."""

    loop: asyncio.AbstractEventLoop
    wrote_raw: bool  # bytes of an answer have been written, so no other may begin

    @property
    def transport(self) -> asyncio.Transport | None:
        """What its bytes are written to; None when the client is gone."""


class AlreadySent(web.StreamResponse):
    """The answer has been written already: tells aiohttp only whether the connection goes on."""

    def __init__(self, *, close: bool = False) -> None:
        super().__init__()
        self._keep_alive = not close

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class ResponseWriter:
    """The connection that one answer is written to."""

    __slots__ = (
        "_connection",
        "_drain",
        "_former_bytes",
        "_has_written",
        "_last_bytes",
        "_progress_s",
        "_taken",
        "_transport",
        "_written",
        "closes",
        "fields",
        "high_water_bytes",
        "http10",
        "kept_bytes",
        "loop",
    )

    def __init__(
        self,
        connection: AnswerConnection,
        drain: Callable[[], Awaitable[None]],
        *,
        http10: bool = False,
        closes: bool = False,
    ) -> None:
        """Write to a client. Raises ConnectionResetError when it is gone.

        `drain` waits until the transport holds little. With `closes` the connection ends with this
        answer; a client of HTTP/1.0 knows no chunks.
        """
        if connection.transport is None:
            raise ConnectionResetError("the client is gone")
        self.loop = connection.loop
        self._transport = connection.transport
        self._connection = connection
        self._drain = drain
        self._has_written = False
        # Of what the kernel did not take at once: all, the part it has taken, the last two writes.
        self._written = self._taken = 0
        self._former_bytes = self._last_bytes = 0
        self._progress_s: float | None = None
        self.kept_bytes = 0  # an answer that is being written in slices
        self.http10 = http10
        self.closes = closes
        self.fields = ""  # of the answer's head, for a page of another origin
        self.high_water_bytes = HIGH_WATER_BYTES

    @classmethod
    def of(cls, request: web.BaseRequest) -> ResponseWriter:
        """Write the answer to a request. Raises ConnectionResetError when its client is gone."""
        protocol = request.protocol
        if not isinstance(protocol, ClientProtocol):
            raise ConnectionResetError("the client is gone")
        http10 = request.version <= HttpVersion10
        closes = protocol.ends_after_answer or http10 or not request.keep_alive
        client = cls(protocol, request.writer.drain, http10=http10, closes=closes)
        if fields := request.get(web.PAGE_FIELDS):
            client.fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return client

    def write(self, data: bytes | memoryview) -> int:
        """Write; returns the bytes that the kernel has not taken. A gone client takes all."""
        transport = self._transport
        if transport.is_closing():
            return 0
        if not self._has_written:
            self._has_written = self._connection.wrote_raw = True
        transport.write(data)
        unsent: int = transport.get_write_buffer_size()
        if unsent or self._last_bytes:
            size = len(data) if unsent else 0
            self._written += size
            self._former_bytes, self._last_bytes = self._last_bytes, size
        return unsent

    @property
    def outbound_bytes(self) -> int:
        """The memory of what was written, but not taken by the kernel.

        A write that was taken in part is kept whole: 55 KiB more for each of 200 clients that
        read nothing, measured. So it is at least the last two writes where it is more than one.
        """
        unsent = self._unsent_bytes
        if unsent > self._last_bytes:
            unsent = max(unsent, self._last_bytes + self._former_bytes)
        elif unsent:
            unsent = self._last_bytes
        return self.kept_bytes + unsent

    @property
    def _unsent_bytes(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def stalled_s(self, now_s: float) -> float:
        """Tell for how long it has had something to read and read nothing, as far as was looked."""
        outbound = self._unsent_bytes
        taken = self._written - outbound
        if not outbound or taken != self._taken or self._progress_s is None:
            self._taken = taken
            self._progress_s = now_s
        return now_s - self._progress_s

    async def drained(self) -> None:
        """Wait until the buffer is below its low-water mark. Raises ConnectionError."""
        await self._drain()

    async def flushed(self) -> None:
        """Wait until the kernel has taken everything. The caller watches `stalled_s`."""
        if not self._unsent_bytes:
            return
        self._transport.set_write_buffer_limits(high=0)
        await self._drain()
        self._transport.set_write_buffer_limits(high=self.high_water_bytes)

    def limit_buffer(self, *, half: bool) -> None:
        """Limit what may wait here before a reader lags: half as much while memory is short."""
        self.high_water_bytes = HIGH_WATER_BYTES // 2 if half else HIGH_WATER_BYTES
        if not self._transport.is_closing():
            self._transport.set_write_buffer_limits(high=self.high_water_bytes)

    def reset(self) -> None:
        """Drop the connection in a way that no client takes for the end of a body."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with suppress(OSError):  # it is closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    def abort(self) -> None:
        """Drop the connection and what has not been read."""
        self._transport.abort()
