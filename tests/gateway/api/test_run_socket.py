"""A run over WebSocket: the same events, a last word, and readers that come and go."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import aiohttp
import pytest

from fakes.client import chat, get, open_chat
from fakes.machine import until
from fakes.upstream import numbered
from gateway.gateway_rig import DEADLINE_S, Rig, Tap
from tidegate.core.runs.state import RunState

ON_BOTH_LOOPS = True


async def websocket_messages(rig: Rig, path: str, **options: Any) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(rig.base_url + path, **options) as socket:
            received = [json.loads(message.data) async for message in socket]
        assert socket.close_code == 1000
    return received


async def test_a_websocket_has_the_same_events_and_a_last_word(rigs, raw_upstream) -> None:
    """While it runs and when it is over, from any cursor."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play))
    creator = await open_chat(rig.base_url, "m")
    tap.send(*(numbered(n, 1000) for n in range(300)))
    await creator.read_events(200)
    path = f"/v1/runs/{creator.run_id}/stream?starting_after="
    during = [asyncio.ensure_future(websocket_messages(rig, f"{path}{n}")) for n in (-1, 150)]
    await until(lambda: rig.relay().run.readers == 3, DEADLINE_S, "both have joined")
    tap.send(*(numbered(n, 1000) for n in range(300, 500)))
    tap.finish()
    await creator.read_rest()
    sent = [event.data.decode() for event in creator.events]
    during_messages = await asyncio.wait_for(asyncio.gather(*during), DEADLINE_S)
    after_messages = [await websocket_messages(rig, f"{path}{n}") for n in (-1, 150, 502)]
    for after, messages in zip(
        (-1, 150, -1, 150, 502), during_messages + after_messages, strict=True
    ):
        *events, last = messages
        assert [m["seq"] for m in events] == list(range(after + 1, 503))
        assert [m["data"] for m in events] == sent[after + 1 :]
        assert {m["event"] for m in events} <= {"message"}
        assert last == {"state": "completed", "reason": None}


async def test_a_websocket_is_told_of_an_error_and_of_a_bad_cursor(rigs, scripted_upstream) -> None:
    """The error event, then the state; before the handshake a refusal has its status."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "drop:2")).run_id
    *_, error, last = await websocket_messages(rig, f"/v1/runs/{run}/stream")
    assert "box" in json.loads(error["data"])["error"]["message"]
    assert last["state"] == "failed"
    assert "box" in last["reason"]
    for query, status in (("?starting_after=99", 400), ("?starting_after=x", 400)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await websocket_messages(rig, f"/v1/runs/{run}/stream{query}")
        assert caught.value.status == status


async def test_a_page_of_another_site_opens_no_websocket(rigs, scripted_upstream) -> None:
    """CORS does not bind a WebSocket, so the check of Origin has to."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "ok")).run_id
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await websocket_messages(
            rig, f"/v1/runs/{run}/stream", headers={"Origin": "https://evil.example"}
        )
    assert caught.value.status == 403


async def test_a_handshake_that_is_none_leaves_nothing(rigs, raw_upstream) -> None:
    """400, and the run has no reader of that name."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play))
    creator = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await creator.read_events(2)
    path = f"/v1/runs/{creator.run_id}/stream"
    asked = get(rig.base_url, path, headers={"Upgrade": "websocket"})
    answer = await asyncio.wait_for(asked, DEADLINE_S)
    assert answer.status == 400
    assert rig.relay().run.readers == 1


async def test_a_websocket_client_that_closes_is_gone(rigs, raw_upstream) -> None:
    """Politely or by a reset; pings are answered, and what it says means nothing."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), disconnect_grace_s=5.0)
    creator = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await creator.read_events(2)
    run = rig.relay().run
    url = f"{rig.base_url}/v1/runs/{run.id}/stream"
    for politely in (True, False):
        async with aiohttp.ClientSession() as session:
            socket_ = await session.ws_connect(url, autoping=False)
            await socket_.receive()
            await socket_.send_str("hello?")
            await socket_.ping(b"there?")
            heard = [await socket_.receive() for _ in range(2)]
            assert aiohttp.WSMsgType.PONG in {message.type for message in heard}
            assert run.readers == 2
            if politely:
                await socket_.close()
                assert socket_.close_code == 1000
            else:
                own = socket_.get_extra_info("socket")
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await session.close()
            await until(lambda: run.readers == 1, DEADLINE_S, "it is gone")
    assert not run.is_over
    tap.finish()
    await creator.read_rest()


async def test_the_last_websocket_that_goes_takes_the_run_along(rigs, raw_upstream) -> None:
    """It is a reader like any other."""
    tap = Tap()
    upstream = await raw_upstream(tap.play)
    rig = await rigs(upstream, disconnect_grace_s=0.3)
    creator = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await creator.read_events(2)
    run = rig.relay().run
    url = f"{rig.base_url}/v1/runs/{run.id}/stream"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket_:
        await socket_.receive()
        await creator.vanish()
        await until(lambda: run.readers == 1, DEADLINE_S, "its creator is gone")
        await asyncio.sleep(0.5)
        assert not run.is_over
    await until(lambda: run.is_over, DEADLINE_S, "no reader is left")
    assert run.state is RunState.CANCELLED


@pytest.mark.long
@pytest.mark.parametrize(("keepalive_s", "stall_s"), [(15.0, 1.5), (0.3, 30.0)])
async def test_a_websocket_that_reads_nothing_is_dropped(
    rigs, raw_upstream, keepalive_s: float, stall_s: float
) -> None:
    """By stall_s or by its missing pongs: run, bytes and connection are free of it."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), keepalive_s=keepalive_s, stall_s=stall_s)
    creator = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await creator.read_events(2)
    run = rig.relay().run
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port))
    await asyncio.get_running_loop().sock_sendall(
        sock,
        f"GET /v1/runs/{run.id}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode(),
    )
    try:
        await until(lambda: run.readers == 2, DEADLINE_S, "it has joined")
        tap.send(*(numbered(n, 1000) for n in range(3000)))
        await creator.read_events(3002)
        await until(lambda: run.readers == 1, DEADLINE_S, "it was dropped")
        server = rig.gateway.server
        await until(
            lambda: server.table.open_connections == 1, DEADLINE_S, "its connection is gone"
        )
        await until(lambda: server.table.connected == 1, DEADLINE_S, "its socket is closed")
    finally:
        sock.close()
    assert not run.is_over
