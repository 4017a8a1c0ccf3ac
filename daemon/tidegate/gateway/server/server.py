"""The server of the gateway: listening sockets, and the end of what was accepted.

aiohttp's low-level server reads heads and writes answers. What it lacks is added here and beside:
a deadline for a head, a bound on connections, a last word for a client that is refused, and a limit
on how long a close may wait for a client that no longer reads. `web.Application` is not used: its
router and signals cost more than a whole request should.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from aiohttp import HttpVersion11, StreamReader, hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from tidegate.core.runs.ledger import Ledger
from tidegate.core.settings import Limits
from tidegate.gateway import web
from tidegate.gateway.server.client_protocol import ClientProtocol
from tidegate.gateway.server.connection_table import WAITING, ConnectionTable
from tidegate.gateway.server.porch import Lane, Porch, limit_buffers
from tidegate.gateway.web import BaseRequest, RequestHandler, StreamResponse

BACKLOG = 1024  # connections that wait to be accepted
# Plain asyncio (3.11 to 3.13) takes its backlog for the number of accepts in a row, and goes on
# with them when there are no descriptors left: 1,024 tracebacks and timers a second. With one it
# waits a second, and says so once. uvloop closes what it can't serve.
_ACCEPTS_AT_ONCE = 1
# Of the loop, from an accepted socket to `connection_made`: the task, its transport, the call.
_TURNS_TO_ARRIVE = 3


class GatewayServer(web.Server):
    """Makes a `Porch` for each connection; `table` keeps them in bounds.

    `handler` answers a request; a `Refused` that it raises is answered as it says, and anything
    else with a 500. While `draining`, each answer that is begun announces the end of its
    connection; who writes heads by itself asks `ClientProtocol.ends_after_answer`.
    """

    def __init__(
        self,
        handler: Callable[[BaseRequest], Awaitable[StreamResponse]],
        limits: Callable[[], Limits],
        *,
        ledger: Ledger | None = None,
        open_paths: Collection[str] = (),
    ) -> None:
        """`limits` is asked anew each time, so that a reload takes effect at once.

        Connections are charged to `ledger`. `open_paths` are answered even when all places are
        taken. Needs a running loop.
        """
        super().__init__(handler, request_factory=_begin_request, handler_cancellation=True)
        self.draining = False
        self.stopping = False
        self.open_paths = frozenset(open_paths)
        self.lane: Lane | None = None  # set before it listens
        self.table = ConnectionTable(limits, ledger or Ledger())
        self._running_loop = asyncio.get_running_loop()
        self._listeners: list[asyncio.Server] = []

    def __repr__(self) -> str:
        return f"<GatewayServer {self.table!r} draining={self.draining}>"

    async def listen(self, sock: socket.socket) -> None:
        """Accept on a bound socket, TCP or Unix, which from now on belongs to this server.

        `create_server` takes both; `create_unix_server` would remove the path at its close,
        while another process may still listen there.
        """
        over_unix = sock.family == socket.AF_UNIX
        if not over_unix:
            limit_buffers(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        arrive = partial(Porch, self, self._running_loop, self.lane, over_unix=over_unix)
        server = await self._running_loop.create_server(arrive, sock=sock, backlog=_ACCEPTS_AT_ONCE)
        sock.listen(BACKLOG)  # anew: create_server has given the kernel its own
        self._listeners.append(server)

    def stop_accepting(self) -> None:
        """Accept nothing from now on, and close the listening sockets. Connections stay.

        Plain asyncio makes a connection of an accepted socket in a task, which drops the socket
        if its listener has been closed by then. So the closing waits until those tasks have run;
        meanwhile the listener is not read. On uvloop `remove_reader` changes nothing.
        """
        for listener in self._listeners:
            for sock in listener.sockets:
                self._running_loop.remove_reader(sock.fileno())
            self._running_loop.call_soon(listener.close)
        self._listeners.clear()

    async def shutdown(self, timeout: float | None = None, flush_s: float | None = None) -> None:
        """Stop accepting, give requests in hand `timeout` seconds, then end them.

        Returns when every connection is gone, at most `flush_s` (or limits.close_flush_s) after
        that. aiohttp's own shutdown is not used: it waits for idle connections too.
        """
        table = self.table
        self.stop_accepting()
        self.draining = self.stopping = True
        for _ in range(_TURNS_TO_ARRIVE):  # what is being accepted counts too
            await asyncio.sleep(0)
        for connection in table:
            if connection.phase in WAITING:
                connection.force_close()
        if await table.emptied(timeout):
            return
        for connection in table:
            connection.force_close()
        if await table.emptied(table.limits().close_flush_s if flush_s is None else flush_s):
            return
        for connection in table:
            connection.abort()
        await table.emptied()


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
    """A request whose answer names no software that serves it, and the page that may read it."""

    async def _prepare_hook(self, response: StreamResponse) -> None:
        """aiohttp calls this when an answer's head is complete, before it is sent."""
        headers = response.headers
        headers.popall(hdrs.SERVER, None)
        for name, value in self.get(web.PAGE_FIELDS, {}).items():
            varies = name == hdrs.VARY and name in headers
            headers[name] = f"{headers[name]}, {value}" if varies else value
