"""Client connections stay in bounds, whatever clients do."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import uvloop
from aiohttp import web

from gateway.door_rig import DEADLINE_S, RawClient, Rig, get, request, serving, until
from tidegate.gateway.server import connections as server_module
from tidegate.gateway.server.connections import (
    RECEIVE_BUFFER_BYTES,
    SEND_BUFFER_BYTES,
    WAITING_BYTES,
    ClientProtocol,
    GatewayServer,
    Phase,
)
from tidegate.gateway.server.errors import Refused

CANARY = "sk-canary-7f3a"
KIB = 1024
READ_BYTES = 256 * KIB  # what a loop reads from a socket at once
NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


async def read_all(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=await request.content.read(-1))


class AlreadyWritten(web.StreamResponse):
    """An answer that was written past aiohttp."""

    def __init__(self) -> None:
        super().__init__()
        self._keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def only_connection(server: GatewayServer) -> ClientProtocol:
    (connection,) = server.connections
    assert isinstance(connection, ClientProtocol)
    return connection


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
    """Somebody who connects and sends nothing is hung up on."""
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
    monkeypatch.setattr(server_module, "KEEPALIVE_S", 0.2)
    async with serving(hello) as rig:
        client = await rig.client()
        assert (await client.ask(get())).status == 200
        assert await client.rest() == b""


# --- too many connections ----------------------------------------------------------------------


async def test_the_connection_idle_the_longest_makes_room() -> None:
    """When all places are taken a newcomer gets that of whoever has waited longest."""
    async with serving(hello, max_connections=3) as rig:
        first, second, third = [await rig.client() for _ in range(3)]
        for client in (second, first, third):
            assert (await client.ask(get())).status == 200
        newcomer = await rig.client()
        assert (await newcomer.ask(get())).status == 200
        assert await second.rest() == b""
        assert (await first.ask(get())).status == 200
        assert rig.server.statistics().evicted == 1


async def test_whoever_waits_longest_goes_whatever_it_waits_for() -> None:
    """Silent, half-sent and idle connections are one queue."""
    async with serving(hello, max_connections=3) as rig:
        silent = await rig.client()
        await until(lambda: rig.server.open_connections == 1)
        await asyncio.sleep(0.01)  # uvloop's clock counts in milliseconds
        idle = await rig.client()
        assert (await idle.ask(get())).status == 200
        await asyncio.sleep(0.01)
        half = await rig.client()
        await half.send(b"GET")
        await until(lambda: rig.server.statistics().connections["head"] == 1)
        for gone in (silent, idle, half):
            newcomer = await rig.client()
            assert (await newcomer.ask(get())).status == 200
            assert await gone.rest() == b""
        assert rig.server.statistics().evicted == 3


async def test_a_connection_that_is_closing_goes_before_any_other() -> None:
    """Who reads nothing of its last answer takes no place from somebody who may come back."""

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
        assert rig.server.open_connections <= 2
        deaf.writer.transport.pause_reading()
        await deaf.send(get("/large"))
        # Until the kernel is full the answer is being written, which is a request in hand.
        await until(lambda: rig.server.busy_connections == 1)
        connection = next(c for c in rig.server.connections if c.phase is Phase.BUSY)
        connection.force_close()
        assert rig.server.statistics().connections["closing"] == 1
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
        await until(lambda: rig.server.busy_connections == 2)
        newcomer = await rig.client()
        answer = await newcomer.ask(get())
        assert answer.status == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.error["code"] == "too_many_connections"
        assert await newcomer.rest() == b""
        # Only our side is shut: a close would reset a request that is still being sent.
        assert rig.server.statistics().connections["closing"] == 1
        go.set()
        for client in busy:
            assert (await client.answer()).status == 200
        assert rig.server.statistics().refused == 1


async def test_half_heads_do_not_keep_others_out() -> None:
    """A flood of heads that never end takes no place from a client with a request."""
    async with serving(hello, max_connections=4) as rig:
        for _ in range(20):
            client = await rig.client()
            await client.send(b"GET / HTTP/1.1\r\n")
        honest = await rig.client()
        assert (await honest.ask(get())).status == 200
        assert rig.server.open_connections <= 4


async def test_a_reload_changes_the_limits_of_a_running_server() -> None:
    """Limits are asked for anew each time."""
    async with serving(hello, max_connections=1) as rig:
        first = await rig.client()
        assert (await first.ask(get())).status == 200
        rig.limit(max_connections=2)
        second = await rig.client()
        assert (await second.ask(get())).status == 200
        assert (await first.ask(get())).status == 200


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
        assert rig.server.statistics().connections["closing"] == 1
        await client.send(get())
        assert rig.server.statistics().malformed == 1
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
        assert rig.server.statistics().malformed == 20
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
    """Whoever reads a body hears at once that its chunks are nonsense."""
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
        await until(lambda: rig.server.busy_connections == 1)
        await client.send(b"zz\r\n")
        assert (await client.answer()).status == 400
        assert heard.is_set()


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


async def test_endless_trailers_are_refused() -> None:
    """The number of trailers is bounded like that of headers."""
    chunked = request("POST", "/", "Transfer-Encoding: chunked") + b"2\r\nhi\r\n0\r\n"
    async with serving(read_all) as rig:
        client = await rig.client()
        await client.send(chunked + b"".join(b"X-%d: y\r\n" % n for n in range(5000)))
        assert b" 200 " not in await client.rest()
        await until(lambda: rig.server.open_connections == 0)


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
        await until(lambda: rig.server.busy_connections == 1)
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
    """Nothing is written into an answer that is under way, whoever wrote its beginning."""

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
        await until(lambda: rig.server.statistics().connections["idle"] == 1)
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
        await until(lambda: rig.server.busy_connections == 1)
        await client.close()
        await until(cancelled.is_set)
        await until(lambda: rig.server.open_connections == 0)


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
        assert rig.server.busy_connections == 10
        for client in rig.clients:
            await client.close()
        await until(lambda: rig.server.open_connections == 0)
        await until(lambda: psutil.Process().num_fds() == descriptors)
    assert caplog.records == []


async def test_a_client_that_reads_nothing_is_cut_after_close_flush_s() -> None:
    """A close does not wait for ever for bytes that nobody takes."""
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
            await until(lambda: rig.server.statistics().accepted == 1)
            await until(lambda: rig.server.open_connections == 0)
    assert held[0] > size // 2


async def test_the_kernel_may_hide_little() -> None:
    """A client's buffers there are bounded: what it does not read shows in our books, and what it
    sends comes in small reads."""
    async with serving(hello) as rig:
        client = await rig.client()
        assert (await client.ask(get())).status == 200
        transport = only_connection(rig.server).transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert size <= 2 * SEND_BUFFER_BYTES
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size <= 2 * RECEIVE_BUFFER_BYTES
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


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
            stream = AlreadyWritten()
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
        await until(lambda: rig.server.busy_connections == 1)
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
        await until(lambda: rig.server.busy_connections == 1)
        await rig.server.shutdown(0.05)
        assert rig.server.open_connections == 0


async def being_accepted(rig: Rig) -> socket.socket:
    """A client whose connection plain asyncio has accepted, but not yet made a transport of."""
    before = asyncio.all_tasks()
    sock = socket.create_connection(("127.0.0.1", rig.port))
    sock.setblocking(False)
    async with asyncio.timeout(DEADLINE_S):
        while asyncio.all_tasks() == before:  # noqa: ASYNC110 - each turn of the loop counts
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
    """It is hung up on, and nobody waits for its head."""

    async def play() -> None:
        async with serving(hello) as rig:
            with await being_accepted(rig) as sock:
                await rig.server.shutdown(0)
                assert rig.server.statistics().accepted == 1
                assert rig.server._connected == 0
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
