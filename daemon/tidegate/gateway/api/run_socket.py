"""A run over WebSocket: its events as messages, and a last one that says how it ended."""

from __future__ import annotations

import msgspec

from tidegate.core.errors import CursorEvicted
from tidegate.core.formats.framing import SSE, Framing
from tidegate.core.http.frames import CloseCode
from tidegate.core.runs.run import Run
from tidegate.core.runs.window import Cursor
from tidegate.gateway import web
from tidegate.gateway.api.websocket_session import WebSocketSession
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import Subscriber
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.websocket import WRITE_BYTES, WebSocket, text_frame
from tidegate.gateway.server.writer import AlreadySent

_encode = msgspec.json.Encoder().encode
MAX_MESSAGE_BYTES = 64 * 1024  # of a client, whose messages mean nothing here


def event_message(seq: int, event: bytes, framing: Framing = SSE) -> bytes:
    """Make a message of ours of one event."""
    data = framing.data(event).decode("utf-8", "replace")
    return _encode({"seq": seq, "event": framing.event_name(event), "data": data})


class RunSocket(WebSocketSession):
    """A WebSocket that a run's events are sent to; what its client sends means nothing."""

    def __init__(self, gateway: Gateway, request: web.BaseRequest, caller: Caller) -> None:
        super().__init__(gateway, request, caller, MAX_MESSAGE_BYTES)

    async def finish(self, state: str, reason: str | None) -> None:
        """Send how the run ended as the last message, and close."""
        await self.close(CloseCode.OK, last=_encode({"state": state, "reason": reason}))


async def serve_socket(
    gateway: Gateway, relay: Relay, request: web.BaseRequest, caller: Caller, cursor: Cursor
) -> web.StreamResponse:
    """Send a run's events from `cursor` on, and how it ended as the last message."""
    with RunSocket(gateway, request, caller) as reader:
        subscriber = Subscriber(relay.run, cursor, reader.socket.client)
        reader.socket.reader = subscriber
        with gateway.reading(relay, subscriber):
            reader.open(keeps=False)
            reason = await _pump(subscriber, reader.socket)
            await reader.finish(relay.run.state.value, reason)
    return AlreadySent(close=True)


async def _pump(subscriber: Subscriber, socket: WebSocket) -> str | None:
    """Send events until the run is over, at the pace of the client; return why it ended."""
    run = subscriber.run
    while True:
        try:
            frames, subscriber.cursor = _frames(run, subscriber.cursor)
        except CursorEvicted as evicted:
            return run.reason if run.released else f"read too slowly: {evicted}"
        if frames:
            keeps_up = socket.write(frames)
            del frames  # they may be waited with for long: they would be in no account
            subscriber.on_progress()
            if not keeps_up:
                await socket.drained()
        elif run.is_over:
            return run.reason
        else:
            await subscriber.wait()


def _frames(run: Run, cursor: Cursor) -> tuple[bytes, Cursor]:
    """Read the next events as frames, and the cursor behind them. Raises CursorEvicted."""
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
