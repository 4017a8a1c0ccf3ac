"""The barest relay that Python can be: two protocols on uvloop, heads read by httptools.

    python bench/ceiling_protocol.py PORT UPSTREAM_PORT

It hands on bytes as they come, and reads them only to know where a message ends and a connection
is free again. No token, no limit, no fault is handled, nothing is checked or recorded: what a
gateway in Python costs more than this is its own doing, what this costs more than nginx is
Python's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable

import httptools
import uvloop

PORT, UPSTREAM_PORT = map(int, sys.argv[1:])
idle: list[Upstream] = []


class Upstream(asyncio.Protocol):
    """A connection to the upstream; it answers one client at a time."""

    def __init__(self) -> None:
        """Begin without a client."""
        self.client: Client | None = None
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Keep the transport."""
        self.transport = transport

    def ask(self, client: Client, request: Iterable[bytes]) -> None:
        """Send a client's request; the answer goes to it as it comes."""
        self.client = client
        self.transport.writelines(request)

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the client."""
        if self.client is not None and not self.client.transport.is_closing():
            self.client.transport.write(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Let another client have this connection."""
        if self.client is not None:
            self.client.upstream = None
        self.client = None
        idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        """End what depends on this connection."""
        if self in idle:
            idle.remove(self)
        if self.client is not None:
            self.client.transport.close()


class Client(asyncio.Protocol):
    """A client's connection."""

    def __init__(self) -> None:
        """Begin without a request."""
        self.request: list[bytes] = []
        self.upstream: Upstream | None = None
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Gather a request."""
        self.request.append(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Send the whole request upstream, on a connection that is idle or a new one."""
        request, self.request = self.request, []
        if idle:
            self.upstream = idle.pop()
            self.upstream.ask(self, request)
        else:
            connecting = asyncio.ensure_future(self.connect(request))
            tasks.add(connecting)
            connecting.add_done_callback(tasks.discard)

    async def connect(self, request: list[bytes]) -> None:
        """Ask on a new connection."""
        _, self.upstream = await loop.create_connection(Upstream, "127.0.0.1", UPSTREAM_PORT)
        self.upstream.ask(self, request)

    def pause_writing(self) -> None:
        """Read no more of the answer while the client is slow."""
        if self.upstream is not None:
            self.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on reading."""
        if self.upstream is not None:
            self.upstream.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the answer that has no client any more."""
        if self.upstream is not None:
            self.upstream.transport.close()


tasks: set[asyncio.Task[None]] = set()
loop = uvloop.new_event_loop()
asyncio.set_event_loop(loop)
loop.run_until_complete(loop.create_server(Client, "127.0.0.1", PORT, backlog=4096))
loop.run_forever()
