"""A body is read whole, in time, and never larger than it may be."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.machine import until
from gateway.server_rig import Rig, request, serving
from tidegate.gateway.server.body import read_body
from tidegate.gateway.server.errors import Refused

KIB = 1024
MIB = 1024 * KIB


def serve_body(
    max_bytes: int = MIB, deadline_s: float = 10.0, charged: list[int] | None = None
) -> AbstractAsyncContextManager[Rig]:
    """A server that sends back what it reads."""

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        body = await read_body(
            request,
            max_bytes=max_bytes,
            deadline_s=deadline_s,
            charge=[].append if charged is None else charged.append,
        )
        return web.Response(body=body)

    return serving(echo)


def chunked(data: bytes, size: int = 7) -> bytes:
    """`data` in chunks of `size`."""
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def raw_deflate(data: bytes) -> bytes:
    """deflate without zlib's header, as some clients send it."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


def bomb(size: int) -> bytes:
    """A gzip body that inflates to `size` zeros."""
    deflater = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    zeros = bytes(MIB)
    pieces = [deflater.compress(zeros) for _ in range(size // MIB)]
    return b"".join(pieces) + deflater.flush()


TEXT = b'{"model": "demo", "messages": []}' * 5

ENCODINGS = [
    pytest.param((), TEXT, id="plain"),
    pytest.param(("Content-Encoding: identity",), TEXT, id="identity"),
    pytest.param(("Content-Encoding: gzip",), gzip.compress(TEXT), id="gzip"),
    pytest.param(("Content-Encoding: X-GZIP",), gzip.compress(TEXT), id="x-gzip"),
    pytest.param(("Content-Encoding: deflate",), zlib.compress(TEXT), id="deflate"),
    pytest.param(("Content-Encoding: deflate",), raw_deflate(TEXT), id="raw deflate"),
]


@pytest.mark.parametrize(("fields", "sent"), ENCODINGS)
async def test_a_body_arrives_however_it_is_sent(fields: tuple[str, ...], sent: bytes) -> None:
    """At once, byte by byte, in chunks: the body is the same, and what it takes was charged."""
    charged: list[int] = []
    async with serve_body(charged=charged) as rig:
        client = await rig.client()
        assert (await client.ask(request("POST", "/", *fields, body=sent))).body == TEXT
        assert len(TEXT) <= charged[-1] <= len(TEXT) * 9 // 8
        for byte in request("POST", "/", *fields, body=sent):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).body == TEXT
        framed = request("POST", "/", *fields, "Transfer-Encoding: chunked") + chunked(sent)
        assert (await client.ask(framed)).body == TEXT
        assert len(TEXT) <= charged[-1] <= len(TEXT) * 9 // 8


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_body_is_an_empty_body(method: str) -> None:
    """Nothing sent is nothing read, also when an encoding is named."""
    async with serve_body() as rig:
        for fields in ((), ("Content-Encoding: gzip",), ("Content-Length: 0",)):
            assert (await rig.ask(request(method, "/", *fields))).body == b""


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50), st.sampled_from(["gzip", "deflate", ""]))
async def test_any_body_survives_any_chunking(data: bytes, size: int, encoding: str) -> None:
    """Where a body is cut changes nothing."""
    sent = {"gzip": gzip.compress, "deflate": zlib.compress, "": bytes}[encoding](data)
    head = request(
        "POST", "/", f"Content-Encoding: {encoding or 'identity'}", "Transfer-Encoding: chunked"
    )
    async with serve_body() as rig:
        assert (await rig.ask(head + chunked(sent, size))).body == data


# --- too large -------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("framed", [False, True])
async def test_the_limit_is_exact(extra: int, encoding: str, framed: bool) -> None:
    """A body of the limit passes, one byte more does not, however it is sent."""
    data = bytes(64 * KIB + extra)
    sent = gzip.compress(data) if encoding else data
    fields = [f"Content-Encoding: {encoding}"] if encoding else []
    async with serve_body(max_bytes=64 * KIB) as rig:
        client = await rig.client()
        if framed:
            head = request("POST", "/", *fields, "Transfer-Encoding: chunked")
            answer = await client.ask(head + chunked(sent, 8 * KIB))
        else:
            answer = await client.ask(request("POST", "/", *fields, body=sent))
        assert answer.status == (413 if extra else 200)
        if extra:
            assert "limits.max_body" in answer.error["message"]
            assert answer.headers["connection"] == "close"


async def test_a_length_over_the_limit_is_refused_before_a_byte_of_it() -> None:
    """What announces itself as too large is not waited for."""
    async with serve_body() as rig:
        client = await rig.client()
        answer = await client.ask(
            request("POST", "/", f"Content-Length: {300 * MIB}", "Expect: 100-continue")
        )
        assert answer.status == 413


async def test_a_bomb_is_refused_at_the_limit() -> None:
    """300 KB that would be 300 MB are never more than the limit and a step."""
    sent = bomb(300 * MIB)
    assert len(sent) < 400 * KIB
    async with serve_body(max_bytes=4 * MIB) as rig:
        message = request("POST", "/", "Content-Encoding: gzip", body=sent)
        assert (await rig.ask(message)).status == 413
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            assert (await rig.ask(message)).status == 413
            for client in rig.clients:
                await client.close()
            await until(lambda: rig.server.table.open_connections == 0)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - before < 12 * MIB
    assert after - before < MIB


BOMBED = """
import asyncio, sys
import psutil
sys.path.insert(0, sys.argv[1])
from gateway.server_rig import request
from gateway.server.test_body import MIB, bomb, serve_body

async def main():
    process = psutil.Process()
    async with serve_body(max_bytes=32 * MIB) as rig:
        message = request("POST", "/", "Content-Encoding: gzip", body=bomb(300 * MIB))
        assert (await rig.ask(request("POST", "/", body=b"x"))).status == 200
        before = process.memory_info().rss
        for _ in range(3):
            assert (await rig.ask(message)).status == 413
        print(process.memory_info().rss - before)

asyncio.run(main())
"""


@pytest.mark.long
def test_memory_is_back_after_a_bomb() -> None:
    """A process that was sent bombs is hardly larger than it was."""
    done = subprocess.run(
        [sys.executable, "-c", BOMBED, str(Path(__file__).parents[2])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * MIB


async def test_blocks_that_inflate_to_nothing_are_counted_as_sent() -> None:
    """A compressed body has the limit on both of its sides."""
    empty_block = b"\x00\x00\x00\xff\xff"
    async with serve_body(max_bytes=64 * KIB) as rig:
        head = request("POST", "/", "Content-Encoding: deflate", "Transfer-Encoding: chunked")
        sent = b"\x78\x9c" + empty_block * (128 * KIB // 5)
        client = await rig.client()
        assert (await client.ask(head + chunked(sent, 8 * KIB))).status == 413


async def test_other_connections_have_their_turn_while_a_large_body_inflates() -> None:
    """Inflating is done in steps."""
    turns = 0
    done = asyncio.Event()

    async def count_turns() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    async def read(request: web.BaseRequest) -> web.StreamResponse:
        await request.content.wait_eof()
        counting = asyncio.create_task(count_turns())
        body = await read_body(request, max_bytes=64 * MIB, deadline_s=30, charge=[].append)
        done.set()
        await counting
        return web.Response(text=str(len(body)))

    async with serving(read) as rig:
        answer = await rig.ask(request("POST", "/", "Content-Encoding: gzip", body=bomb(32 * MIB)))
        assert int(answer.body) == 32 * MIB
    assert turns >= 30


# --- too late, or broken -----------------------------------------------------------------------


@pytest.mark.long
async def test_a_body_that_trickles_is_cut_at_its_deadline() -> None:
    """Single bytes do not buy time."""
    async with serve_body(deadline_s=0.3) as rig:
        client = await rig.client()
        await client.send(request("POST", "/", "Content-Length: 1000"))

        async def trickle() -> None:
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        try:
            answer = await client.answer()
        finally:
            trickling.cancel()
        assert answer.status == 408
        assert "limits.body_s" in answer.error["message"]
        assert answer.headers["connection"] == "close"
        await client.rest()
        await until(lambda: rig.server.table.open_connections == 0)


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        pytest.param("gzip", gzip.compress(TEXT)[:-9], id="cut"),
        pytest.param("gzip", gzip.compress(TEXT)[:-1], id="cut in the checksum"),
        pytest.param("gzip", TEXT, id="plain text"),
        pytest.param("gzip", zlib.compress(TEXT), id="zlib"),
        pytest.param("gzip", gzip.compress(TEXT) + b"more", id="more behind"),
        pytest.param("gzip", gzip.compress(TEXT)[:-8] + bytes(8), id="wrong checksum"),
        pytest.param("deflate", b"\x78\x9cnonsense", id="nonsense"),
        pytest.param("deflate", zlib.compress(TEXT)[:20], id="cut deflate"),
    ],
)
@pytest.mark.parametrize("size", [3, 8 * KIB])
async def test_what_cannot_be_inflated_is_a_bad_request(
    encoding: str, sent: bytes, size: int
) -> None:
    """A broken compressed body is named as that, wherever it is cut."""
    head = request("POST", "/", f"Content-Encoding: {encoding}", "Transfer-Encoding: chunked")
    async with serve_body() as rig:
        answer = await rig.ask(head + chunked(sent, size))
        assert (answer.status, answer.error["code"]) == (400, "bad_body")


@pytest.mark.parametrize("tail", [b"zz\r\n", b"4\r\nabcdefgh\r\n", b"-1\r\n"])
@pytest.mark.parametrize("pause", [False, True])
async def test_broken_chunks_are_a_bad_request(tail: bytes, pause: bool) -> None:
    """The server does not wait for a body whose framing is nonsense."""
    async with serve_body() as rig:
        client = await rig.client()
        await client.send(request("POST", "/", "Transfer-Encoding: chunked") + b"2\r\nab\r\n")
        if pause:
            await until(lambda: rig.server.table.busy_connections == 1)
        answer = await client.ask(tail)
        assert answer.status == 400


@pytest.mark.parametrize(
    "fields", [("Content-Encoding: br",), ("Content-Encoding: zstd",), ("Content-Encoding: a, b",)]
)
async def test_another_encoding_is_refused_by_name(fields: tuple[str, ...]) -> None:
    """The answer says what could be sent instead."""
    async with serve_body() as rig:
        answer = await rig.ask(request("POST", "/", *fields, body=b"x"))
        assert answer.status == 415
        assert answer.headers["accept-encoding"] == "gzip, deflate"


async def test_encodings_in_two_headers_are_refused() -> None:
    """The second of two headers is not overlooked."""
    async with serve_body() as rig:
        fields = ("Content-Encoding: identity", "Content-Encoding: gzip")
        assert (await rig.ask(request("POST", "/", *fields, body=b"x"))).status == 415


async def test_a_client_that_waits_to_be_asked_is_asked() -> None:
    """Expect: 100-continue is answered when the body is wanted."""
    async with serve_body() as rig:
        client = await rig.client()
        head = request("POST", "/", "Content-Length: 2", "Expect: 100-Continue")
        assert (await client.ask(head)).status == 100
        answer = await client.ask(b"ok")
        assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize(("fields", "sent"), ENCODINGS)
async def test_a_client_that_does_not_wait_is_not_asked(
    fields: tuple[str, ...], sent: bytes
) -> None:
    """The client is not asked for a body that is there already."""
    async with serve_body() as rig:
        answer = await rig.ask(request("POST", "/", "Expect: 100-continue", *fields, body=sent))
        assert (answer.status, answer.body) == (200, TEXT)


async def test_another_expectation_is_refused() -> None:
    """What is not understood is not promised."""
    async with serve_body() as rig:
        client = await rig.client()
        answer = await client.ask(request("POST", "/", "Content-Length: 2", "Expect: a-pony"))
        assert answer.status == 417


async def test_a_body_that_may_not_be_charged_is_not_kept() -> None:
    """The ledger can refuse more of it."""
    charged: list[int] = []

    def charge(held_bytes: int) -> None:
        if held_bytes > 100 * KIB:
            raise Refused(503, "memory is short", "memory")
        charged.append(held_bytes)

    async def read(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(
            body=await read_body(request, max_bytes=MIB, deadline_s=10, charge=charge)
        )

    async with serving(read) as rig:
        assert (await rig.ask(request("POST", "/", body=bytes(200 * KIB)))).status == 503
        assert max(charged, default=0) <= 100 * KIB


async def test_a_client_that_leaves_while_sending_leaves_nothing() -> None:
    """The reader of a body that never ends is cancelled with its connection."""
    async with serve_body() as rig:
        client = await rig.client()
        await client.send(request("POST", "/", "Content-Length: 1000") + b"x")
        await until(lambda: rig.server.table.busy_connections == 1)
        await client.close()
        await until(lambda: rig.server.table.open_connections == 0)
