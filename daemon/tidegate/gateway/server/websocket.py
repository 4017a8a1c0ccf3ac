"""A client's WebSocket: all that it makes us hold is in an account, and every wait has a limit.

What arrives of a message is charged with each read, as MESSAGE in the socket's own account; a
message has `body_s` from its first byte to its last, whatever else comes in between; and all of
one owner's sockets together may have half of what clients may make us hold. What is written is
counted when it is written: in the account of the run that is read, or in the socket's own.

While a message or a ping has not been taken, nothing more is read, so that a client which reads
nothing can't make us hold what it sends. aiohttp serves the request up to the handshake, and hands
over what it reads from then on.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

from aiohttp.http import WebSocketReader

from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import ErrorText
from tidegate.core.formats.foreign_json import as_utf8
from tidegate.core.http.frames import (
    CloseCode,
    Frame,
    FrameReader,
    Opcode,
    WebSocketFault,
    close_frame,
    frame,
    read_close,
)
from tidegate.core.runs.deadlines import Watched
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.settings import Limits, Settings
from tidegate.gateway import web
from tidegate.gateway.server.client_protocol import ClientProtocol
from tidegate.gateway.server.errors import INVALID_REQUEST, SERVER_ERROR
from tidegate.gateway.server.handshake import accept_handshake
from tidegate.gateway.server.sockets import Sockets
from tidegate.gateway.server.writer import LOOK_AGAIN_S, RESOLUTION_S, ResponseWriter

# Of events that waited, what is written at once; the rest stays in the window until it is read.
WRITE_BYTES = 32 * 1024
MOST_FRAMES = 64  # between two turns of the event loop; each costs some 5 us


def _nothing() -> None:
    """Drop nothing: there is nothing that the client can send again."""


class SocketEnded(Exception):
    """Nothing more comes from this client, and why: `error` is what it is told before the end."""

    def __init__(self, code: int, reason: str = "", error: ErrorText | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.error = error


class Accounts(Protocol):
    """Opens accounts, and calls `check` in time."""

    @property
    def ledger(self) -> Ledger: ...
    def look_soon(self, who: Watched, due_s: float) -> None: ...
    def forget(self, who: Watched) -> None: ...


class SocketHost(Protocol):
    """The gateway, as far as a connection needs it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def registry(self) -> Accounts: ...
    @property
    def sockets(self) -> Sockets: ...


class RunReader(Protocol):
    """A run's reader over this connection."""

    outbound_bytes: int
    on_progress: Callable[[], None]


class WebSocket:
    """One connection. Its opener drops it in the end, whatever happened meanwhile."""

    def __init__(
        self, gateway: SocketHost, request: web.BaseRequest, owner: str, max_bytes: int
    ) -> None:
        """`owner` shares a bound with its other sockets; `max_bytes` bounds a message.

        Raises Refused where the request is no handshake, ConnectionError when the client is gone.
        """
        self._handshake = accept_handshake(request)
        self.client = ResponseWriter.of(request)
        self.owner = owner or request.remote or ""
        self.account = gateway.registry.ledger.open()
        self.reader: RunReader | None = None  # of a run, whose account has what is outbound
        self.forget: Callable[[], None] = _nothing  # drops what the client can send again
        self.grew_s = 0.0  # when the message that is arriving last took more memory
        self._gateway = gateway
        self._loop = gateway.loop
        self._protocol = cast(ClientProtocol, request.protocol)
        self._transport = cast(asyncio.Transport, request.transport)
        self._max_bytes = max_bytes
        self._frames = FrameReader(max_bytes, io.BytesIO)
        self._ready: Frame | None = None  # whole, and not taken yet
        self._taken = 0
        self._begun_s: float | None = None  # when the first byte came of what is arriving
        self._heard_s = self._wrote_s = 0.0
        self._pinged_s: float | None = None  # when it was asked whether it is there
        self._has_told = False  # it has something to read before it comes to a ping
        self._ended: SocketEnded | None = None
        self._is_deaf = False  # what comes can't be understood any more
        self._closing = False  # our close frame has been written
        self._closed = asyncio.Event()  # its close frame has come, or the connection is gone
        self._waiter: asyncio.Future[None] | None = None

    @property
    def _limits(self) -> Limits:
        return self._gateway.settings.limits

    @property
    def arriving_bytes(self) -> int:
        """The memory that what has arrived takes until it is received."""
        return self.account.entries[Entry.MESSAGE]

    def open(self, *, keeps: bool = True) -> None:
        """Shake hands; from then on it reads. Without `keeps` messages are read over."""
        now_s = self._loop.time()
        self._frames.keeps = keeps
        self._heard_s = self._wrote_s = self.grew_s = now_s
        self._gateway.sockets.add(self)
        self.client.write(self._handshake)
        self._gateway.registry.look_soon(self, self.check(now_s))
        # aiohttp takes it for a parser: what was read behind the handshake comes at once.
        self._protocol.set_parser(cast(WebSocketReader, self))

    def drop(self) -> None:
        """Leave nothing behind."""
        self._gateway.sockets.remove(self)
        self._gateway.registry.forget(self)
        self._ready = None
        self.forget = _nothing  # it holds the dialogue, which holds us
        self.feed_eof()
        if self._ended is not None:
            self._ended.__traceback__ = None  # of frames that hold us
        self.account.close()

    # --- what is written ----------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send one message, at the pace of the client. Raises ConnectionError when it is gone."""
        self.write(text_frame(data))
        await self.drained()

    def write(self, frames: bytes) -> bool:
        """Write whole frames in one go; whether the client keeps up with what is written."""
        unsent = self.client.write(frames)
        self._wrote_s = self._loop.time()
        self._has_told = self._has_told or self._pinged_s is None
        self.count_outbound()
        if unsent:
            self._gateway.registry.look_soon(self, self._loop.time() + LOOK_AGAIN_S)
        return unsent <= self.client.high_water_bytes

    async def drained(self) -> None:
        """Wait until the client has read most of it. Raises ConnectionError when it is gone."""
        await self.client.drained()
        self.count_outbound()

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye, and wait for the client's, `close_flush_s` at most."""
        self._end(SocketEnded(code, reason))
        if not self._closing:
            self._closing = True
            self.write(close_frame(code, reason))
        self._ready = None
        self._read(on=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.close_flush_s):
                await self._closed.wait()

    def count_outbound(self) -> None:
        """Charge what the kernel has not taken yet."""
        outbound, reader = self.client.outbound_bytes, self.reader
        if reader is not None:
            if reader.outbound_bytes != outbound:
                reader.outbound_bytes = outbound
                reader.on_progress()
            outbound = 0
        with suppress(LedgerFull):  # what comes next is refused, not this
            self.account.set(Entry.OUTBOUND, outbound)

    # --- what is read -------------------------------------------------------------------------

    async def receive(self) -> Frame:
        """Wait for the next message; pings are answered meanwhile. Raises SocketEnded."""
        while True:
            if self._ready is None:
                if self._ended is not None:
                    raise self._ended
                await self._wait()
                continue
            taken, self._ready = self._ready, None
            self._advance()
            if taken.opcode is Opcode.TEXT or taken.opcode is Opcode.BINARY:
                return taken
            if taken.opcode is Opcode.PING and self._ended is None:
                self.write(frame(Opcode.PONG, taken.data))
                await self.drained()
            self._taken += 1
            if not self._taken % MOST_FRAMES:
                await asyncio.sleep(0)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take what was read. aiohttp calls this as long as the first value is False."""
        self._heard_s = self._loop.time()
        self._pinged_s = None
        self._has_told = False
        if not self._is_deaf:
            self._frames.feed(data)
            self._advance()
        return False, b""

    def feed_eof(self) -> None:
        """Note that the connection is gone. aiohttp calls this."""
        self._closed.set()
        self._is_deaf = True
        self._end(SocketEnded(CloseCode.GOING_AWAY))

    def _advance(self) -> None:
        """Go on to what is whole next. Nothing is read while that has not been taken."""
        if self._is_deaf:
            return
        has_more = False  # tiny frames: the other connections come first
        try:
            self._frames.max_bytes = self._most_bytes
            for _ in range(MOST_FRAMES):
                if self._ready is not None or (found := self._frames.next()) is None:
                    break
                if found.opcode is Opcode.CLOSE:
                    self._part(read_close(found.data))
                elif found.opcode is not Opcode.PONG and self._ended is None:
                    self._ready = found
            else:
                has_more = True
            has_more = has_more or self._frames.has_more
            self._charge()
        except WebSocketFault as fault:
            self._is_deaf = True
            self._end(self._faulty(fault))
        except LedgerFull as full:
            self._end(self._full(str(full)))
        if self._ready is not None:
            self._read(on=False)
            self._wake()
        elif has_more:
            self._read(on=False)
            self._loop.call_soon(self._advance)
        else:
            self._read(on=True)

    def _read(self, *, on: bool) -> None:
        if self._transport.is_closing():
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    @property
    def _most_bytes(self) -> int:
        """Of a message: what can never fit into the ledger is refused when it is announced."""
        room_bytes = self._gateway.registry.ledger.intake_limit_bytes
        return min(self._max_bytes, room_bytes) if room_bytes else self._max_bytes

    def _charge(self) -> None:
        """Charge what has arrived, and see whether it grew. Raises LedgerFull."""
        if self._ended is not None:
            return
        ready, frames, now_s = self._ready, self._frames, self._loop.time()
        is_message = ready is not None and ready.opcode < Opcode.CLOSE
        if is_message or frames.is_between:
            self._begun_s = None
        if self._begun_s is None and not frames.is_between:
            self._begun_s = now_s
            self._gateway.registry.look_soon(self, now_s + self._limits.body_s)
        held_bytes = frames.held_bytes + (len(ready.data) if ready is not None else 0)
        if held_bytes > self.arriving_bytes:
            self.grew_s = now_s
        self._set_arriving(held_bytes)
        self._gateway.sockets.check_share(self.owner)

    def _set_arriving(self, held_bytes: int) -> None:
        """Charge so much of a message. Raises LedgerFull."""
        before_bytes = self.arriving_bytes
        if held_bytes != before_bytes:
            self._gateway.sockets.count(self.owner, before_bytes, held_bytes)
            self.account.set(Entry.MESSAGE, held_bytes)

    # --- how it ends --------------------------------------------------------------------------

    def check(self, now_s: float) -> float:
        """Look at the clocks; returns when to look again."""
        limits = self._limits
        self.count_outbound()
        stall_s = limits.close_flush_s if self._closing else limits.stall_s
        if self.client.stalled_s(now_s) >= stall_s:
            self.client.abort()
            return now_s + limits.stall_s
        if self._begun_s is not None and now_s - self._begun_s >= limits.body_s:
            self._end(self._late())
        again_s = now_s + min(LOOK_AGAIN_S, stall_s / 4)
        if self._begun_s is not None:
            again_s = min(again_s, self._begun_s + limits.body_s)
        return again_s if self._closing else min(again_s, self._ping(now_s))

    def _ping(self, now_s: float) -> float:
        """Ask where all is silent whether the client is there, and drop one that is not.

        With something to read it comes to a ping late, so it is gone when it takes nothing of
        that either; what is still in the kernel can't be seen, and `stall_s` is for that.
        """
        limits = self._limits
        answer_s = limits.keepalive_s / 2
        if self.client.outbound_bytes:
            silent_s = min(now_s - self._heard_s, self.client.stalled_s(now_s))
            is_gone = silent_s >= limits.keepalive_s + answer_s
        else:
            silent_s = now_s - max(self._heard_s, self._wrote_s)
            patience_s = limits.stall_s if self._has_told else answer_s
            is_gone = self._pinged_s is not None and now_s - self._pinged_s >= patience_s
            if not is_gone and silent_s + RESOLUTION_S >= limits.keepalive_s:
                self._pinged_s = now_s if self._pinged_s is None else self._pinged_s
                self.write(frame(Opcode.PING, b""))
        if is_gone:
            self.client.abort()
            return now_s + limits.stall_s
        return now_s + min(answer_s, LOOK_AGAIN_S)

    def give_up(self) -> None:
        """Give up its message, for memory."""
        self._end(self._full("memory is short, and this message did not grow"))

    def _part(self, code: int) -> None:
        """Answer the client's close frame, unless it is the answer to ours."""
        self._closed.set()
        self._end(SocketEnded(code))
        if not self._closing:
            self._closing = True
            self.write(close_frame(code))

    def _end(self, ended: SocketEnded) -> None:
        """Receive nothing more, and hold nothing of what comes."""
        if self._ended is None:
            self._ended = ended
        self._frames.discard()
        self._begun_s = None
        held_bytes = len(self._ready.data) if self._ready is not None else 0
        self._set_arriving(min(held_bytes, self.arriving_bytes))
        self._wake()

    def _faulty(self, fault: WebSocketFault) -> SocketEnded:
        if fault.code is not CloseCode.TOO_LARGE:
            return SocketEnded(fault.code, fault.message)
        most_bytes = self._most_bytes
        name = "limits.max_body" if most_bytes == self._max_bytes else "memory.budget"
        message = f"the message is larger than {most_bytes} bytes ({name})"
        error = ErrorText(413, message, INVALID_REQUEST, "body_too_large")
        return SocketEnded(fault.code, message, error)

    def _late(self) -> SocketEnded:
        message = f"the message was not complete after {self._limits.body_s:g} s (limits.body_s)"
        error = ErrorText(408, message, INVALID_REQUEST, "body_timeout")
        return SocketEnded(CloseCode.POLICY, message, error)

    def _full(self, message: str) -> SocketEnded:
        error = ErrorText(503, message, SERVER_ERROR, LedgerFull.code)
        return SocketEnded(CloseCode.TRY_AGAIN, message, error)


def text_frame(data: bytes) -> bytes:
    """Frame a message of ours, which is UTF-8 whatever an upstream sent."""
    return frame(Opcode.TEXT, data if data.isascii() else as_utf8(data))
