"""Client connections: how many there may be, and how long each may keep us waiting.

aiohttp's low-level server reads heads and writes answers. What it lacks is here: a deadline for a
head, a bound on connections, a last word for whoever is refused, and a limit on how long a close
may wait for a client that no longer reads. `web.Application` is not used: its router and signals
cost more than a whole request should.

Every connection is in one phase, and each phase has a room: a dict in the order in which its
connections came in, so that the first is always the one that has waited longest. One timer looks
at the first of each room only. A request moves its connection from IDLE to BUSY and back; one
whose head comes in parts stands in HEAD in between.

What a client sends passes `Intake`, which stands in for aiohttp's parser: one request at a time,
and what comes behind it waits. That, the heads that are arriving and the connections themselves
are charged to the ledger's account for connections.

Of aiohttp's internals this leans on: `RequestHandler.data_received`, `finish_response`,
`handle_error`, `set_parser`, `resume_reading`, `close` and `force_close`, which have no underscore
and no documentation; that the request factory is called when a request's turn has come; and on
private names: `_parser`, which `Intake` takes the place of, `_messages`, the requests whose turn
has not come, `_reading_paused`, set while a body's reader has enough, and `_prepare_hook` of a
request. A later `data_received` may answer some requests by itself if it calls
`enter(Phase.BUSY)` before and `enter(Phase.IDLE)` after.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpProcessingError, RawRequestMessage, WebSocketReader
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from tidegate.core.descriptors import Places
from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import ErrorText
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.settings import KIB, Limits
from tidegate.core.text import count
from tidegate.gateway.server.errors import (
    ALL_IN_USE,
    INVALID_REQUEST,
    NO_MEMORY,
    SERVER_ERROR,
    Refused,
    closing_answer,
    error_response,
)
from tidegate.gateway.server.ids import id_headers
from tidegate.gateway.server.intake import HeadRefused, Intake

log = logging.getLogger(__name__)

KEEPALIVE_S = 15.0  # an idle connection; longer than a client thinks between two calls in a row

# Loopback grows a socket's send buffer to 3-4 MB if it is let, and what is in there is in no
# ledger. 256 KiB (Linux keeps twice that, for its own books) is a 1 Gbit/s LAN at 2 ms.
SEND_BUFFER_BYTES = 256 * KIB
# One read takes all that is there, and is in no ledger until it has been looked at: 850 connections
# that began at once brought 77 MiB. What waits in the kernel is no more than one read either. On a
# LAN this costs nothing; over 100 ms it is 1.3 MB/s for a request, which is 78 MB in `body_s`.
RECEIVE_BUFFER_BYTES = 128 * KIB
WRITE_HIGH_WATER_BYTES = 64 * KIB  # in the transport, before a writer is asked to wait

# Of an open connection beside what it sends: protocol, parser, task, transport. Resident memory of
# 2,000 connections by their number: idle 8.7 KiB on uvloop and 8.5 on plain asyncio, with a small
# request in hand 9.1, before the first request 5.9.
CONNECTION_BYTES = 9 * KIB
# aiohttp stops reading a body at twice this while its handler reads nothing (by default 512 KiB).
READ_BUFFER_BYTES = 64 * KIB
# What may wait behind a request that is being answered before nothing more is read: more than
# clients that pipeline send ahead, and as much as a body whose reader is busy.
WAITING_BYTES = 64 * KIB
# When all places are taken, so many connections at most beyond them may ask for health. Each one
# more puts out the one that has waited longest, so that silent ones keep no other out.
BEYOND = 64
FRESH_S = 0.5  # a head that is younger may be there in a moment, and is spared when memory is short

# What a head of some twenty fields costs. It is let in when memory is short, for what its request
# needs besides is charged for itself, and it may be a cancel, or a look at our health.
SMALL_HEAD_BYTES = 8 * KIB

BACKLOG = 1024  # connections that wait to be accepted
# Plain asyncio (3.11 to 3.13) takes its backlog for the number of accepts in a row, and goes on
# with them when there are no descriptors left: 1,024 tracebacks and timers a second. With one it
# waits a second, and says so once. uvloop closes what it can't serve.
_ACCEPTS_AT_ONCE = 1

# What a client may still send after its answer, so that it reads the answer and not a reset.
_LINGER_S = 2.0
_LONGEST_TICK_S = 1.0
LATE_S = 1.0  # a tick so late ends nobody: what clients sent meanwhile was not read yet
_LOG_EVERY_S = 60.0
# Of the loop, from an accepted socket to `connection_made`: the task, its transport, the call.
_TURNS_TO_ARRIVE = 3
_RETRY_AFTER = {"Retry-After": "5"}
_BODILESS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})  # no handler reads one


class Phase(IntEnum):
    """Where a connection stands. A number, since an enum's own hash costs more than a move."""

    FRESH = 0  # connected, nothing sent yet
    HEAD = 1  # a part of a head has come
    BUSY = 2  # a request is in hand
    IDLE = 3  # between two requests
    CLOSING = 4  # nothing more is read from it; its last bytes are on their way
    GONE = 5  # in no room


_ROOMS = tuple(phase for phase in Phase if phase is not Phase.GONE)
_WAITING = (Phase.FRESH, Phase.HEAD, Phase.IDLE)  # who goes first when there is no more room


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatistics:
    """Connections now, by phase, and what happened since the start."""

    connections: dict[str, int]
    accepted: int
    evicted: int  # made room for a newcomer, or gave back memory
    refused: int  # came when there was no room
    malformed: int  # requests that were not HTTP

    @property
    def open(self) -> int:
        """All connections."""
        return sum(self.connections.values())


class GatewayServer(web.Server):
    """Makes a `ClientProtocol` for each connection, and keeps them in bounds.

    `handler` answers a request; a `Refused` that it raises is answered as it says, and anything
    else with a 500. `limits` is asked anew each time, so that a reload takes effect at once.
    While `draining`, each answer that is begun announces the end of its connection; whoever
    writes heads by itself asks `ClientProtocol.ends_after_answer`. Connections are charged to
    `ledger`. `open_paths` are answered even when all places are taken.
    """

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
        limits: Callable[[], Limits],
        *,
        ledger: Ledger | None = None,
        open_paths: Collection[str] = (),
    ) -> None:
        """Needs a running loop."""
        super().__init__(handler, request_factory=_begin_request, handler_cancellation=True)
        self.draining = False
        self.stopping = False
        self.limits = limits
        self.places = Places(clients=sys.maxsize, beyond=BEYOND)  # that have descriptors
        self.open_paths = frozenset(open_paths)
        self._ledger = ledger or Ledger()
        self._beyond: dict[ClientProtocol, None] = {}  # beyond the bound, for `open_paths` only
        self._running_loop = asyncio.get_running_loop()
        self._rooms: tuple[dict[ClientProtocol, float], ...] = tuple({} for _ in _ROOMS)
        self._listeners: list[asyncio.Server] = []
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_s = 0.0  # when it is due
        self._spared = False  # the last one was late and ended nobody
        self._connected = 0
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._accepted = self._evicted = self._refused = self._malformed = 0
        self._malformed_told = 0
        self._malformed_told_s = float("-inf")
        self._gone_untold = 0  # closed for memory since that was last said
        self._gone_told_s = float("-inf")

    def __call__(self) -> ClientProtocol:
        """The protocol of a new connection."""
        return ClientProtocol(self, self._running_loop)

    def __repr__(self) -> str:
        rooms = " ".join(f"{p.name.lower()}={len(self._rooms[p])}" for p in _ROOMS)
        return f"<GatewayServer {rooms} draining={self.draining}>"

    def statistics(self) -> ServerStatistics:
        """What `/metrics` and a heartbeat show."""
        return ServerStatistics(
            connections={phase.name.lower(): len(self._rooms[phase]) for phase in _ROOMS},
            accepted=self._accepted,
            evicted=self._evicted,
            refused=self._refused,
            malformed=self._malformed,
        )

    @property
    def open_connections(self) -> int:
        """How many connections there are."""
        return sum(map(len, self._rooms))

    @property
    def busy_connections(self) -> int:
        """How many of them have a request in hand."""
        return len(self._rooms[Phase.BUSY])

    async def listen(self, sock: socket.socket) -> None:
        """Accepts on a bound socket, TCP or Unix, which from now on belongs to this server.

        `create_server` takes both; `create_unix_server` would remove the path at its close,
        while another process may still listen there.
        """
        server = await self._running_loop.create_server(self, sock=sock, backlog=_ACCEPTS_AT_ONCE)
        sock.listen(BACKLOG)  # anew: create_server has given the kernel its own
        self._listeners.append(server)

    def stop_accepting(self) -> None:
        """Accepts nothing from now on, and closes the listening sockets. Connections stay.

        Plain asyncio makes a connection of an accepted socket in a task, which drops the socket
        if its listener has been closed by then. So the closing waits until those tasks have run;
        meanwhile nobody reads from the listener. On uvloop `remove_reader` changes nothing.
        """
        for listener in self._listeners:
            for sock in listener.sockets:
                self._running_loop.remove_reader(sock.fileno())
            self._running_loop.call_soon(listener.close)
        self._listeners.clear()

    async def shutdown(self, timeout: float | None = None, flush_s: float | None = None) -> None:
        """Stops accepting, gives requests in hand `timeout` seconds, then ends them.

        Returns when every connection is gone, at most `flush_s` (or limits.close_flush_s) after
        that. aiohttp's own shutdown is not used: it waits for idle connections too.
        """
        self.stop_accepting()
        self.draining = self.stopping = True
        for _ in range(_TURNS_TO_ARRIVE):  # whoever is being accepted counts too
            await asyncio.sleep(0)
        for connection in self._everyone():
            if connection.phase in _WAITING:
                connection.force_close()
        if await self._wait_all_gone(timeout):
            return
        for connection in self._everyone():
            connection.force_close()
        if await self._wait_all_gone(self.limits().close_flush_s if flush_s is None else flush_s):
            return
        for connection in self._everyone():
            connection.abort()
        await self._all_gone.wait()

    async def _wait_all_gone(self, limit_s: float | None) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self._all_gone.wait()
        except TimeoutError:
            return False
        return True

    # --- rooms ----------------------------------------------------------------------------

    @property
    def most_connections(self) -> int:
        """How many there may be: what the setting says, and what there are descriptors for."""
        return min(self.limits().max_connections, self.places.clients)

    def arrive(self, connection: ClientProtocol) -> bool:
        """Make room for a newcomer; False when everybody else has a request in hand.

        Whoever is closing goes first, then whoever has waited longest without a request: heads
        that never end can so not keep others out. When all are busy, or memory is short, the
        newcomer is `beyond` the bound, and may only look whether we are well.
        """
        self._accepted += 1
        self._connected += 1
        self._all_gone.clear()
        if self._ticker is None:
            self._schedule_tick()
        while self.open_connections - len(self._beyond) >= self.most_connections:
            victim = self._next_to_go(spared=self._beyond)
            if victim is None:
                return self._arrive_beyond(connection, ALL_IN_USE)
            self._evict(victim)
        try:
            self.enter(connection, Phase.FRESH)
        except LedgerFull:
            return self._arrive_beyond(connection, NO_MEMORY)
        return True

    def _arrive_beyond(self, connection: ClientProtocol, why: ErrorText) -> bool:
        connection.beyond = why
        if len(self._beyond) >= min(BEYOND, self.places.beyond):
            waiting = (each for each in self._beyond if each.phase is not Phase.BUSY)
            victim = next(waiting, None)
            if victim is None:
                self._refused += 1
                return False
            self._evict(victim)
        self._beyond[connection] = None
        if connection.phase is Phase.GONE:
            self._enter_full(connection, Phase.FRESH)
        return True

    def _evict(self, connection: ClientProtocol) -> None:
        self._evicted += connection.phase is not Phase.CLOSING
        connection.abort()
        self._forget(connection)

    def _next_to_go(self, spared: Collection[ClientProtocol]) -> ClientProtocol | None:
        """The one that is closing, or else has waited longest."""
        for connection in self._rooms[Phase.CLOSING]:
            if connection not in spared:
                return connection
        firsts = (
            next((item for item in self._rooms[phase].items() if item[0] not in spared), None)
            for phase in _WAITING
        )
        oldest = min((f for f in firsts if f is not None), key=lambda f: f[1], default=None)
        return None if oldest is None else oldest[0]

    def make_room(self, is_short: Callable[[], bool]) -> int:
        """Give memory back while it is short, without harm to any run; how many connections went.

        Heads that are arriving and connections that have sent nothing go first, the longest
        waiting before others; then connections between two requests. The youngest are spared.
        """
        before = self._evicted
        latest_s = self._running_loop.time() - FRESH_S
        for phases in ((Phase.HEAD, Phase.FRESH), (Phase.IDLE,)):
            while is_short():
                firsts = (next(iter(self._rooms[phase].items()), None) for phase in phases)
                oldest = min((f for f in firsts if f is not None), key=lambda f: f[1], default=None)
                if oldest is None or oldest[1] > latest_s:
                    break
                self._evicted += 1
                oldest[0].leave_for_memory()
                self._forget(oldest[0])
        gone = self._evicted - before
        if gone:
            self._note_room(gone)
        return gone

    def _note_room(self, gone: int) -> None:
        """Says once a minute how many connections went for memory."""
        self._gone_untold += gone
        now_s = self._running_loop.time()
        if now_s - self._gone_told_s >= _LOG_EVERY_S:
            log.warning(
                "memory is short: %s closed", count(self._gone_untold, "waiting connection")
            )
            self._gone_untold = 0
            self._gone_told_s = now_s

    def enter(self, connection: ClientProtocol, phase: Phase) -> None:
        """Moves a connection to the end of another room. Raises LedgerFull for a new one."""
        rooms = self._rooms
        is_new = connection.phase is Phase.GONE
        if not is_new:
            del rooms[connection.phase][connection]
        connection.phase = phase
        rooms[phase][connection] = self._running_loop.time()
        if is_new:
            self.charge(connection, CONNECTION_BYTES)

    def _enter_full(self, connection: ClientProtocol, phase: Phase) -> None:
        """Like `enter`, also when the ledger is full: it is charged all the same."""
        with suppress(LedgerFull):
            self.enter(connection, phase)

    def charge(self, connection: ClientProtocol, held_bytes: int) -> None:
        """Says what a connection costs now. Raises LedgerFull when there is no room for more.

        One that is in no room costs nothing.
        """
        if connection.phase is Phase.GONE:
            held_bytes = 0
        delta = held_bytes - connection.charged_bytes
        if delta:
            connection.charged_bytes = held_bytes
            account = self._ledger.connections
            account.set(Entry.CONNECTION, account.entries[Entry.CONNECTION] + delta)

    def leave(self, connection: ClientProtocol) -> None:
        """A connection is over."""
        self._forget(connection)
        self._connected -= 1
        if not self._connected:
            self._all_gone.set()

    def _forget(self, connection: ClientProtocol) -> None:
        if connection.phase is not Phase.GONE:
            del self._rooms[connection.phase][connection]
            connection.phase = Phase.GONE
            self._beyond.pop(connection, None)
            self.charge(connection, 0)

    def refuse(self, connection: ClientProtocol) -> None:
        """A newcomer for whom there is no place at all: its last bytes are on their way."""
        self._enter_full(connection, Phase.CLOSING)

    def _everyone(self) -> list[ClientProtocol]:
        return [connection for room in self._rooms for connection in room]

    # --- deadlines ------------------------------------------------------------------------

    def _schedule_tick(self) -> None:
        limits = self.limits()
        shortest_s = min(limits.header_s, limits.close_flush_s, KEEPALIVE_S)
        self._tick_s = self._running_loop.time() + min(_LONGEST_TICK_S, shortest_s / 4)
        self._ticker = self._running_loop.call_at(self._tick_s, self._tick)

    def _tick(self) -> None:
        """Ends what has waited too long. Stops when nobody is connected."""
        self._ticker = None
        late = self._running_loop.time() - self._tick_s > LATE_S
        self._spared = late and not self._spared  # once: a loop that is always late still judges
        if self._spared:
            self._schedule_tick()  # we were stopped: what came meanwhile has yet to be read
            return
        limits = self.limits()
        for connection in self._overdue(Phase.FRESH, limits.header_s):
            connection.force_close()
        for connection in self._overdue(Phase.HEAD, limits.header_s):
            connection.give_up(
                408,
                f"the head was not complete after {limits.header_s:g} s (limits.header_s)",
                "head_timeout",
            )
        for connection in self._overdue(Phase.IDLE, KEEPALIVE_S):
            connection.force_close()
        for connection in self._overdue(Phase.CLOSING, limits.close_flush_s):
            connection.abort()
            self._forget(connection)
        if self.open_connections:
            self._schedule_tick()

    def _overdue(self, phase: Phase, limit_s: float) -> list[ClientProtocol]:
        latest_s = self._running_loop.time() - limit_s
        due = []
        for connection, since_s in self._rooms[phase].items():
            if since_s > latest_s:
                break
            due.append(connection)
        return due

    def note_refused(self) -> None:
        """Counts a request for which there was no place."""
        self._refused += 1

    # --- log lines ------------------------------------------------------------------------

    def note_malformed(self, peer: str | None, fault: str) -> None:
        """Counts a request that is not HTTP; says so once a minute, for scanners send many."""
        self._malformed += 1
        now_s = self._running_loop.time()
        if now_s - self._malformed_told_s < _LOG_EVERY_S:
            return
        others = self._malformed - self._malformed_told - 1
        log.warning(
            "malformed request from %s: %s%s",
            peer or "a Unix socket",
            fault,
            f" (and {others} others since the last such line)" if others else "",
        )
        self._malformed_told = self._malformed
        self._malformed_told_s = now_s


class ClientProtocol(RequestHandler):
    """One client connection."""

    __slots__ = (
        "_chunked",
        "_client",
        "_discards",
        "_intake",
        "_is_full",
        "_malformed",
        "_server",
        "beyond",
        "charged_bytes",
        "loop",
        "over_unix",
        "phase",
        "upgrades",
        "wrote_raw",
    )

    def __init__(self, server: GatewayServer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            logger=log,
            access_log=None,  # type: ignore[arg-type]  # which is how aiohttp is told: none
            auto_decompress=False,
            tcp_keepalive=True,
            # The rooms keep this time: aiohttp's own timer would cut a head that is arriving.
            keepalive_timeout=86400.0,
            lingering_time=_LINGER_S,
            read_bufsize=READ_BUFFER_BYTES,
        )
        self.loop = loop
        self._server = server
        self._client: asyncio.Transport | None = None
        self._intake = Intake(
            self._parser,
            is_free=self._is_free,
            refusal=lambda path: None if path in server.open_paths else self.beyond,
            max_body_bytes=lambda: server.limits().max_body_bytes,
            charge=self._charge,
        )
        self._parser = self._intake  # type: ignore[assignment]  # it has what is asked of one
        self._is_full = False  # too much waits behind the request in hand; nothing is read
        self._discards: StreamReader | None = None  # a body that no handler reads
        self._chunked = False
        self._malformed = False
        self.phase = Phase.GONE
        self.over_unix = False
        self.beyond: ErrorText | None = None  # why it may ask for open paths only
        self.charged_bytes = 0
        # Whoever writes an answer past aiohttp sets this, for aiohttp can't know that one has
        # begun: an error can then only end the connection.
        self.wrote_raw = False
        self.upgrades = False  # the request in hand asks for a WebSocket, and is the last one

    def __repr__(self) -> str:
        return f"<ClientProtocol {self.phase.name} {self.peername!r}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = client = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        sock = client.get_extra_info("socket")
        self.over_unix = sock.family == socket.AF_UNIX
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        client.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        if self._server.arrive(self):
            super().connection_made(transport)
            if self._server.stopping:  # it was being accepted when everybody was sent away
                self.force_close()
            return
        # aiohttp never reads from this connection. Its sending side is shut instead of closed,
        # since closing on a request that is on its way would reset it and lose the answer.
        self._server.refuse(self)
        self.close()
        client.write(closing_answer(self.beyond or ALL_IN_USE, headers=_RETRY_AFTER))
        client.write_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.leave(self)
        super().connection_lost(exc)
        self._client = None
        self._intake.let_go()
        self._discards = None

    def enter(self, phase: Phase) -> None:
        """Moves to another phase, unless the connection is over."""
        if self.phase is not phase and self.phase is not Phase.GONE:
            self._server.enter(self, phase)

    # --- what the client sends ----------------------------------------------------------------

    def _is_free(self) -> bool:
        """No request is in hand, and none is queued."""
        return not self._messages and self.phase in _WAITING

    def data_received(self, data: bytes) -> None:
        intake = self._intake
        if intake.is_upgraded:
            intake.hold(data)
        else:
            super().data_received(data)
        while intake.goes_on:
            left_bytes = intake.waiting_bytes
            super().data_received(b"")
            if intake.waiting_bytes == left_bytes:  # aiohttp takes nothing on its way out
                intake.end()
        if intake.has_open_head and (self.phase is Phase.IDLE or self.phase is Phase.FRESH):
            self.enter(Phase.HEAD)
        self._discard()
        self._watch_intake()

    def _discard(self) -> None:
        """Drops what came of a body that no handler reads; a full one would stop the reading."""
        unread = self._discards
        if unread is not None and self.phase is Phase.BUSY and unread.exception() is None:
            unread.read_nowait()

    def _watch_intake(self) -> None:
        """Charges what is held, and stops reading while too much of it waits."""
        intake, client = self._intake, self._client
        try:
            self._charge(intake.held_bytes)
        except LedgerFull:
            intake.end()  # what waits is never answered: the connection ends behind this answer
            with suppress(LedgerFull):
                self._charge(intake.held_bytes)
        is_full = intake.waiting_bytes > WAITING_BYTES
        if is_full is self._is_full or client is None:
            return
        self._is_full = is_full
        if is_full:
            client.pause_reading()
        elif not self._reading_paused:
            client.resume_reading()

    def _charge(self, held_bytes: int) -> None:
        """Raises LedgerFull, but for a small head: looking and cancelling are always possible."""
        try:
            self._server.charge(self, CONNECTION_BYTES + held_bytes)
        except LedgerFull:
            if held_bytes > SMALL_HEAD_BYTES:
                raise

    def resume_reading(self, resume_parser: bool = True) -> None:
        """A body's reader wants more of it, which is no reason to read what is behind."""
        super().resume_reading(resume_parser)
        if self._is_full and self._client is not None:
            self._client.pause_reading()

    def set_parser(
        self, parser: WebSocketReader, data_received_cb: Callable[[], None] | None = None
    ) -> None:
        """The client may speak WebSocket, and what it has said already is heard."""
        super().set_parser(parser, data_received_cb)
        if self._intake.is_over:  # there was no memory for what it has said
            self.force_close()
        data = self._intake.hand_over()
        self._watch_intake()
        if data:
            super().data_received(data)

    def begin_request(self, message: RawRequestMessage, body: StreamReader) -> None:
        """A request's turn has come."""
        self._chunked = bool(message.chunked)
        self.upgrades = bool(message.upgrade)
        self._discards = body if message.method in _BODILESS and not body.is_eof() else None
        self.wrote_raw = False
        self.enter(Phase.BUSY)
        self._discard()  # of what came along with the head

    @property
    def ends_after_answer(self) -> bool:
        """Whether the answer to the request in hand must say `Connection: close`.

        A draining server wants it so. And a chunked body does, whose last trailer aiohttp's
        parser (3.14.5, in C) takes for the first header of the next request: behind a proxy
        that shares its connections, one client could so give another's request a header.
        """
        return self._must_end or self._server.draining

    @property
    def _must_end(self) -> bool:
        return self._chunked or self._intake.is_over or self.beyond is not None

    async def finish_response(
        self, request: BaseRequest, resp: StreamResponse, start_time: float | None
    ) -> tuple[StreamResponse, bool]:
        has_begun = self.wrote_raw or resp.prepared  # and has announced what follows
        if self._must_end or (self._server.draining and not has_begun):
            resp.force_close()
        answer, lost = await super().finish_response(request, resp, start_time)
        self._discards = None
        self._intake.answered()
        if self._server.stopping:
            answer.force_close()
        if answer.keep_alive and not lost and request.content.is_eof():
            self.enter(Phase.IDLE)
            self.data_received(b"")  # what waits behind it
            return answer, lost
        self.enter(Phase.CLOSING)
        broken = request.content.exception()
        if self._malformed or broken is not None:
            if broken is not None:
                _forget_frames(broken)
            self.close()  # nothing more is read
            await self._linger()
            self.force_close()
        elif answer.keep_alive:  # aiohttp reads on for _LINGER_S; the body may end in that time
            request.content.on_eof(lambda: self.enter(Phase.IDLE))
        return answer, lost

    async def _linger(self) -> None:
        """Lets the client finish and hang up, which cancels this."""
        client = self._client
        if client is not None and not client.is_closing():
            client.write_eof()
            await asyncio.sleep(_LINGER_S)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        if self.wrote_raw or request.writer.output_size > 0:
            self._note_failed(request, exc or sys.exception())
            self.enter(Phase.CLOSING)
            raise ConnectionResetError("an answer had begun")
        if isinstance(exc, Refused):
            _forget_frames(exc)
            return exc.response(request.raw_path)
        if isinstance(exc, HttpProcessingError):
            return self._answer_malformed(request, exc)
        number = self._note_failed(request, exc or sys.exception())
        message = f"internal error; the log has it as request {number}"
        error = ErrorText(status, message, SERVER_ERROR, "internal_error")
        answer = error_response(error, request.raw_path, id_headers(number))
        answer.force_close()
        return answer

    def _answer_malformed(self, request: BaseRequest, error: HttpProcessingError) -> StreamResponse:
        """What the parser says may quote a key, so neither the client nor the log is told."""
        self.close()
        self._malformed = True
        _forget_frames(error)
        headers = None
        if isinstance(error, HeadRefused):
            fault, headers = error.error, error.more
        elif isinstance(error, LineTooLong):
            message = "the target or a header is longer than 8190 bytes"
            fault = ErrorText(431, message, INVALID_REQUEST, "head_too_large")
        else:
            message = "this is not valid HTTP/1.1"
            fault = ErrorText(400, message, INVALID_REQUEST, "malformed_request")
        if fault is self.beyond:
            self._server.note_refused()
        elif fault.status != 503:
            told = fault.message if isinstance(error, HeadRefused) else _FAULTS.get(type(error))
            self._server.note_malformed(request.remote, told or "not valid HTTP")
        answer = error_response(fault, self._intake.path, headers)
        answer.force_close()
        return answer

    def _note_failed(self, request: BaseRequest, error: BaseException | None) -> str:
        """Logs a fault of ours once, and returns the number that the line has."""
        number = secrets.token_hex(8)
        client = self._client
        has_left = client is None or client.is_closing()
        if not (has_left and isinstance(error, ConnectionError)):
            log.error("request %s (%s) failed", number, request.method, exc_info=error)
        return number

    def give_up(self, status: int, message: str, code: str) -> None:
        """Ends a connection on which no request is in hand, saying why."""
        if self._client is not None and not self._client.is_closing():
            self._intake.end()
            kind = SERVER_ERROR if status >= 500 else INVALID_REQUEST
            headers = _RETRY_AFTER if status == 503 else None
            fault = ErrorText(status, message, kind, code)
            self._client.write(closing_answer(fault, self._intake.path, headers=headers))
        self.force_close()

    def leave_for_memory(self) -> None:
        """Ends at once, for memory is short. Only a client that has begun to ask is told."""
        if self.phase is Phase.HEAD:
            self.give_up(503, "memory is short, and this head was not complete", "memory_limit")
        else:
            self.force_close()
        if self._client is not None and self._client.get_write_buffer_size():
            self._client.abort()  # it reads nothing, and is in no room that would watch it
        self._intake.end()

    def force_close(self) -> None:
        super().force_close()
        self.enter(Phase.CLOSING)

    def abort(self) -> None:
        """Ends the connection now, with whatever was not sent yet."""
        if self._client is not None:
            self._client.abort()


_FAULTS: dict[type[HttpProcessingError], str] = {
    BadHttpMethod: "no HTTP method (TLS or another protocol on this port?)",
    LineTooLong: "its target or a header is too long",
}


def _forget_frames(error: BaseException) -> None:
    """Let go of what the frames of an error hold, and of those before it, when it has been told.

    aiohttp's own hold the error, directly or by the body's reader. In such a ring what was read
    would stay until the collector comes: 117 KB for each of 1,200 heads that were too large.
    """
    each: BaseException | None = error
    while each is not None:
        former = each.__context__
        each.__traceback__ = each.__context__ = each.__cause__ = None
        each = former


def _begin_request(
    message: RawRequestMessage,
    body: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> BaseRequest:
    assert isinstance(protocol, ClientProtocol)
    if message.method == "UNKNOWN":  # aiohttp's stand-in where a head was refused says HTTP/1.0
        message = message._replace(version=HttpVersion11)
    protocol.begin_request(message, body)
    return _Request(message, body, protocol, writer, task, protocol.loop)


class _Request(BaseRequest):
    """A request whose answer does not name the software that serves it."""

    async def _prepare_hook(self, response: StreamResponse) -> None:
        """aiohttp calls this when an answer's head is complete, before it is sent."""
        response.headers.popall(hdrs.SERVER, None)
