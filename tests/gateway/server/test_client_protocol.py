"""One client connection: what is not HTTP, what is sent ahead, faults, and clients that go."""

from __future__ import annotations

import asyncio
import logging
import socket

import psutil
import pytest
from aiohttp import web

from fakes.machine import until
from gateway.server_rig import get, hello, request, serving
from tidegate.gateway.server.client_protocol import (
    WAITING_BYTES,
    ClientProtocol,
)
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.porch import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES

CANARY = "sk-canary-7f3a"
KIB = 1024
READ_BYTES = 256 * KIB  # what a loop reads from a socket at once


async def read_all(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=await request.content.read(-1))


# --- what is not HTTP ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", id="two Hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", id="NUL"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n X: folded\r\n\r\n", id="folded"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", id="space before the colon"),
        pytest.param(b"GET http://[bad HTTP/1.1\r\nHost: a\r\n\r\n", id="bad URL"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked"
            b"\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
            id="length and chunked",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            id="two lengths",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", id="signed length"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            id="chunked not last",
        ),
    ],
)
async def test_what_is_not_http_gets_a_plain_400(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nonsense is answered once, in JSON, without a stack trace, and ends the connection."""
    seen: list[str] = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.Response()

    async with serving(note) as rig:
        client = await rig.client()
        answer = await client.ask(data)
        assert answer.status == 400
        assert answer.error["code"] == "malformed_request"
        assert await client.rest() == b""
        # Only our side is shut: a close would reset a client that is still sending.
        assert rig.server.table.statistics().connections["closing"] == 1
        await client.send(get())
        assert rig.server.table.statistics().malformed == 1
    assert seen == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


async def test_malformed_requests_are_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A scanner does not fill the log."""
    async with serving(hello) as rig:
        for _ in range(20):
            assert (await rig.ask(b"nonsense\r\n\r\n")).status == 400
        assert rig.server.table.statistics().malformed == 20
    assert len(caplog.records) == 1


@pytest.mark.parametrize("header", ["Authorization: Bearer ", "x-api-key: "])
async def test_a_key_of_100_kb_is_refused_and_repeated_nowhere(
    header: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An endless header is refused with a readable 431 that holds nothing of it."""
    async with serving(hello) as rig:
        client = await rig.client()
        answer = await client.ask(get("/", header + CANARY * 10_000))
        assert answer.status == 431
        assert CANARY.encode() not in answer.body
        assert await client.rest() == b""
    assert CANARY not in caplog.text


async def test_an_endless_head_is_refused() -> None:
    """Headers are bounded in sum and in number as well as each by itself."""
    async with serving(hello) as rig:
        for fields, size in ((500, 1000), (129, 1)):
            answer = await rig.ask(get("/", *(f"X-{n}: {'y' * size}" for n in range(fields))))
            assert answer.status == 431
            assert answer.error["code"] == "head_too_large"


async def test_a_body_whose_framing_breaks_ends_the_wait_for_it() -> None:
    """The reader of a body hears at once that its chunks are nonsense."""
    heard = asyncio.Event()

    async def read(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await request.content.read(-1)
        except web.RequestPayloadError:
            heard.set()
            raise Refused(400, "broken", close=True) from None
        return web.Response()

    async with serving(read) as rig:
        client = await rig.client()
        await client.send(request("POST", "/", "Transfer-Encoding: chunked") + b"4\r\nabcd\r\n")
        await until(lambda: rig.server.table.busy_connections == 1)
        await client.send(b"zz\r\n")
        assert (await client.answer()).status == 400
        assert heard.is_set()


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"fffffffff\r\n", b"0\r\n" + b"a: b\r\n" * 5000])
async def test_a_body_that_breaks_behind_its_answer_ends_its_connection(
    chunk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing reads it any more, so there is nothing to tell and nothing to log."""
    async with serving(hello) as rig:
        client = await rig.client()
        await client.send(request("POST", "/", "Transfer-Encoding: chunked") + b"2\r\nhi\r\n")
        assert (await client.answer()).status == 200
        await client.send(chunk)
        assert await client.rest() == b""
    assert caplog.records == []


async def test_a_trailer_never_becomes_a_header_of_the_next_request() -> None:
    """A chunked request is the last on its connection, also for what was sent behind it."""
    seen: list[tuple[str, bool]] = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        seen.append((request.raw_path, "x-evil" in request.headers))
        return await read_all(request)

    chunked = request("POST", "/", "Transfer-Encoding: chunked") + b"2\r\nhi\r\n0\r\n"
    async with serving(note) as rig:
        client = await rig.client()
        answer = await client.ask(chunked + b"X-Sum: 1\r\nX-Evil: 1\r\n\r\n" + get("/next"))
        assert answer.body == b"hi"
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""
    assert seen == [("/", False)]


@pytest.mark.long
async def test_endless_trailers_are_refused() -> None:
    """The number of trailers is bounded like that of headers."""
    chunked = request("POST", "/", "Transfer-Encoding: chunked") + b"2\r\nhi\r\n0\r\n"
    async with serving(read_all) as rig:
        client = await rig.client()
        await client.send(chunked + b"".join(b"X-%d: y\r\n" % n for n in range(5000)))
        assert b" 200 " not in await client.rest()
        await until(lambda: rig.server.table.open_connections == 0)


# --- pipelining ------------------------------------------------------------------------------


async def test_a_pipelining_flood_is_read_no_further_than_it_is_served() -> None:
    """Behind one slow request a few reads are held and counted; all are answered in order."""
    go = asyncio.Event()
    served = 0

    async def count(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal served
        await go.wait()
        served += 1
        return web.Response(text=request.raw_path)

    total = 8000
    async with serving(count) as rig:
        client = await rig.client()
        flood = b"".join(get(f"/{n}") for n in range(total))
        sending = asyncio.create_task(client.send(flood))
        await until(lambda: rig.server.table.busy_connections == 1)
        await until(lambda: rig.ledger.total_bytes > WAITING_BYTES)
        for _ in range(20):  # the client goes on sending, but nothing more is read
            await asyncio.sleep(0.005)
            assert rig.ledger.total_bytes < WAITING_BYTES + READ_BYTES + 16 * KIB
        go.set()
        for n in range(total):
            assert (await client.answer()).body == b"/%d" % n
        await sending
        assert served == total


# --- answers ---------------------------------------------------------------------------------


async def test_a_fault_of_ours_is_a_500_with_a_number(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a number, the log the stack trace under that number, once."""

    async def fail(request: web.BaseRequest) -> web.StreamResponse:
        raise LookupError("inner detail")

    async with serving(fail) as rig:
        client = await rig.client()
        answer = await client.ask(get())
        assert answer.status == 500
        assert answer.error["type"] == "server_error"
        number = answer.headers["x-request-id"]
        assert number in answer.error["message"]
        assert b"inner detail" not in answer.body
        assert b"Traceback" not in answer.body
        assert await client.rest() == b""
    (record,) = caplog.records
    assert number in record.getMessage()
    assert record.exc_info is not None


async def test_a_client_that_is_gone_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A handler that can no longer write to its client leaves no line in the log."""

    async def find_gone(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        raise ConnectionResetError

    async with serving(find_gone) as rig:
        client = await rig.client()
        await client.send(get())
        assert await client.rest() == b""
    assert caplog.records == []


async def test_a_refusal_is_answered_as_it_says() -> None:
    """Refused carries the whole answer, and leaves the connection open unless it says so."""

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        raise Refused(429, "later", "slow_down", headers={"Retry-After": "3"}, param="model")

    async with serving(refuse) as rig:
        client = await rig.client()
        for _ in range(2):
            answer = await client.ask(get())
            assert answer.status == 429
            assert answer.headers["retry-after"] == "3"
            assert answer.error["code"] == "slow_down"
            assert answer.error["param"] == "model"


@pytest.mark.parametrize("raw", [False, True])
async def test_a_fault_after_an_answer_has_begun_only_ends_the_connection(
    raw: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written into an answer that is under way, whatever wrote its beginning."""

    async def begin(request: web.BaseRequest) -> web.StreamResponse:
        if raw:
            protocol = request.protocol
            assert isinstance(protocol, ClientProtocol)
            assert request.transport is not None
            protocol.wrote_raw = True
            request.transport.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        else:
            stream = web.StreamResponse()
            stream.content_length = 100
            await stream.prepare(request)
            await stream.write(b"half")
        raise LookupError

    async with serving(begin) as rig:
        client = await rig.client()
        await client.send(get())
        data = await client.rest()
        assert data.endswith(b"half")
        assert data.count(b"HTTP/1.1") == 1
    assert len(caplog.records) == 1


async def test_an_unread_body_does_not_cost_the_client_its_answer() -> None:
    """Someone who is refused while still sending reads the refusal, not a reset."""

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        raise Refused(413, "too large", close=True)

    async with serving(refuse) as rig:
        client = await rig.client()
        sending = asyncio.create_task(
            client.send(request("POST", "/", body=b"x" * 8 * 1024 * 1024))
        )
        answer = await client.answer()
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        await sending


async def test_a_kept_connection_goes_on_after_a_body_nobody_read() -> None:
    """What follows an unread body is the next request, and the deadlines hold for it."""
    async with serving(hello, header_s=0.3) as rig:
        client = await rig.client()
        assert (await client.ask(request("POST", "/", "Content-Length: 10"))).status == 200
        await client.send(b"0123456789")
        await until(lambda: rig.server.table.statistics().connections["idle"] == 1)
        assert (await client.ask(get())).status == 200
        assert (await client.ask(b"GE")).status == 408


# --- the end of connections ----------------------------------------------------------------------


async def test_a_client_that_hangs_up_cancels_its_request() -> None:
    """The handler of a client that has gone is cancelled."""
    cancelled = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with serving(wait) as rig:
        client = await rig.client()
        await client.send(get())
        await until(lambda: rig.server.table.busy_connections == 1)
        await client.close()
        await until(cancelled.is_set)
        await until(lambda: rig.server.table.open_connections == 0)


async def test_clients_that_hang_up_in_the_middle_leave_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An answer that is cut short by its reader leaves no task, no descriptor and no log line."""

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        while True:
            await stream.write(bytes(100_000))

    async with serving(endless) as rig:
        descriptors = psutil.Process().num_fds()
        for _ in range(10):
            client = await rig.client()
            await client.send(get())
            await client.reader.readexactly(1000)
        assert rig.server.table.busy_connections == 10
        for client in rig.clients:
            await client.close()
        await until(lambda: rig.server.table.open_connections == 0)
        await until(lambda: psutil.Process().num_fds() == descriptors)
    assert caplog.records == []


async def test_the_kernel_may_hide_little() -> None:
    """A client's buffers there are bounded: what it does not read shows in our books, and what it
    sends comes in small reads."""
    async with serving(hello) as rig:
        client = await rig.client()
        assert (await client.ask(get())).status == 200
        transport = next(iter(rig.server.connections)).transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert size <= 2 * SEND_BUFFER_BYTES
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size <= 2 * RECEIVE_BUFFER_BYTES
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
