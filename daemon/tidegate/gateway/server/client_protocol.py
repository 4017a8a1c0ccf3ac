"""A client connection that aiohttp serves, with bounds on what it holds and how it ends.

It takes over from the `Porch`, where every connection begins.

What a client sends passes `Intake`, which stands in for aiohttp's parser: one request at a time,
and what comes behind it waits. That, the heads that are arriving and the connections themselves
are charged to the ledger's account for connections.

Of aiohttp's internals this leans on: `RequestHandler.data_received`, `finish_response`,
`handle_error`, `log_exception`, `set_parser`, `resume_reading`, `close` and `force_close`, which
have no underscore and no documentation; that the request factory is called when a request's turn
has come; and on private names: `_parser`, which `Intake` takes the place of, `_messages`, the
requests whose turn has not come, `_reading_paused`, set while a body's reader has enough, and
`_prepare_hook` of a request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Protocol, cast

from aiohttp import StreamReader, hdrs
from aiohttp.http import HttpProcessingError, RawRequestMessage, WebSocketReader
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong

from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import ErrorText
from tidegate.core.settings import KIB
from tidegate.gateway import web
from tidegate.gateway.server.connection_table import (
    CONNECTION_BYTES,
    WAITING,
    Connection,
    ConnectionPhase,
    ConnectionTable,
)
from tidegate.gateway.server.descriptors import has_unread
from tidegate.gateway.server.errors import (
    INVALID_REQUEST,
    SERVER_ERROR,
    Refused,
    closing_answer,
    error_response,
)
from tidegate.gateway.server.ids import id_headers
from tidegate.gateway.server.intake import HeadRefused, Intake
from tidegate.gateway.web import BaseRequest, RequestHandler, StreamResponse

log = logging.getLogger(__name__)

# aiohttp stops reading a body at twice this while its handler reads nothing (by default 512 KiB).
READ_BUFFER_BYTES = 64 * KIB
# What may wait behind a request that is being answered before nothing more is read: more than
# clients that pipeline send ahead, and as much as a body whose reader is busy.
WAITING_BYTES = 64 * KIB
# What a head of some twenty fields costs. It is let in when memory is short, for what its request
# needs besides is charged for itself, and it may be a cancel, or a look at our health.
SMALL_HEAD_BYTES = 8 * KIB

# What a client may still send after its answer, so that it reads the answer and not a reset.
_LINGER_S = 2.0
RETRY_AFTER = {"Retry-After": "5"}
_BODILESS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})  # no handler reads one


class ConnectionHost(Protocol):
    """The server, as far as one of its connections needs it."""

    draining: bool  # each answer that is begun announces the end of its connection
    stopping: bool  # each answer is the last of its connection

    @property
    def open_paths(self) -> frozenset[str]: ...
    @property
    def table(self) -> ConnectionTable: ...


class ClientProtocol(RequestHandler):
    """One client connection, from its first read that is not the fast lane's on."""

    own_bytes: ClassVar[int] = CONNECTION_BYTES
    __slots__ = (
        "_chunked",
        "_client",
        "_discards",
        "_intake",
        "_is_full",
        "_malformed",
        "_server",
        "_table",
        "beyond",
        "charged_bytes",
        "loop",
        "over_unix",
        "phase",
        "upgrades",
        "wrote_raw",
    )

    def __init__(
        self, server: ConnectionHost, loop: asyncio.AbstractEventLoop, *, over_unix: bool
    ) -> None:
        super().__init__(
            cast(web.Server, server),
            loop=loop,
            logger=log,
            access_log=None,  # type: ignore[arg-type]  # which is how aiohttp is told: none
            auto_decompress=False,
            tcp_keepalive=False,  # it is set where the connection begins
            # The table keeps this time: aiohttp's own timer would cut a head that is arriving.
            keepalive_timeout=86400.0,
            lingering_time=_LINGER_S,
            read_bufsize=READ_BUFFER_BYTES,
        )
        self.loop = loop
        self._server = server
        self._table = table = server.table
        self._client: asyncio.Transport | None = None
        self._intake = Intake(
            self._parser,
            is_free=self._is_free,
            refusal=lambda path: None if path in server.open_paths else self.beyond,
            max_body_bytes=lambda: table.limits().max_body_bytes,
            charge=self._charge,
        )
        self._parser = self._intake  # type: ignore[assignment]  # it has what is asked of one
        self._is_full = False  # too much waits behind the request in hand; nothing is read
        self._discards: StreamReader | None = None  # a body that no handler reads
        self._chunked = False
        self._malformed = False
        self.phase = ConnectionPhase.GONE
        self.over_unix = over_unix
        self.beyond: ErrorText | None = None  # why it may ask for open paths only
        self.charged_bytes = 0
        # What writes an answer past aiohttp sets this, for aiohttp can't know that one has
        # begun: an error can then only end the connection.
        self.wrote_raw = False
        self.upgrades = False  # the request in hand asks for a WebSocket, and is the last one

    def __repr__(self) -> str:
        return f"<ClientProtocol {self.phase.name} {self.peername!r}>"

    def take_over(self, former: Connection, transport: asyncio.Transport) -> None:
        """Serve the connection of `former` from now on, in its place in the table."""
        self._client = transport
        self._table.replace(former, self)
        transport.set_protocol(self)
        self.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._table.leave(self)
        super().connection_lost(exc)
        self._client = None
        self._intake.let_go()
        self._discards = None

    def enter(self, phase: ConnectionPhase) -> None:
        """Move the connection to another phase, unless it is over."""
        if self.phase is not phase and self.phase is not ConnectionPhase.GONE:
            self._table.enter(self, phase)

    # --- what the client sends ----------------------------------------------------------------

    def _is_free(self) -> bool:
        """No request is in hand, and none is queued."""
        return not self._messages and self.phase in WAITING

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
        if intake.has_open_head and (
            self.phase is ConnectionPhase.IDLE or self.phase is ConnectionPhase.FRESH
        ):
            self.enter(ConnectionPhase.HEAD)
        self._discard()
        self._watch_intake()

    def _discard(self) -> None:
        """Drop what came of a body that no handler reads; a full one would stop the reading."""
        unread = self._discards
        if unread is not None and self.phase is ConnectionPhase.BUSY and unread.exception() is None:
            unread.read_nowait()

    def _watch_intake(self) -> None:
        """Charge what is held, and stop reading while too much of it waits."""
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
        """Charge what is held. LedgerFull, but for a small head: one may always look and cancel."""
        try:
            self._table.charge(self, CONNECTION_BYTES + held_bytes)
        except LedgerFull:
            if held_bytes > SMALL_HEAD_BYTES:
                raise

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on for a body's reader, which is no reason to read what is behind the body."""
        super().resume_reading(resume_parser)
        if self._is_full and self._client is not None:
            self._client.pause_reading()

    def set_parser(
        self, parser: WebSocketReader, data_received_cb: Callable[[], None] | None = None
    ) -> None:
        """Let the client speak WebSocket; the parser gets what it has sent already."""
        super().set_parser(parser, data_received_cb)
        if self._intake.is_over:  # there was no memory for what it has sent
            self.force_close()
        data = self._intake.hand_over()
        self._watch_intake()
        if data:
            super().data_received(data)

    def begin_request(self, message: RawRequestMessage, body: StreamReader) -> None:
        """Take a request in hand: those before it have been answered."""
        self._chunked = bool(message.chunked)
        self.upgrades = bool(message.upgrade)
        self._discards = body if message.method in _BODILESS and not body.is_eof() else None
        self.wrote_raw = False
        self.enter(ConnectionPhase.BUSY)
        self._discard()  # of what came along with the head

    @property
    def ends_after_answer(self) -> bool:
        """Whether the answer to the request in hand must say `Connection: close`.

        A draining server wants it so. And a chunked body does, whose last trailer aiohttp's
        parser (3.14.5, in C) takes for the first header of the next request: behind a proxy
        that shares its connections, one client could that way give another's request a header.
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
            self.enter(ConnectionPhase.IDLE)
            self.data_received(b"")  # what waits behind it
            return answer, lost
        self.enter(ConnectionPhase.CLOSING)
        broken = request.content.exception()
        if self._malformed or broken is not None:
            if broken is not None:
                _forget_frames(broken)
            self.close()  # nothing more is read
            await self._linger()
            self.force_close()
        elif answer.keep_alive:  # aiohttp reads on for _LINGER_S; the body may end in that time
            request.content.on_eof(lambda: self.enter(ConnectionPhase.IDLE))
        return answer, lost

    async def _linger(self) -> None:
        """Let the client finish and hang up, which cancels this."""
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
            self.enter(ConnectionPhase.CLOSING)
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
        """Answer what is not HTTP; the parser's own words may quote a key, and are told nowhere."""
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
            self._table.note_refused()
        elif fault.status != 503:
            told = fault.message if isinstance(error, HeadRefused) else _FAULTS.get(type(error))
            self._table.note_malformed(request.remote, told or "not valid HTTP")
        answer = error_response(fault, self._intake.path, headers)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log what aiohttp ends a connection for, unless a body broke behind its answer."""
        error = kw.get("exc_info")
        if isinstance(error, (web.RequestPayloadError, Refused)):  # only a body's reader has these
            _forget_frames(error)
        else:
            super().log_exception(*args, **kw)

    def _note_failed(self, request: BaseRequest, error: BaseException | None) -> str:
        """Log a fault of ours once; returns the number that the line has."""
        number = secrets.token_hex(8)
        client = self._client
        has_left = client is None or client.is_closing()
        if not (has_left and isinstance(error, ConnectionError)):
            log.error("request %s (%s) failed", number, request.method, exc_info=error)
        return number

    def give_up(self, status: int, message: str, code: str) -> None:
        """End a connection on which no request is in hand, saying why."""
        if self._client is not None and not self._client.is_closing():
            self._intake.end()
            kind = SERVER_ERROR if status >= 500 else INVALID_REQUEST
            headers = RETRY_AFTER if status == 503 else None
            fault = ErrorText(status, message, kind, code)
            self._client.write(closing_answer(fault, self._intake.path, headers=headers))
        self.force_close()

    @property
    def has_unread(self) -> bool:
        """Whether the client has sent what was not read yet."""
        return has_unread(self._client)

    def leave_for_memory(self) -> None:
        """End it at once, for memory is short. Only a client that has begun to ask is told."""
        if self.phase is ConnectionPhase.HEAD:
            self.give_up(503, "memory is short, and this head was not complete", "memory_limit")
        else:
            self.force_close()
        if self._client is not None and self._client.get_write_buffer_size():
            self._client.abort()  # it reads nothing, and the table watches it no more
        self._intake.end()

    def force_close(self) -> None:
        super().force_close()
        self.enter(ConnectionPhase.CLOSING)

    def abort(self) -> None:
        """End the connection now, with whatever was not sent yet."""
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
