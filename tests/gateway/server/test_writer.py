"""The client's connection under an answer that is written past aiohttp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from unittest.mock import Mock

import pytest
from aiohttp import HttpVersion11

from fakes.client import Stream, open_chat
from fakes.machine import until
from fakes.upstream import DONE, OK, ROLE, chunk, numbered
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked
from tidegate.gateway.server.client_protocol import ClientProtocol
from tidegate.gateway.server.writer import ResponseWriter

ON_BOTH_LOOPS = True


def request(model: str, *fields: str, version: str = "1.1", stream: bool = True) -> bytes:
    body = json.dumps({"model": model, "stream": stream, "messages": []})
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: 127.0.0.1", *fields]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()


@asynccontextmanager
async def connected(rig: Rig) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream:
    """The next answer on a connection."""
    return await asyncio.wait_for(Stream(reader, writer).read_all(), DEADLINE_S)


async def test_a_connection_goes_on_after_a_stream(rigs, scripted_upstream) -> None:
    """Streams, plain answers and errors one after the other, as was announced."""
    rig = await rigs(scripted_upstream)
    async with connected(rig) as (reader, writer):
        for _ in range(2):
            for model, stream, status in (
                ("ok", True, 200),
                ("json", False, 200),
                ("status:404", True, 404),
            ):
                writer.write(request(model, stream=stream))
                heard = await answer(reader, writer)
                assert (heard.status, heard.clean) == (status, True)
                assert heard.headers["keep-alive"].startswith("timeout=")
                assert "connection" not in heard.headers
    assert rig.gateway.server.table.statistics().accepted == 1


async def test_a_second_request_behind_a_stream_waits_for_it(rigs, scripted_upstream) -> None:
    """Pipelined while the first one runs: two answers, in order, neither in the other."""
    rig = await rigs(scripted_upstream)
    async with connected(rig) as (reader, writer):
        writer.write(request("numbered:30:5") + request("ok"))
        await asyncio.sleep(0.05)
        writer.write(request("json", stream=False))
        first, second, third = [await answer(reader, writer) for _ in range(3)]
    assert len(first.events) == 33
    assert bytes(second.body) == b"".join(OK)
    assert third.json()["object"] == "chat.completion"  # type: ignore[index]


async def test_what_was_pipelined_behind_a_broken_answer_is_served(rigs, scripted_upstream) -> None:
    """The break was told in an event; the connection was announced to go on, and does."""
    rig = await rigs(scripted_upstream)
    async with connected(rig) as (reader, writer):
        writer.write(request("drop:2") + request("ok"))
        first = await answer(reader, writer)
        assert first.events[-1].error is not None
        second = await answer(reader, writer)
        assert second.events[-1].raw == DONE
    assert scripted_upstream.seen("ok")


@pytest.mark.parametrize("fields", [(), ("Connection: keep-alive",)])
async def test_an_http_1_0_client_gets_a_body_that_ends_with_its_connection(
    rigs, scripted_upstream, fields: tuple[str, ...]
) -> None:
    """No chunks, which it does not know; whether the answer broke is seen in the events."""
    patient, rig = await rigs(scripted_upstream), await rigs(scripted_upstream, keepalive_s=0.1)
    for model, last in (("ok", DONE), ("gap:1000", DONE), ("drop:2", b"}}\n\n")):
        asked = rig if model == "gap:1000" else patient
        async with connected(asked) as (reader, writer):
            writer.write(request(model, *fields, version="1.0"))
            raw = await asyncio.wait_for(reader.read(), DEADLINE_S)
        head, _, body = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"chunked" not in head
        assert b"Connection: close" in head
        assert body.startswith(ROLE)
        assert body.endswith(last)
        assert (b": tidegate\n" in body) is (model == "gap:1000")


async def test_a_client_that_wants_to_close_is_told_so(rigs, scripted_upstream) -> None:
    """`Connection: close` is answered with the same, and kept."""
    rig = await rigs(scripted_upstream)
    for model, stream in (("ok", True), ("json", False)):
        async with connected(rig) as (reader, writer):
            writer.write(request(model, "Connection: close", stream=stream))
            heard = await answer(reader, writer)
            assert heard.headers["connection"] == "close"
            assert "keep-alive" not in heard.headers
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""


async def test_a_chunked_request_ends_its_connection_and_says_so(rigs, scripted_upstream) -> None:
    """Its trailers must not reach another request."""
    rig = await rigs(scripted_upstream)
    body = b'{"model":"ok","stream":true,"messages":[]}'
    async with connected(rig) as (reader, writer):
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body) + LAST
        )
        heard = await answer(reader, writer)
        assert bytes(heard.body) == b"".join(OK)
        assert heard.headers["connection"] == "close"
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""


async def test_a_fault_behind_the_head_ends_the_connection_only(
    rigs, scripted_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second head is written into a body."""
    from tidegate.gateway.relay.subscriber import StreamSubscriber

    async def serve(self: StreamSubscriber) -> None:
        self.commit()
        raise ZeroDivisionError

    rig = await rigs(scripted_upstream)
    monkeypatch.setattr(StreamSubscriber, "serve", serve)
    async with connected(rig) as (reader, writer):
        writer.write(request("ok"))
        raw = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert raw.count(b"HTTP/1.1") == 1
    assert b"Traceback" not in raw
    rig.errors.clear()


# --- draining -------------------------------------------------------------------------------------


async def test_a_draining_gateway_finishes_streams_and_announces_the_end(
    rigs, scripted_upstream
) -> None:
    """What was promised before is kept: that connection's next answer says close."""
    rig = await rigs(scripted_upstream)
    async with connected(rig) as (reader, writer), connected(rig) as (idle_reader, idle_writer):
        idle_writer.write(request("ok"))
        assert "connection" not in (await answer(idle_reader, idle_writer)).headers
        writer.write(request("gap:300"))
        await until(
            lambda: any(
                subscriber.is_committed
                for relay in rig.gateway.registry.active()
                for subscriber in relay.subscribers
            ),
            DEADLINE_S,
            "its head has been written",
        )
        rig.gateway.stop_accepting()
        first = await answer(reader, writer)
        assert (first.clean, bytes(first.body[-len(DONE) :])) == (True, DONE)
        assert "connection" not in first.headers
        for r, w in ((reader, writer), (idle_reader, idle_writer)):
            w.write(request("ok"))
            last = await answer(r, w)
            assert bytes(last.body) == b"".join(OK)
            assert last.headers["connection"] == "close"
            assert await asyncio.wait_for(r.read(), DEADLINE_S) == b""
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", rig.port)


# --- clients that are gone ------------------------------------------------------------------------


async def test_writing_to_a_client_that_has_gone_is_no_error(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment: uvloop raises where asyncio warns, and neither may be seen."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(HEAD + chunked(ROLE, chunk(content="x")))
            for number in range(200):
                await peer.send(chunked(numbered(number)))
                await asyncio.sleep(0.001)
            await peer.send(chunked(DONE) + LAST)

    rig = await rigs(await raw_upstream(play), disconnect_grace_s=5.0)
    made: list[ResponseWriter] = []
    real = ResponseWriter.__init__

    def remember(self: ResponseWriter, *arguments: object, **named: object) -> None:
        real(self, *arguments, **named)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(ResponseWriter, "__init__", remember)
    for delay_s in (0.0, 0.01, 0.05, 0.1):
        stream = await open_chat(rig.base_url, "m")
        await stream.read_events(2)
        await asyncio.sleep(delay_s)
        client = made[-1]
        client.abort()
        assert client.write(b"x") == 0
        assert client.outbound_bytes == 0
        await client.flushed()
        await until(lambda: rig.relay().run.is_over, DEADLINE_S, "the run goes on to its end")
    assert rig.gateway.registry.ended == {"completed": 4}


async def test_a_transport_that_closes_while_it_is_flushed_is_no_error(rigs, raw_upstream) -> None:
    """The last bytes of an answer towards a client that reads nothing and then resets."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(HEAD + chunked(ROLE, *(numbered(n, 1000) for n in range(1600))))
            await peer.send(chunked(DONE) + LAST)

    rig = await rigs(await raw_upstream(play))
    for _ in range(5):
        stream = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
        await stream.read_events(1)
        await asyncio.sleep(0.02)
        await stream.vanish()
        await rig.idle()


async def test_a_write_that_the_kernel_took_in_part_is_outbound_whole() -> None:
    """It is kept whole; where more than the last write waits, the one before it counts as well."""
    transport, protocol = Mock(), Mock(spec=ClientProtocol)
    transport.is_closing.return_value, protocol.loop = False, None
    protocol.transport, protocol.ends_after_answer = transport, False
    request = Mock(transport=transport, protocol=protocol, version=HttpVersion11)
    request.get.return_value = None
    client = ResponseWriter.of(request)
    for size in (300, 200):
        client.write(bytes(size))
    for unsent, outbound in ((0, 0), (1, 200), (200, 200), (201, 500), (600, 600)):
        transport.get_write_buffer_size.return_value = unsent
        assert client.outbound_bytes == outbound
