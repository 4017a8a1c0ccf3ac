"""Where every connection begins: a small protocol, and the way from it to aiohttp's.

What waits for its first request, or for the next one, costs a dozen slots here and no parser, task
or timer. The fast lane is asked first about each request that comes (`Lane.take`). Anything
else goes with all that was read to a fresh `ClientProtocol`, and the connection never comes back,
so that one parser at most ever sees a connection's bytes.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import ClassVar, Protocol, cast

from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import ErrorText
from tidegate.core.settings import KIB
from tidegate.gateway.server.client_protocol import (
    RETRY_AFTER,
    WAITING_BYTES,
    ClientProtocol,
    ConnectionHost,
)
from tidegate.gateway.server.connection_table import ConnectionPhase
from tidegate.gateway.server.descriptors import has_unread
from tidegate.gateway.server.errors import ALL_IN_USE, closing_answer

# Loopback grows a socket's send buffer to 3-4 MB if it is let, and what is in there is in no
# ledger. 256 KiB (Linux keeps twice that, for its own books) is a 1 Gbit/s LAN at 2 ms.
SEND_BUFFER_BYTES = 256 * KIB
# One read takes all that is there, and is in no ledger until it has been looked at: 850 connections
# that began at once brought 77 MiB. What waits in the kernel is no more than one read either. On a
# LAN this costs nothing; over 100 ms it is 1.3 MB/s for a request, which is 78 MB in `body_s`.
RECEIVE_BUFFER_BYTES = 128 * KIB
WRITE_HIGH_WATER_BYTES = 64 * KIB  # in the transport, before a writer is asked to wait

# Of an open connection here: this object, its transport, its places in the table. Resident memory
# of 2,000 connections by their number: 1.4 KiB on uvloop, 1.7 on plain asyncio.
PORCH_BYTES = 2 * KIB


class LaneRequest(Protocol):
    """A request in the lane's hand."""

    def client_left(self) -> None:
        """Take note that the client is gone; nothing is told about the request any more."""


class Lane(Protocol):
    """Answers the requests that it knows to be of the common kind; declines all others."""

    def take(self, porch: Porch, data: bytes) -> bool:
        """Take the request that `data` is, all of it; False: it is for the ordinary road.

        What is taken begins with `Porch.hold` and `Porch.begin`, and ends in `Porch.answered` or
        with its client.
        """

    def forget(self) -> None:
        """Forget whom it let in: the settings have changed."""


class Porch(asyncio.Protocol):
    """One client connection, while it has only made requests that the fast lane took."""

    own_bytes: ClassVar[int] = PORCH_BYTES

    __slots__ = (
        "_behind",
        "_drained",
        "_is_full",
        "_is_last",
        "_lane",
        "_outbound_bytes",
        "_request",
        "_server",
        "beyond",
        "charged_bytes",
        "loop",
        "over_unix",
        "phase",
        "transport",
        "wrote_raw",
    )

    def __init__(
        self,
        server: ConnectionHost,
        loop: asyncio.AbstractEventLoop,
        lane: Lane | None,
        *,
        over_unix: bool,
    ) -> None:
        self.loop = loop
        self.over_unix = over_unix
        self.transport: asyncio.Transport | None = None  # None: lost, or handed over
        self.phase = ConnectionPhase.GONE
        self.beyond: ErrorText | None = None  # why it may ask for open paths only
        self.charged_bytes = 0
        self._server = server
        self._lane = lane
        self.wrote_raw = False  # something of the answer to the request in hand
        self._request: LaneRequest | None = None  # in hand
        self._behind = b""  # what came while a request was in hand
        self._is_last = False  # the request in hand: there was no memory for what came behind it
        self._outbound_bytes = 0  # of a whole answer that its client has yet to read
        self._is_full = False  # the transport holds more than it should
        self._drained: asyncio.Future[None] | None = None  # done when it holds little again

    def __repr__(self) -> str:
        return f"<Porch {self.phase.name} {self.remote!r}>"

    # --- from the event loop ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = client = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self.over_unix:  # TCP's are inherited from the listening socket
            limit_buffers(client.get_extra_info("socket"))
        client.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        table = self._server.table
        if table.arrive(self):
            if self._server.stopping:  # it was being accepted when all were sent away
                self.force_close()
            return
        # Nothing is read from this connection. Its sending side is shut instead of closed,
        # since closing on a request that is on its way would reset it and lose the answer.
        table.refuse(self)
        client.write(closing_answer(self.beyond or ALL_IN_USE, headers=RETRY_AFTER))
        client.write_eof()

    def data_received(self, data: bytes) -> None:
        if self.phase is ConnectionPhase.BUSY:
            self._wait_behind(data)
        elif self.phase is not ConnectionPhase.CLOSING and not (
            self._lane is not None and self.beyond is None and self._lane.take(self, data)
        ):
            self._hand_over(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.transport = None
        self._server.table.leave(self)
        request, self._request = self._request, None
        self.resume_writing()
        if request is not None:
            request.client_left()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # --- one request after the other ------------------------------------------------------------

    def _wait_behind(self, data: bytes) -> None:
        """Keep what came too early, and read no more once it is much."""
        if self._is_last:
            return
        try:
            self._keep(self._behind + data)
        except LedgerFull:
            self._is_last = True  # what came is never answered: the connection ends
            self._keep(b"")
        if len(self._behind) > WAITING_BYTES and self.transport is not None:
            self.transport.pause_reading()

    def _keep(self, behind: bytes) -> None:
        """Keep this for when the request in hand is answered, and charge it. Raises LedgerFull."""
        self._behind = behind
        held_bytes = len(behind) + self._outbound_bytes
        self._server.table.charge(self, self.own_bytes + held_bytes)

    def _hand_over(self, data: bytes) -> None:
        """Give the connection to aiohttp, for good, with what was read of it."""
        transport, self.transport = self.transport, None
        assert transport is not None
        if self.phase is ConnectionPhase.BUSY:  # the lane wanted it, and there was no room
            self._server.table.enter(self, ConnectionPhase.IDLE)
        successor = ClientProtocol(self._server, self.loop, over_unix=self.over_unix)
        successor.take_over(self, transport)
        if self._is_full:
            successor.pause_writing()  # of which only we were told
        successor.data_received(data)

    # --- for the lane -----------------------------------------------------------------------------

    @property
    def remote(self) -> str | None:
        """The client's address; None over a Unix socket."""
        if self.transport is None or self.over_unix:
            return None
        address = self.transport.get_extra_info("peername")
        return str(address[0]) if address else None

    def hold(self) -> None:
        """Be busy before anything is charged, which may close connections that wait."""
        self._server.table.enter(self, ConnectionPhase.BUSY)

    def begin(self, request: LaneRequest) -> None:
        """Take a request in hand, for which the connection has been held."""
        self._request = request
        self.wrote_raw = False

    def answered(self, *, close: bool = False) -> None:
        """Take note that the request in hand has its answer; with `close` it was the last one."""
        self._request = None
        if self.transport is None or self.phase is not ConnectionPhase.BUSY:
            return
        if close or self._is_last or self._server.stopping or self.transport.is_closing():
            self.force_close()
            return
        self._server.table.enter(self, ConnectionPhase.IDLE)
        if behind := self._behind:
            self._keep(b"")
            self.transport.resume_reading()
            self.data_received(behind)

    async def drain(self) -> None:
        """Wait until the transport holds little enough. Raises ConnectionResetError."""
        if self._is_full:
            if self._drained is None:
                self._drained = self.loop.create_future()
            await self._drained
        if self.transport is None:
            raise ConnectionResetError("the client is gone")

    async def flush(self) -> None:
        """Wait until the kernel has taken all; charged meanwhile. Raises ConnectionResetError."""
        transport = self.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        self._outbound_bytes = transport.get_write_buffer_size()
        with suppress(LedgerFull):  # charged all the same
            self._keep(self._behind)
        transport.set_write_buffer_limits(high=0)
        await self.drain()
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self._outbound_bytes = 0
        self._keep(self._behind)

    # --- for the table ------------------------------------------------------------------------

    def force_close(self) -> None:
        """End it once what was written has left."""
        if self.transport is not None:
            self.transport.close()
        if self.phase is not ConnectionPhase.GONE:
            self._server.table.enter(self, ConnectionPhase.CLOSING)

    def abort(self) -> None:
        """End it now, with whatever was not sent yet."""
        if self.transport is not None:
            self.transport.abort()

    def give_up(self, status: int, message: str, code: str) -> None:
        """End it while no request is in hand; it has asked for nothing that it could be told."""
        self.force_close()

    @property
    def has_unread(self) -> bool:
        """Whether the client has sent what was not read yet."""
        return has_unread(self.transport)

    def leave_for_memory(self) -> None:
        """End it at once, for memory is short."""
        self.force_close()
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.transport.abort()  # it reads nothing, and the table watches it no more


def limit_buffers(sock: socket.socket) -> None:
    """Bound what the kernel holds for a connection, or for all that a TCP listener will accept."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
