"""What is asked of one generation and known to the other is answered all the same."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from fakes.client import Stream, chat, get, open_chat
from fakes.machine import stop_listening, until
from fakes.upstream import numbered
from gateway.gateway_rig import (
    DEADLINE_S,
    HEAD,
    Peer,
    RawUpstream,
    Rig,
    chunked,
    plain,
    two_generations,
)
from tidegate.core.settings import Limits
from tidegate.gateway.relay.handover import Peer as OtherGeneration


async def ask(rig: Rig, path: str, method: str = "GET") -> Stream:
    return await asyncio.wait_for(get(rig.base_url, path, method=method), DEADLINE_S)


async def test_a_run_is_found_by_whichever_one_is_asked(rigs, scripted_upstream) -> None:
    """Shown, listed, streamed, resumed and cancelled through the other generation."""
    draining, serving = await two_generations(rigs, scripted_upstream)
    stream = await open_chat(draining.base_url, "numbered:200:5")
    await stream.read_events(5)
    run = stream.run_id
    own = await chat(serving.base_url, "ok")
    assert json.loads((await ask(serving, f"/v1/runs/{run}")).body)["state"] == "streaming"
    listed = json.loads((await ask(serving, "/v1/runs")).body)["data"]
    assert [each["id"] for each in listed] == [own.run_id, run]
    through = await ask(serving, f"/v1/runs/{run}/stream?starting_after=1")
    await stream.read_rest()
    assert [event.id for event in through.events] == [str(n) for n in range(2, 203)]
    assert through.clean
    assert through.headers["x-run-id"] == run
    end = await ask(serving, f"/v1/runs/{run}/stream?starting_after=202")
    assert end.status == 204
    assert (await ask(serving, f"/v1/runs/{run}/stream?starting_after=999")).status == 400
    assert (await ask(serving, "/v1/runs/run_nowhere")).status == 404
    assert (await ask(serving, "/v1/runs/run_nowhere/stream")).status == 404
    stuck = await open_chat(draining.base_url, "stuck:1")
    await stuck.read_events(1)
    shown = await ask(serving, f"/v1/runs/{stuck.run_id}/cancel", "POST")
    assert json.loads(shown.body)["state"] == "cancelled"


async def test_a_websocket_reads_through_the_other_generation(rigs, scripted_upstream) -> None:
    """The same messages and the same last word."""
    draining, serving = await two_generations(rigs, scripted_upstream)
    stream = await open_chat(draining.base_url, "numbered:50:5")
    await stream.read_events(2)
    url = f"{serving.base_url}/v1/runs/{stream.run_id}/stream"
    for after in (-1, 10, 52):
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}?starting_after={after}") as socket,
        ):
            *events, last = [json.loads(message.data) async for message in socket]
        assert [message["seq"] for message in events] == list(range(after + 1, 53))
        assert last == {"state": "completed", "reason": None}
    await stream.read_rest()


async def test_a_generation_that_dies_in_the_middle_is_not_taken_for_an_end(
    rigs, scripted_upstream
) -> None:
    """Its reader's body breaks off; the WebSocket's last word says so."""
    draining, serving = await two_generations(rigs, scripted_upstream)
    stream = await open_chat(draining.base_url, "stuck:1")
    await stream.read_events(2)
    path = f"/v1/runs/{stream.run_id}/stream"
    through = await Stream.open(serving.base_url, path)
    await through.read_events(1)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(serving.base_url + path) as socket,
    ):
        await socket.receive()
        for connection in list(draining.inner.connections):
            connection.abort()
        *_, last = [json.loads(message.data) async for message in socket]
    assert last["state"] == "failed"
    await asyncio.wait_for(through.read_rest(), DEADLINE_S)
    assert not through.clean


async def silent_peer(rig: Rig, tmp_path, play) -> tuple[str, Any]:
    """Something that listens where the other generation should."""
    path = f"{rig.peer_socket}.other"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await play(Peer(reader, writer))
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    rig.facts(peer_socket=path)
    return path, server


async def test_a_client_that_leaves_while_the_other_one_is_asked_leaves_nothing(
    rigs, scripted_upstream, tmp_path
) -> None:
    """No connection to it, and no task, stays behind."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.hang()
        gone.set()

    rig = await rigs(scripted_upstream, peer=True)
    _, server = await silent_peer(rig, tmp_path, play)
    stream = await Stream.open(rig.base_url, "/v1/runs/run_x/stream")
    await asyncio.wait_for(asked.wait(), DEADLINE_S)
    await stream.vanish()
    await asyncio.wait_for(gone.wait(), DEADLINE_S)
    await stop_listening(server)


async def test_a_client_that_reads_nothing_through_the_other_one_is_dropped(
    rigs, scripted_upstream, tmp_path
) -> None:
    """After stall_s, as anywhere."""
    dropped = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        try:
            while True:
                await peer.send(chunked(numbered(0, 60_000)))
        finally:
            dropped.set()

    rig = await rigs(scripted_upstream, peer=True, stall_s=0.5)
    _, server = await silent_peer(rig, tmp_path, play)
    stream = await Stream.open(rig.base_url, "/v1/runs/run_x/stream", receive_buffer=16 * 1024)
    await stream.head()
    ledger = rig.gateway.registry.ledger
    await until(lambda: ledger.total_bytes > 256 * 1024, DEADLINE_S, "what it holds is charged")
    await asyncio.wait_for(dropped.wait(), DEADLINE_S)
    await until(lambda: not rig.gateway.server.table.open_connections, DEADLINE_S, "it is gone")
    await stop_listening(server)


async def test_a_run_that_comes_over_while_the_other_one_is_asked_is_found(
    rigs, scripted_upstream, tmp_path
) -> None:
    """The other one knows it no more, we do by now."""
    rig = await rigs(scripted_upstream, peer=True)
    former = await rigs(scripted_upstream)
    run = (await chat(former.base_url, "ok")).run_id
    await former.idle()
    relay = former.relay()

    async def play(peer: Peer) -> None:
        await peer.request()
        ours = OtherGeneration(rig.peer_socket, Limits())
        assert await ours.hand_over(relay.run)
        ours.close()
        await peer.send(plain(b"{}", b"404 Not Found"))

    _, server = await silent_peer(rig, tmp_path, play)
    assert json.loads((await ask(rig, f"/v1/runs/{run}")).body)["id"] == run
    await stop_listening(server)


@pytest.mark.parametrize("verb", ["", "/stream"])
async def test_a_generation_that_dies_while_it_is_asked_is_a_503(
    rigs, scripted_upstream, tmp_path, verb: str
) -> None:
    """Nothing has been sent yet, so there is a status: to come again."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n")

    rig = await rigs(scripted_upstream, peer=True)
    _, server = await silent_peer(rig, tmp_path, play)
    answer = await ask(rig, f"/v1/runs/run_x{verb}")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert json.loads(answer.body)["error"]["code"] == "generation_unavailable"
    await stop_listening(server)


async def test_head_is_answered_through_the_other_one_too(rigs, scripted_upstream) -> None:
    """It is asked by GET."""
    draining, serving = await two_generations(rigs, scripted_upstream)
    run = (await chat(draining.base_url, "ok")).run_id
    async with aiohttp.ClientSession(serving.base_url) as session:
        for name, status in ((run, 200), ("run_nowhere", 404)):
            async with session.head(f"/v1/runs/{name}") as answer:
                assert answer.status == status


async def test_a_generation_that_is_gone_is_no_error(rigs, raw_upstream) -> None:
    """Its socket is stale: its runs are not found, ours are listed."""

    async def play(peer: Peer) -> None:
        await peer.hang()

    upstream: RawUpstream = await raw_upstream(play)
    rig = await rigs(upstream)
    rig.facts(peer_socket="/nonexistent/1.sock")
    assert (await ask(rig, "/v1/runs/run_x")).status == 404
    assert (await ask(rig, "/v1/runs/run_x/stream")).status == 404
    assert json.loads((await ask(rig, "/v1/runs")).body)["data"] == []
