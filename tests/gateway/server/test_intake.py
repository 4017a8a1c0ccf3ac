"""What a client sends is counted before it is understood, bounded in sum, and goes when it must."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from fakes.machine import until
from gateway.server_rig import RawClient, Rig, get, request, serving
from tidegate.core.http.head import MAX_HEAD_BYTES
from tidegate.gateway.server.body import read_body
from tidegate.gateway.server.client_protocol import (
    READ_BUFFER_BYTES,
    WAITING_BYTES,
    ClientProtocol,
)
from tidegate.gateway.server.connection_table import BEYOND, CONNECTION_BYTES, FRESH_S
from tidegate.gateway.server.porch import PORCH_BYTES

ON_BOTH_LOOPS = True

KIB = 1024
MIB = 1024 * KIB
READ_BYTES = 256 * KIB  # what a loop reads from a socket at once
CHUNKED = "Transfer-Encoding: chunked"


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text=request.raw_path)


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(
        body=await read_body(request, max_bytes=MIB, deadline_s=20, charge=lambda held: None)
    )


def half_head(size: int) -> bytes:
    """The first `size` bytes of a head, in lines of 1,000."""
    data = get().removesuffix(b"\r\n") + b"X-Fill: %b\r\n" % (b"y" * 990) * (size // 1000)
    return data[:size]


def large_head(path: str, over: int) -> bytes:
    """A head that is `over` bytes larger than it may be."""
    fields = [f"X-{n}: {'y' * 1000}" for n in range(30)]
    rest = MAX_HEAD_BYTES + over - len(get(path, *fields, "Z: "))
    return get(path, *fields, "Z: " + "z" * rest)


# --- heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_000_000, 5000, 700])
@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", {"error": {"message", "type", "param", "code"}}),
        ("/v1/messages", {"type": "error", "error": {"type", "message"}}),
        ("/api/chat", {"error": str}),
    ],
)
async def test_a_head_too_large_in_sum_is_refused(path: str, shape: object, size: int) -> None:
    """One byte too many is 431 in the route's own shape, in whatever pieces it comes."""
    async with serving(hello) as rig:
        for over, status in ((0, 200), (1, 431)):
            data = large_head(path, over)
            client = await rig.client()
            for n in range(0, len(data), size):
                await client.send(data[n : n + size])
                await asyncio.sleep(0)
            answer = await client.answer()
            assert answer.status == status
        assert answer.headers["connection"] == "close"
        told = json.loads(answer.body)
        assert isinstance(shape, dict)
        assert set(told) - {"request_id"} == set(shape)
        assert "32768 bytes" in answer.body.decode()
        assert await client.rest() == b""


async def test_a_body_is_not_counted_as_head() -> None:
    """A head of nearly all that is allowed may have a body of any size behind it."""
    body = bytes(range(256)) * 2048
    data = large_head("/", -100).replace(b"GET", b"POST")
    data = data.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body))
    async with serving(echo) as rig:
        client = await rig.client()
        assert (await client.ask(data + body)).body == body
        assert (await client.ask(request("POST", "/", body=body[:9]))).body == body[:9]


async def test_open_heads_are_charged_while_they_are_open() -> None:
    """A half head costs its bytes and its connection, and nothing once the client has gone."""
    size, number = 30_000, 20
    async with serving(hello) as rig:
        clients = [await rig.client() for _ in range(number)]
        for client in clients:
            await client.send(half_head(size))
        await until(lambda: rig.ledger.total_bytes == number * (CONNECTION_BYTES + size))
        for client in clients[1:]:
            await client.close()
        await until(lambda: rig.ledger.total_bytes == CONNECTION_BYTES + size)
        await clients[0].send(b"\r\n\r\n")
        assert (await clients[0].answer()).status == 200
        await until(lambda: rig.ledger.total_bytes == CONNECTION_BYTES)


async def test_a_head_is_charged_as_long_as_its_request() -> None:
    """Taken apart it costs more than its bytes, until its request is answered."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.Response()

    async with serving(wait) as rig:
        client = await rig.client()
        await client.send(large_head("/", 0))
        await until(lambda: rig.server.table.busy_connections == 1)
        assert rig.ledger.total_bytes > CONNECTION_BYTES + 2 * MAX_HEAD_BYTES
        go.set()
        assert (await client.answer()).status == 200
        await until(lambda: rig.ledger.total_bytes == CONNECTION_BYTES)


async def test_what_is_no_http_is_told_so_though_its_head_goes_on() -> None:
    """The request line is looked at as it comes, in any piece, before the head is whole."""
    async with serving(hello) as rig:
        for data in (b"\x16\x03\x01\x02", b"GET / HTTX/1.1\r\nHost", b"SSH-2.0-OpenSSH_9.2\r\n"):
            client = await rig.client()
            for byte in data:
                await client.send(bytes([byte]))
            assert (await client.answer()).status == 400
            assert await client.rest() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"X: a\rb",
        b"X: a\x00b",
        b"X: a\r\n folded",
        b"X y: z",
        b"X\xff: y",
        b": y",
        b"X",
        b"X: \x01",
    ],
)
async def test_a_field_that_is_none_is_refused(line: bytes) -> None:
    """Bare CR, NUL, folded lines and names that are none are 400, however the head is cut."""
    head = get().removesuffix(b"\r\n") + line + b"\r\n\r\n"
    async with serving(hello) as rig:
        for size in (1, 5, 1000):
            client = await rig.client()
            for n in range(0, len(head), size):
                await client.send(head[n : n + size])
                await asyncio.sleep(0)
            assert (await client.answer()).status == 400
            assert await client.rest() == b""


async def test_many_cookies_are_many_fields() -> None:
    """Lines of one name are counted like others."""
    async with serving(hello) as rig:
        cookies = [f"Cookie: c{n}={n}" for n in range(127)]
        assert (await rig.ask(get("/", *cookies))).status == 200
        assert (await rig.ask(get("/", *cookies, "Cookie: one=more"))).status == 431


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(get("/", "Connection: close"), id="good"),
        pytest.param(b"nonsense\r\n\r\n", id="nonsense"),
        pytest.param(large_head("/", 1), id="a head too large"),
        pytest.param(half_head(3000), id="half a head"),
        pytest.param(request("POST", "/", CHUNKED) + b"fffffff\r\n", id="a chunk too large"),
        pytest.param(request("POST", "/", CHUNKED) + b"1\r\nx\r\nzz\r\n", id="no chunk"),
        pytest.param(request("POST", "/", "Content-Length: 9") + b"x", id="half a body"),
        pytest.param(get() * 50, id="many"),
    ],
)
async def test_a_connection_leaves_nothing_for_the_collector(data: bytes) -> None:
    """What was read goes with it at once, for the collector may come much later."""

    def connections() -> int:
        return sum(isinstance(each, ClientProtocol) for each in gc.get_objects())

    async with serving(echo) as rig:
        gc.collect()
        gc.disable()
        try:
            before = connections()
            client = await rig.client()
            await client.send(data)
            await until(lambda: rig.server.table.statistics().connections["fresh"] == 0)
            if not data.startswith((half_head(30), b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nCon")):
                await client.reader.readuntil(b"\r\n\r\n")
            client.writer.transport.abort()
            await until(lambda: rig.server.table.open_connections == 0)
            await until(lambda: connections() == before)
        finally:
            gc.enable()


# --- what the parser lets through ------------------------------------------------------------


async def test_another_major_version_is_told_ours() -> None:
    """HTTP/2.0 in a request line is 505 in the words of HTTP/1.1, and ends the connection."""
    async with serving(hello) as rig:
        for version in (b"2.0", b"0.9"):
            client = await rig.client()
            await client.send(b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % version)
            assert (await client.rest()).startswith(b"HTTP/1.1 505 ")
        for version in (b"1.2", b"3.0", b"9.9", b"1.10", b"x"):
            client = await rig.client()
            await client.send(b"GET / HTTP/%b\r\nHost: a\r\n\r\n" % version)
            assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
        assert (await rig.ask(b"GET / HTTP/1.0\r\n\r\n")).status == 200


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        ("gzip, chunked", 501),
        ("gzip", 400),
        ("identity, chunked", 501),
        ("chunked, chunked", 400),
        ("Chunked", 200),
        ("gzip\r\nTransfer-Encoding: chunked", 400),
    ],
)
async def test_no_coding_but_chunked_is_read(coding: str, status: int) -> None:
    """A coding that is not understood is refused instead of read as if it were not there."""
    async with serving(echo) as rig:
        client = await rig.client()
        data = request("POST", "/", f"Transfer-Encoding: {coding}") + b"2\r\nhi\r\n0\r\n\r\n"
        answer = await client.ask(data)
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_http_1_0_has_no_chunks() -> None:
    """Its framing is faulty (RFC 9112, 6.1)."""
    async with serving(echo) as rig:
        data = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        assert (await rig.ask(data)).status == 400


@pytest.mark.parametrize("name", ["Key", "Protocol", "Extensions", "Version"])
async def test_a_handshake_of_other_bytes_is_refused(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes above 0x7F in what begins a WebSocket are the client's mistake."""

    async def shake(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        return socket

    sent = {"Key": "A" * 22 + "==", "Version": "13", "Protocol": "p", "Extensions": "x"}
    for value in ("\xff", "\xc3\xa9" + sent[name]):
        fields = [f"Sec-WebSocket-{n}: {v}" for n, v in (sent | {name: value}).items()]
        async with serving(shake) as rig:
            answer = await rig.ask(get("/", "Connection: upgrade", "Upgrade: websocket", *fields))
            assert answer.status == 400
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.parametrize(
    ("length", "status"),
    [("0" * 5000, 200), ("0" * 4999 + "2", 200), ("9" * 5000, 400), ("0" * 4000 + "9" * 15, 413)],
)
async def test_a_length_of_any_number_of_digits_is_a_number(
    length: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Python makes no number of 5,000 digits, which is no fault of ours to tell."""
    async with serving(echo) as rig:
        client = await rig.client()
        answer = await client.ask(request("POST", "/", f"Content-Length: {length}") + b"hi")
        assert answer.status == status
        if status == 200:
            assert answer.body == (b"hi" if length[-1] == "2" else b"")
    assert all(record.exc_info is None for record in caplog.records)


async def test_no_answer_names_the_software(caplog: pytest.LogCaptureFixture) -> None:
    """A scan for a version of Python or aiohttp learns nothing."""

    async def answers(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/stream":
            stream = web.StreamResponse()
            await stream.prepare(request)
            return stream
        if request.raw_path == "/socket":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.close()
            return socket
        return web.Response() if request.raw_path == "/" else web.Response(body=str(1 / 0))

    shake = ["Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    requests = [
        get("/", "Connection: close"),
        get("/stream", "Connection: close"),
        get("/socket", *shake, f"Sec-WebSocket-Key: {'A' * 22}=="),
        get("/fails"),
        b"nonsense\r\n\r\n",
    ]
    async with serving(answers) as rig:
        for data in requests:
            client = await rig.client()
            await client.send(data)
            head = (await client.reader.readuntil(b"\r\n\r\n")).lower()
            assert b"server:" not in head
            assert b"aiohttp" not in head


# --- bodies in chunks ------------------------------------------------------------------------


async def test_a_chunk_that_is_too_large_is_refused_when_it_is_announced() -> None:
    """413 at once, with the setting's name, though none of it has come."""
    async with serving(echo, max_body_bytes=1000) as rig:
        for sizes in ("3e9", "1F4\r\n" + "x" * 500 + "\r\n1F5", "f" * 200):
            client = await rig.client()
            answer = await client.ask(request("POST", "/", CHUNKED) + f"{sizes}\r\n".encode())
            assert answer.status == 413
            assert "limits.max_body" in answer.error["message"]
            assert await client.rest() == b""
        for n in range(2):  # the head first, then the size, byte by byte
            client = await rig.client()
            await client.send(request("POST", "/", CHUNKED))
            await until(lambda: rig.server.table.busy_connections == 1)
            for byte in b"3e%x\r\n" % (8 + n):
                await client.send(bytes([byte]))
            if n:
                assert (await client.answer()).status == 413
            else:
                await client.send(b"y" * 1000 + b"\r\n0\r\n\r\n")
                assert (await client.answer()).body == b"y" * 1000


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"0\r\n" + b"X: y\r\n" * 100_000, id="trailers"),
        pytest.param(b"1;" + b"x" * 1_000_000, id="one extension"),
        pytest.param((b"1;" + b"x" * 200 + b"\r\ny\r\n") * 1000, id="extensions"),
    ],
)
async def test_framing_is_bounded_in_sum(sent: bytes) -> None:
    """Trailers and extensions are no way to send without end."""
    async with serving(echo) as rig:
        client = await rig.client()
        sending = asyncio.create_task(client.send(request("POST", "/", CHUNKED) + sent))
        answer = await client.answer()
        assert answer.status == 431
        assert answer.headers["connection"] == "close"
        await client.rest()
        await sending


@pytest.mark.parametrize("sent", [b"zz\r\n", b"3\r\nabcdef\r\n", b"ffffffff\r\n"])
async def test_a_broken_body_that_no_handler_reads_is_no_fault_of_ours(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Its request is answered, the connection ends, and the log has no stack."""
    go = asyncio.Event()

    async def ignore(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.Response()

    async with serving(ignore) as rig:
        for method in ("POST", "GET"):
            client = await rig.client()
            await client.send(request(method, "/", CHUNKED) + sent)
            await until(lambda: rig.server.table.busy_connections == 1)
            go.set()
            assert (await client.answer()).status == 200
            assert await client.rest() == b""
            go.clear()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- one request at a time -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (get("/", "X: \x00"), 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (large_head("/", 1), 431),
    ],
)
async def test_a_good_request_is_answered_before_a_broken_one(broken: bytes, status: int) -> None:
    """What came before a mistake in the same write is not lost."""
    post = request("POST", "/body", body=b"12345")
    async with serving(hello) as rig:
        client = await rig.client()
        await client.send(get("/1") + post + get("/2") + broken + get("/never"))
        for path in (b"/1", b"/body", b"/2"):
            assert (await client.answer()).body == path
        assert (await client.answer()).status == status
        assert await client.rest() == b""


async def test_requests_with_bodies_in_one_write_are_answered_in_order() -> None:
    """Where one ends the next begins, whatever the reads."""
    bodies = [bytes([n]) * (n * 997) for n in range(60)]
    data = b"".join(request("POST", "/", body=body) for body in bodies)
    async with serving(echo) as rig:
        for size in (len(data), 4096, 1009):
            client = await rig.client()

            async def send(client: RawClient = client, size: int = size) -> None:
                for n in range(0, len(data), size):
                    await client.send(data[n : n + size])

            sending = asyncio.create_task(send())
            for body in bodies:
                assert (await client.answer()).body == body
            await sending


@pytest.mark.parametrize(
    "kind", [b"GET /", request("POST", "/", "Content-Length: 99999999"), b"\r\n", b"\x00junk"]
)
async def test_what_waits_behind_a_request_is_bounded_and_charged(kind: bytes) -> None:
    """A head, a body or nonsense behind a request in hand is held in small measure only."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return await echo(request)

    behind = (kind + b"y" * 4 * MIB) if b" /" in kind else kind * MIB
    async with serving(wait) as rig:
        client = await rig.client()
        sending = asyncio.create_task(client.send(get() + behind))
        await until(lambda: rig.ledger.total_bytes > CONNECTION_BYTES + WAITING_BYTES)
        for _ in range(10):  # the client goes on sending, but nothing more is read
            await asyncio.sleep(0.005)
            assert rig.ledger.total_bytes <= CONNECTION_BYTES + WAITING_BYTES + READ_BYTES + 4 * KIB
        sending.cancel()
        client.writer.transport.abort()
        go.set()
        await until(lambda: rig.ledger.total_bytes == 0)


async def test_a_body_that_no_handler_reads_is_not_kept() -> None:
    """What a GET brings along is dropped as it comes, for its answer may take an hour."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.Response(text=str(len(request.content.read_nowait())))

    async with serving(wait) as rig:
        client = await rig.client()
        await client.send(request("GET", "/", body=bytes(8 * MIB)))  # all of it is taken
        go.set()
        answer = await client.answer()
        assert int(answer.body) <= READ_BUFFER_BYTES
        assert (await client.ask(get())).status == 200


# --- another protocol ------------------------------------------------------------------------


async def sockets(request: web.BaseRequest) -> web.StreamResponse:
    """Echoes over WebSocket, at /socket; elsewhere the request for one is ignored."""
    if request.raw_path != "/socket":
        await asyncio.sleep(0)
        return web.Response(text=request.raw_path)
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_bytes(message.data)
    return socket


SHAKE = (
    "Connection: upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {'A' * 22}==",
)


def frame(data: bytes) -> bytes:
    """A masked binary message, with a mask of zeros."""
    return b"\x82" + bytes([0x80 | len(data)]) + bytes(4) + data


async def test_messages_sent_along_with_the_handshake_are_heard() -> None:
    """A client need not wait for the answer."""
    async with serving(sockets) as rig:
        client = await rig.client()
        await client.send(get("/socket", *SHAKE) + frame(b"one") + frame(b"two")[:4])
        await client.send(frame(b"two")[4:] + frame(b"three"))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        for word in (b"one", b"two", b"three"):
            assert await client.reader.readexactly(2 + len(word)) == b"\x82%c%b" % (len(word), word)
        await client.close()


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "nonsense"])
async def test_a_protocol_that_is_not_granted_is_ignored(protocol: str) -> None:
    """The request is answered as it is, and so is what follows it."""
    fields = ("Connection: upgrade", f"Upgrade: {protocol}")
    async with serving(sockets) as rig:
        client = await rig.client()
        with_body = request("POST", "/2", *fields, body=b"12345")
        await client.send(get("/1", *fields) + with_body + get("/3"))
        for path in (b"/1", b"/2", b"/3"):
            assert (await client.answer()).body == path


async def test_what_follows_a_handshake_is_bounded_while_it_is_not_granted() -> None:
    """A request for a WebSocket that is never granted is no way to store bytes here."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.Response(text=request.raw_path)

    async with serving(wait) as rig:
        client = await rig.client()
        sending = asyncio.create_task(client.send(get("/1", *SHAKE) + get("/2") * 100_000))
        await until(lambda: rig.ledger.total_bytes > CONNECTION_BYTES + WAITING_BYTES)
        for _ in range(10):
            await asyncio.sleep(0.005)
            assert rig.ledger.total_bytes <= CONNECTION_BYTES + WAITING_BYTES + READ_BYTES + 4 * KIB
        go.set()
        assert (await client.answer()).body == b"/1"
        assert (await client.answer()).body == b"/2"
        sending.cancel()


async def test_a_whole_client_is_served(rig_and_session: tuple[Rig, aiohttp.ClientSession]) -> None:
    """An honest client's kept connection carries plain, chunked and gzipped bodies."""
    rig, session = rig_and_session
    url = f"http://127.0.0.1:{rig.port}/"
    for n in range(20):
        body = bytes([n]) * (n * 5000)

        async def pieces(body: bytes = body) -> AsyncIterator[bytes]:
            for at in range(0, len(body), 3000):
                yield body[at : at + 3000]

        for data in (body, pieces()):
            async with session.post(url, data=data) as answer:
                assert await answer.read() == body


@pytest.fixture
async def rig_and_session() -> AsyncIterator[tuple[Rig, aiohttp.ClientSession]]:
    """A server that sends back what it reads, and aiohttp's client."""
    async with serving(echo) as rig, aiohttp.ClientSession() as session:
        yield rig, session


# --- when memory is short --------------------------------------------------------------------


async def waited(rig: Rig) -> None:
    """Until what is waiting has waited long enough to go."""
    await asyncio.sleep(FRESH_S + 0.05)
    assert rig.server.table.make_room(lambda: False) == 0


async def test_heads_go_before_idle_connections_and_requests_stay() -> None:
    """The longest waiting of what was never a request goes first; one in hand is never cut."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/busy":
            await go.wait()
        return web.Response(text=request.raw_path)

    async with serving(wait) as rig:
        busy, idle, silent, half = [await rig.client() for _ in range(4)]
        await busy.send(get("/busy"))
        assert (await idle.ask(get())).status == 200
        await until(lambda: rig.server.table.open_connections == 4)  # one is accepted at each turn
        await asyncio.sleep(0.01)  # uvloop's clock counts milliseconds
        await half.send(half_head(20_000))
        await until(lambda: rig.ledger.total_bytes > 3 * CONNECTION_BYTES + PORCH_BYTES + 20_000)
        await waited(rig)
        young = await rig.client()
        await young.send(half_head(5000))
        await until(lambda: rig.ledger.total_bytes > 4 * CONNECTION_BYTES + PORCH_BYTES + 25_000)
        held = rig.ledger.total_bytes
        # As much must go as the silent and the half one hold: they do, and nothing else.
        assert rig.server.table.make_room(lambda: rig.ledger.total_bytes > held - 20_000) == 2
        answer = await half.answer()
        assert (answer.status, answer.error["code"]) == (503, "memory_limit")
        assert answer.headers["retry-after"] == "5"
        assert await half.rest() == await silent.rest() == b""
        assert (await idle.ask(get())).status == 200
        await waited(rig)
        assert (
            rig.server.table.make_room(lambda: rig.ledger.total_bytes > 3 * CONNECTION_BYTES) == 1
        )
        assert (await young.answer()).status == 503
        assert rig.server.table.make_room(lambda: True) == 1
        assert await idle.rest() == b""
        assert rig.server.table.make_room(lambda: True) == 0
        go.set()
        assert (await busy.answer()).body == b"/busy"


async def test_who_has_asked_is_answered_however_late_it_is_read() -> None:
    """What a busy loop has not read yet: a connection's first request, and a later one."""
    async with serving(hello) as rig:
        fresh, idle = [await rig.client() for _ in range(2)]
        assert (await idle.ask(get())).status == 200
        await until(lambda: rig.server.table.open_connections == 2)
        await waited(rig)
        for client in (fresh, idle):  # and the loop does not turn until room is made
            os.write(client.writer.get_extra_info("socket").fileno(), get("/late"))
        assert rig.server.table.make_room(lambda: True) == 0
        for client in (fresh, idle):
            assert (await client.answer()).body == b"/late"


async def test_half_heads_never_hold_more_than_their_part_of_the_ledger() -> None:
    """A flood of them pushes out its own; an honest request in between is answered."""
    async with serving(hello) as rig:
        rig.ledger.limit_bytes = 2 * MIB
        for n in range(120):
            client = await rig.client()
            await client.send(half_head(30_000))
            assert rig.ledger.total_bytes <= MIB + READ_BYTES
            if n % 40 == 39:
                await waited(rig)
                assert (await rig.ask(get("/honest"))).body == b"/honest"


async def test_a_head_for_which_there_is_no_memory_is_told_so() -> None:
    """When all that is held is of requests in hand a head is 503, and health is still answered."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/busy":
            await go.wait()
        return web.Response(text=request.raw_path)

    async with serving(wait, open_paths=["/healthz"]) as rig:
        busy = [await rig.client() for _ in range(4)]
        for client in busy:
            await client.send(get("/busy"))
        await until(lambda: rig.server.table.busy_connections == 4)
        young = await rig.client()
        assert (await young.ask(get())).status == 200
        rig.ledger.limit_bytes = 2 * (rig.ledger.total_bytes + 1000)
        refused = await young.ask(large_head("/", 0))
        assert (refused.status, refused.error["code"]) == (503, "memory_limit")
        rig.ledger.limit_bytes = 2 * (rig.ledger.total_bytes - 1000)
        newcomer = await rig.client()
        answer = await newcomer.ask(get())
        assert (answer.status, answer.error["code"]) == (503, "memory_limit")
        assert "memory.budget" in answer.error["message"]
        answer = await rig.ask(get("/healthz"))
        assert (answer.body, answer.headers["connection"]) == (b"/healthz", "close")
        rig.ledger.limit_bytes = 0
        go.set()
        for client in busy:
            assert (await client.answer()).status == 200


# --- when all places are taken ---------------------------------------------------------------


async def test_health_is_answered_when_every_connection_is_busy() -> None:
    """A few beyond the bound may look, and silent ones among them keep no other out."""
    go = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/busy":
            await go.wait()
        return web.Response(text=request.raw_path)

    async with serving(wait, open_paths=["/healthz"], max_connections=3) as rig:
        for _ in range(3):
            client = await rig.client()
            await client.send(get("/busy"))
        await until(lambda: rig.server.table.busy_connections == 3)
        for _ in range(2 * BEYOND):
            await rig.client()
        await until(lambda: rig.server.table.statistics().accepted == 3 + 2 * BEYOND)
        assert rig.server.table.open_connections == 3 + BEYOND
        answer = await rig.ask(get("/healthz?x=1"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert (await rig.ask(get("/busy"))).error["code"] == "too_many_connections"
        go.set()
