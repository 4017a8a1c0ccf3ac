"""Clients never take the last descriptor, and when there is none left, nothing breaks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from fakes.machine import until
from gateway.gateway_rig import Peer
from gateway.server_rig import DEADLINE_S, RawClient, get, request

pytestmark = pytest.mark.processes

PROGRAM = Path(__file__).parents[2] / "fakes" / "few_descriptors.py"
ASK = request("POST", "/v1/chat/completions", body=b'{"model": "m", "stream": true}')


class Few:
    """A gateway of few descriptors, in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.clients: list[RawClient] = []

    async def client(self) -> RawClient:
        """A new connection."""
        client = RawClient(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def leave_only(self, number: int) -> None:
        """So many more descriptors may it open."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"%d\n" % number)
        assert await self.process.stdout.readline() == b"limited\n"


@asynccontextmanager
async def few(loop: str, limit: int, url: str, folder: Path) -> AsyncIterator[Few]:
    """Starts one; at its end it has ended by itself."""
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(PROGRAM), loop, str(limit), url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), DEADLINE_S))
        running = Few(process, port, folder / "log")
        yield running
        for client in running.clients:
            client.writer.transport.abort()
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_health_is_answered_while_clients_take_all_there_are(
    loop: str, raw_upstream, tmp_path: Path
) -> None:
    """With 256 descriptors 96 clients are served; the rest is told so, and a look is answered."""

    async def hang(peer: Peer) -> None:
        await peer.request()
        await peer.hang()

    upstream = await raw_upstream(hang)
    async with few(loop, 256, upstream.url, tmp_path) as gateway:
        for _ in range(96):
            client = await gateway.client()
            await client.send(ASK)
        await until(lambda: upstream.open_connections == 96)
        for n in range(200):
            client = await gateway.client()
            if n % 2:
                await client.send(ASK)
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        look = await gateway.client()
        assert (await look.ask(get("/healthz"))).status == 200
    told = gateway.log.read_text()
    assert "limits.max_connections is 4096, but 256 descriptors are enough for 96 clients" in told
    assert "LimitNOFILE" in told
    assert "Too many open files" not in told


async def is_served(gateway: Few) -> bool:
    """Whether a newcomer is; uvloop hangs up on one for whom there is no descriptor."""
    client = await gateway.client()
    try:
        return (await client.ask(get("/healthz"))).status == 200
    except (asyncio.IncompleteReadError, ConnectionError):
        client.writer.transport.abort()
        return False


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_an_accept_without_descriptors_neither_spins_nor_ends_it(
    loop: str, raw_upstream, tmp_path: Path
) -> None:
    """It is said a few times at most, and with descriptors again clients are served again."""

    async def hang(peer: Peer) -> None:
        await peer.hang()

    upstream = await raw_upstream(hang)
    async with few(loop, 0, upstream.url, tmp_path) as gateway:
        first = await gateway.client()
        assert (await first.ask(get("/healthz"))).status == 200
        await gateway.leave_only(3)
        flood = [await gateway.client() for _ in range(40)]
        assert (await first.ask(get("/healthz"))).status == 200
        for client in flood:
            client.writer.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            while not await is_served(gateway):
                pass
    assert gateway.log.read_text().count("Traceback") < 2 * DEADLINE_S
