"""A run over WebSocket: its events as messages, and a last one that says how it ended."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
from aiohttp import web

from tidegate.core.errors import CursorEvicted
from tidegate.core.formats.framing import SSE, Framing
from tidegate.core.http.frames import CloseCode
from tidegate.core.runs.run import Run
from tidegate.core.runs.window import Cursor
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import Subscriber
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.websocket import WRITE_BYTES, SocketEnded, WebSocket, text_frame
from tidegate.gateway.server.writer import Written

_encode = msgspec.json.Encoder().encode
MOST_SAID_BYTES = 64 * 1024  # in a message, where what a client says means nothing


def event_message(seq: int, event: bytes, framing: Framing = SSE) -> bytes:
    """One event as a message of ours."""
    data = framing.data(event).decode("utf-8", "replace")
    return _encode({"seq": seq, "event": framing.event_name(event), "data": data})


class RunSocket:
    """A WebSocket that events are sent to, and that may close at any time."""

    def __init__(self, gateway: Gateway, request: web.BaseRequest, caller: Caller) -> None:
        self.socket = WebSocket(gateway, request, caller.owner, MOST_SAID_BYTES)
        self._listener: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Shakes hands; from then on whoever opened it is cancelled when the client leaves."""
        self.socket.open(keeps=False)
        owner = asyncio.current_task()
        assert owner is not None
        self._listener = asyncio.create_task(self._listen(owner))

    async def _listen(self, owner: asyncio.Task[object]) -> None:
        """Pings are answered while somebody receives; what a client says means nothing here."""
        with suppress(ConnectionError):
            try:
                while True:
                    await self.socket.receive()
            except SocketEnded as ended:
                await self.socket.close(ended.code, ended.reason)
        owner.cancel()

    async def close(self, last: dict[str, object]) -> None:
        """The last word, and the closing handshake."""
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        await self.socket.send(_encode(last))
        await self.socket.close(CloseCode.OK)

    def drop(self) -> None:
        """Leaves nothing behind."""
        listener, self._listener = self._listener, None  # how it ended holds us
        if listener is not None:
            listener.cancel()
        self.socket.drop()


async def serve_socket(
    gateway: Gateway, relay: Relay, request: web.BaseRequest, caller: Caller, cursor: Cursor
) -> web.StreamResponse:
    """Send a run's events from `cursor` on, and how it ended as the last message."""
    reader = RunSocket(gateway, request, caller)
    try:
        subscriber = Subscriber(relay.run, cursor, reader.socket.client)
        reader.socket.reader = subscriber
        with gateway.reading(relay, subscriber):
            reader.open()
            await reader.close(await _pump(subscriber, reader.socket))
    finally:
        reader.drop()
    return Written(close=True)


async def _pump(subscriber: Subscriber, socket: WebSocket) -> dict[str, object]:
    """Sends events until the run is over, at the pace of the client; returns the last word."""
    run = subscriber.run
    while True:
        try:
            frames, subscriber.cursor = _frames(run, subscriber.cursor)
        except CursorEvicted as evicted:
            reason = run.reason if run.released else f"read too slowly: {evicted}"
            return {"state": run.state.value, "reason": reason}
        if frames:
            keeps_up = socket.write(frames)
            del frames  # they may be waited with for long: they would be in no account
            subscriber.on_progress()
            if not keeps_up:
                await socket.drained()
        elif run.is_over:
            return {"state": run.state.value, "reason": run.reason}
        else:
            await subscriber.wait()


def _frames(run: Run, cursor: Cursor) -> tuple[bytes, Cursor]:
    """The next events as frames, and the cursor behind them. Raises CursorEvicted."""
    framing = run.format.framing
    block, _ = run.window.read(cursor)
    frames: list[bytes] = []
    size = 0
    for event in framing.split(block):
        frames.append(text_frame(event_message(cursor.seq, event, framing)))
        size += len(event)
        cursor = Cursor(cursor.seq + 1, cursor.offset + len(event))
        if size >= WRITE_BYTES:
            break
    return b"".join(frames), cursor
