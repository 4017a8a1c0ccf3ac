"""The server accepts, announces its end and ends, and drops no connection that it took."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from aiohttp import web

from fakes.machine import until
from gateway.server_rig import DEADLINE_S, RawClient, Rig, get, hello, serving
from tidegate.gateway.server.client_protocol import ClientProtocol
from tidegate.gateway.server.writer import AlreadySent

NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def test_while_draining_each_answer_announces_the_end() -> None:
    """An idle connection stays, and its next answer is its last."""
    async with serving(hello) as rig:
        client = await rig.client()
        assert "connection" not in (await client.ask(get())).headers
        rig.server.draining = True
        rig.server.stop_accepting()
        with pytest.raises(OSError, match="Connect"):
            await rig.client()
        answer = await client.ask(get())
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


@pytest.mark.parametrize("raw", [False, True])
async def test_an_answer_begun_before_draining_keeps_its_promise(raw: bool) -> None:
    """Who was told that the connection stays can use it once more."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def begin(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/next":
            return web.Response()
        stream = web.StreamResponse()
        if raw:
            protocol, transport = request.protocol, request.transport
            assert isinstance(protocol, ClientProtocol)
            assert transport is not None
            protocol.wrote_raw = True
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            stream = AlreadySent()
        else:
            stream.content_length = 2
            await stream.prepare(request)
            await stream.write(b"ok")
        begun.set()
        await go.wait()
        return stream

    async with serving(begin) as rig:
        client = await rig.client()
        await client.send(get())
        await begun.wait()
        rig.server.draining = True
        go.set()
        answer = await client.answer()
        assert answer.body == b"ok"
        assert "connection" not in answer.headers
        assert (await client.ask(get("/next"))).headers["connection"] == "close"


async def test_a_shutdown_waits_for_requests_and_not_for_idle_connections() -> None:
    """A request in hand is finished within the time given; idle connections end at once."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/wait":
            await go.wait()
        return web.Response(text="done")

    async with serving(wait) as rig:
        idle: RawClient = await rig.client()
        assert (await idle.ask(get())).status == 200
        busy = await rig.client()
        await busy.send(get("/wait"))
        await until(lambda: rig.server.table.busy_connections == 1)
        ending = asyncio.create_task(rig.server.shutdown(30))
        assert await idle.rest() == b""
        go.set()
        assert (await busy.answer()).body == b"done"
        assert await busy.rest() == b""
        await ending


async def test_a_shutdown_ends_what_does_not_end() -> None:
    """A request that goes on after the time given is cancelled."""

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(wait) as rig:
        client = await rig.client()
        await client.send(get())
        await until(lambda: rig.server.table.busy_connections == 1)
        await rig.server.shutdown(0.05)
        assert rig.server.table.open_connections == 0


async def being_accepted(rig: Rig) -> socket.socket:
    """A client whose connection plain asyncio has accepted, but not yet made a transport of."""
    before = asyncio.all_tasks()
    sock = socket.create_connection(("127.0.0.1", rig.port))
    sock.setblocking(False)
    async with asyncio.timeout(DEADLINE_S):
        # uvloop makes the transport at once, and no task.
        while asyncio.all_tasks() == before and not rig.server.table.connected:  # noqa: ASYNC110 - each turn of the loop counts
            await asyncio.sleep(0)
    return sock


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_is_being_accepted_when_accepting_ends_is_served(new_loop: NewLoop) -> None:
    """No connection that the server took is dropped without an answer."""

    async def play() -> None:
        async with serving(hello) as rig:
            with await being_accepted(rig) as sock:
                rig.server.stop_accepting()
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, get("/", "Connection: close"))
                answer = await asyncio.wait_for(loop.sock_recv(sock, 4096), DEADLINE_S)
        assert answer.startswith(b"HTTP/1.1 200")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(play())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_is_being_accepted_at_a_shutdown_does_not_outlive_it(new_loop: NewLoop) -> None:
    """Its connection is closed without a wait for its head."""

    async def play() -> None:
        async with serving(hello) as rig:
            with await being_accepted(rig) as sock:
                await rig.server.shutdown(0)
                assert rig.server.table.statistics().accepted == 1
                assert rig.server.table.connected == 0
                received = asyncio.get_running_loop().sock_recv(sock, 4096)
                assert await asyncio.wait_for(received, DEADLINE_S) == b""

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(play())


async def test_a_unix_socket_is_served_and_its_path_left_alone(tmp_path: Path) -> None:
    """A connection knows that it came through a Unix socket; closing leaves the path."""
    path = tmp_path / "s"

    async def where(request: web.BaseRequest) -> web.StreamResponse:
        protocol = request.protocol
        assert isinstance(protocol, ClientProtocol)
        return web.Response(text=str(protocol.over_unix))

    async with serving(where) as rig:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        await rig.server.listen(sock)
        client = RawClient(*await asyncio.open_unix_connection(path))
        rig.clients.append(client)
        assert (await client.ask(get())).body == b"True"
        assert (await rig.ask(get())).body == b"False"
        rig.server.stop_accepting()
        assert path.is_socket()
