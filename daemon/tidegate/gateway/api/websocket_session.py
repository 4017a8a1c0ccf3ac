"""What every WebSocket here has in common: a task that listens while its handler writes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from tidegate.core.formats.base import ErrorText
from tidegate.core.http.frames import CloseCode, Frame
from tidegate.gateway import web
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.websocket import SocketEnded, WebSocket


class WebSocketSession:
    """One WebSocket, from its handshake until the `with` block that it is used in is left.

    A task of its own receives meanwhile, so that pings are answered and a close is seen whatever
    the handler waits for. The handler is cancelled when the client leaves.
    """

    def __init__(
        self, gateway: Gateway, request: web.BaseRequest, caller: Caller, max_bytes: int
    ) -> None:
        """`max_bytes` bounds a message. Raises as WebSocket does."""
        self.socket = WebSocket(gateway, request, caller.owner, max_bytes)
        self._listener: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""
        listener, self._listener = self._listener, None  # how it ended holds us
        if listener is not None:
            listener.cancel()
        self.socket.drop()

    def open(self, *, keeps: bool = True) -> None:
        """Shake hands, and listen. Without `keeps` messages are read over.

        From then on the task that called this is cancelled when the client leaves.
        """
        self.socket.open(keeps=keeps)
        handler = asyncio.current_task()
        assert handler is not None
        self._listener = asyncio.create_task(self._listen(handler))

    async def close(self, code: CloseCode, reason: str = "", *, last: bytes | None = None) -> None:
        """Stop listening, send the `last` message, and close as the protocol has it."""
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        if last is not None:
            await self.socket.send(last)
        await self.socket.close(code, reason)

    def on_message(self, frame: Frame) -> ErrorText | None:
        """Take a message, or say what is wrong with it. Here messages mean nothing.

        Its bytes are in no exception, whose traceback would hold them while the client is told.
        """

    async def send_error(self, error: ErrorText) -> None:
        """Tell the client of an error, where it reads any. Raises ConnectionError."""

    async def _listen(self, handler: asyncio.Task[object]) -> None:
        socket = self.socket
        with suppress(ConnectionError):
            try:
                while True:
                    error = self.on_message(await socket.receive())
                    if error is not None:
                        await self.send_error(error)
            except SocketEnded as ended:
                if ended.error is not None:
                    await self.send_error(ended.error)
                await socket.close(ended.code, ended.reason)
        handler.cancel()
