"""A GatewayServer on a loopback port, and a client that sends exactly the bytes it is given."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from fakes.machine import until
from tidegate.core.runs.ledger import Ledger
from tidegate.core.settings import Limits
from tidegate.gateway.server.server import GatewayServer

DEADLINE_S = 30.0  # what must happen at all has this long on a busy machine


@dataclass(frozen=True)
class Answer:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """What is under "error", after a look at its shape."""
        assert self.headers["content-type"].startswith("application/json")
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Sends, and does not mind if the other side has hung up."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass

    async def answer(self) -> Answer:
        """The next answer."""
        async with asyncio.timeout(DEADLINE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *fields = head.decode().removesuffix("\r\n\r\n").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
            }
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join([piece async for piece in self._chunks()])
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split()[1]), headers, body)

    async def _chunks(self) -> AsyncIterator[bytes]:
        """What is in each chunk of a body, to its end."""
        size = 1
        while size:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            yield (await self.reader.readexactly(size + 2))[:-2]

    async def ask(self, data: bytes) -> Answer:
        """Sends a request and reads its answer."""
        await self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """Everything until the other side ends the connection."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        """Hangs up."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Rig:
    """A server and its clients."""

    def __init__(self, server: GatewayServer, port: int, limits: Limits, ledger: Ledger) -> None:
        self.server = server
        self.ledger = ledger
        self.port = port
        self.limits = limits
        self.clients: list[RawClient] = []

    def limit(self, **changes: Any) -> None:
        """Changes limits, as a reload would."""
        self.limits = msgspec.structs.replace(self.limits, **changes)

    async def client(self) -> RawClient:
        """A new connection."""
        client = RawClient(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> Answer:
        """One request on a connection of its own."""
        client = await self.client()
        return await client.ask(data)


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    """The plainest handler."""
    return web.Response(text="hello")


@asynccontextmanager
async def serving(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    *,
    open_paths: Collection[str] = (),
    **limits: Any,
) -> AsyncIterator[Rig]:
    """A running server; at the end nothing of it is left, and nothing is charged."""
    ledger = Ledger()
    server = GatewayServer(handler, lambda: rig.limits, ledger=ledger, open_paths=open_paths)
    ledger.reclaim = lambda: server.table.make_room(
        lambda: ledger.is_tight or ledger.is_intake_full
    )
    sock = socket.create_server(("127.0.0.1", 0))
    rig = Rig(server, sock.getsockname()[1], Limits(**limits), ledger)
    before = asyncio.all_tasks()
    await server.listen(sock)
    try:
        yield rig
    finally:
        for client in rig.clients:
            await client.close()
        await server.shutdown(0.01)
        before.add(asyncio.current_task())  # a fixture is torn down in another task
        await until(lambda: asyncio.all_tasks() <= before)
        assert server.table.statistics().open == 0
        await until(lambda: not server.connections)
        assert ledger.total_bytes == 0


def get(path: str = "/", *fields: str) -> bytes:
    """A GET."""
    return request("GET", path, *fields)


def request(method: str, path: str, *fields: str, body: bytes | None = None) -> bytes:
    """A request; `fields` are whole header lines. Host is 127.0.0.1 unless one is among them."""
    lines = [f"{method} {path} HTTP/1.1", *fields]
    if not any(field.lower().startswith("host:") for field in fields):
        lines.insert(1, "Host: 127.0.0.1")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")
