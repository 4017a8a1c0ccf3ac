"""Connections stay in bounds, whatever clients do: who goes when places or patience run out."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from fakes.machine import until
from gateway.server_rig import get, hello, serving
from tidegate.gateway.server import connection_table
from tidegate.gateway.server.client_protocol import ClientProtocol
from tidegate.gateway.server.connection_table import ConnectionPhase

# --- heads that do not come ------------------------------------------------------------------


async def test_half_a_head_is_answered_408_and_closed() -> None:
    """A head that stops in the middle is given up after limits.header_s."""
    async with serving(hello, header_s=0.5) as rig:
        client = await rig.client()
        answer = await client.ask(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        assert answer.status == 408
        assert "limits.header_s" in answer.error["message"]
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    """A client that connects and sends nothing is hung up on."""
    async with serving(hello, header_s=0.5) as rig:
        client = await rig.client()
        assert await client.rest() == b""


async def test_half_a_second_head_is_given_up_too() -> None:
    """A kept connection has the same deadline for its next head."""
    async with serving(hello, header_s=0.5) as rig:
        client = await rig.client()
        assert (await client.ask(get())).status == 200
        assert (await client.ask(b"GET / HT")).status == 408
        assert await client.rest() == b""


async def test_half_a_head_behind_a_whole_request_is_given_up() -> None:
    """A head that came partly with an earlier request does not stay for ever either."""
    async with serving(hello, header_s=0.5) as rig:
        client = await rig.client()
        assert (await client.ask(get() + b"GET / HT")).status == 200
        assert (await client.ask(b"T")).status == 408


async def test_single_bytes_do_not_move_the_deadline() -> None:
    """A head that trickles in is cut at the same time as one that stops."""
    async with serving(hello, header_s=0.3) as rig:
        client = await rig.client()

        async def trickle() -> None:
            await client.send(b"GET / HTTP/1.1\r\nX: ")
            while True:
                await client.send(b"y")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        try:
            assert (await client.answer()).status == 408
        finally:
            trickling.cancel()


async def test_a_head_in_pieces_within_the_deadline_is_served() -> None:
    """Slow is not refused as long as it is in time."""
    async with serving(hello) as rig:
        client = await rig.client()
        for byte in get("/slow"):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).body == b"hello"


async def test_an_idle_connection_is_closed_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection without a next request ends after KEEPALIVE_S, silently."""
    monkeypatch.setattr(connection_table, "KEEPALIVE_S", 0.2)
    async with serving(hello) as rig:
        client = await rig.client()
        assert (await client.ask(get())).status == 200
        assert await client.rest() == b""


# --- too many connections ----------------------------------------------------------------------


async def test_the_connection_idle_the_longest_makes_room() -> None:
    """When all places are taken a newcomer gets that of the client idle for longest."""
    async with serving(hello, max_connections=3) as rig:
        first, second, third = [await rig.client() for _ in range(3)]
        for client in (second, first, third):
            assert (await client.ask(get())).status == 200
        newcomer = await rig.client()
        assert (await newcomer.ask(get())).status == 200
        assert await second.rest() == b""
        assert (await first.ask(get())).status == 200
        assert rig.server.table.statistics().evicted == 1


async def test_whoever_waits_longest_goes_whatever_it_waits_for() -> None:
    """Silent, half-sent and idle connections are one queue."""
    async with serving(hello, max_connections=3) as rig:
        silent = await rig.client()
        await until(lambda: rig.server.table.open_connections == 1)
        await asyncio.sleep(0.01)  # uvloop's clock counts in milliseconds
        idle = await rig.client()
        assert (await idle.ask(get())).status == 200
        await asyncio.sleep(0.01)
        half = await rig.client()
        await half.send(b"GET")
        await until(lambda: rig.server.table.statistics().connections["head"] == 1)
        for gone in (silent, idle, half):
            newcomer = await rig.client()
            assert (await newcomer.ask(get())).status == 200
            assert await gone.rest() == b""
        assert rig.server.table.statistics().evicted == 3


async def test_a_connection_that_is_closing_goes_before_any_other() -> None:
    """A client that reads nothing of its last answer takes no place from one that may return."""

    async def last_answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/":
            return web.Response()
        answer = web.Response(body=bytes(8 * 1024 * 1024))
        answer.force_close()
        return answer

    async with serving(last_answer, max_connections=2) as rig:
        idle = await rig.client()
        assert (await idle.ask(get())).status == 200
        deaf = await rig.client()
        assert rig.server.table.open_connections <= 2
        deaf.writer.transport.pause_reading()
        await deaf.send(get("/large"))
        # Until the kernel is full the answer is being written, which is a request in hand.
        await until(lambda: rig.server.table.busy_connections == 1)
        connection = next(c for c in rig.server.connections if c.phase is ConnectionPhase.BUSY)
        connection.force_close()
        assert rig.server.table.statistics().connections["closing"] == 1
        newcomer = await rig.client()
        assert (await newcomer.ask(get())).status == 200
        assert (await idle.ask(get())).status == 200


async def test_with_all_busy_a_newcomer_is_told_to_come_back() -> None:
    """A request in hand is never cut to make room; the newcomer gets 503 and Retry-After."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.Response()

    async with serving(wait, max_connections=2) as rig:
        busy = [await rig.client() for _ in range(2)]
        for client in busy:
            await client.send(get())
        await until(lambda: rig.server.table.busy_connections == 2)
        newcomer = await rig.client()
        answer = await newcomer.ask(get())
        assert answer.status == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.error["code"] == "too_many_connections"
        assert await newcomer.rest() == b""
        # Only our side is shut: a close would reset a request that is still being sent.
        assert rig.server.table.statistics().connections["closing"] == 1
        go.set()
        for client in busy:
            assert (await client.answer()).status == 200
        assert rig.server.table.statistics().refused == 1


async def test_half_heads_do_not_keep_others_out() -> None:
    """A flood of heads that never end takes no place from a client with a request."""
    async with serving(hello, max_connections=4) as rig:
        for _ in range(20):
            client = await rig.client()
            await client.send(b"GET / HTTP/1.1\r\n")
        honest = await rig.client()
        assert (await honest.ask(get())).status == 200
        assert rig.server.table.open_connections <= 4


async def test_a_reload_changes_the_limits_of_a_running_server() -> None:
    """Limits are asked for anew each time."""
    async with serving(hello, max_connections=1) as rig:
        first = await rig.client()
        assert (await first.ask(get())).status == 200
        rig.limit(max_connections=2)
        second = await rig.client()
        assert (await second.ask(get())).status == 200
        assert (await first.ask(get())).status == 200


# --- closes that do not end --------------------------------------------------------------------


async def test_a_client_that_reads_nothing_is_cut_after_close_flush_s() -> None:
    """A close does not wait for ever for bytes that the client does not take."""
    size = 8 * 1024 * 1024
    held: list[int] = []

    async def large(request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        protocol = request.protocol
        assert isinstance(protocol, ClientProtocol)
        protocol.wrote_raw = True
        transport.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * size)
        held.append(transport.get_write_buffer_size())
        raise LookupError

    async with serving(large, close_flush_s=0.3) as rig:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with sock:
            await loop.sock_connect(sock, ("127.0.0.1", rig.port))
            await loop.sock_sendall(sock, get())
            await until(lambda: rig.server.table.statistics().accepted == 1)
            await until(lambda: rig.server.table.open_connections == 0)
    assert held[0] > size // 2
