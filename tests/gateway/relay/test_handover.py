"""Two generations: finished runs are handed over whole, and each asks the other for the rest."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec
import pytest

from fakes.client import Stream, chat, get, open_chat
from fakes.machine import stop_listening, until
from fakes.upstream import FINISH, OK, ROLE, numbered
from gateway.gateway_rig import DEADLINE_S, HEAD, Peer, RawUpstream, Rig, chunked
from tidegate.core.errors import LedgerFull
from tidegate.core.runs.ledger import Ledger
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import Happening
from tidegate.core.settings import Limits
from tidegate.gateway.relay.handover import Peer as OtherGeneration
from tidegate.gateway.relay.handover import pack, unpack


def finished_run(*events: bytes, window_bytes: int = 4 * 1024 * 1024) -> Run:
    run = Run(
        run_id="run_1",
        owner="me",
        model="m",
        body=b"{}",
        limits=Limits(window_bytes=window_bytes),
        account=Ledger().open(),
        now_s=100.0,
        created=time.time() - 20,
    )
    run.begin_attempt("box", "m", 100.0)
    for event in events:
        run.feed(event, 101.0)
    run.end(Happening.FAIL, "it broke", "code", 102.0, time.time() - 10)
    return run


def replay(run: Run) -> bytes:
    block, cursor = run.window.read(run.window.cursor(run.window.first_seq))
    replayed = b""
    while block:
        replayed += block
        block, cursor = run.window.read(cursor)
    return replayed


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "events",
    [
        (),
        (ROLE, numbered(0), FINISH),
        (b'data: {"x": "\xc3\xa9"}\n\n', b'event: odd\ndata: {"a":\ndata: 1}\n\n'),
        tuple(event.replace(b"\n", b"\r\n") for event in OK),
        tuple(numbered(n, 1000) for n in range(500)),
    ],
)
def test_a_run_that_is_handed_over_is_the_same(events: tuple[bytes, ...]) -> None:
    """Bytes, cursors, state, reason, owner and age; and every byte is in the other's ledger."""
    run = finished_run(*events)
    ledger = Ledger()
    other = unpack(pack(run), ledger, Limits(), 5000.0)
    assert replay(other) == replay(run)
    for name in ("id", "owner", "model", "state", "reason", "created", "ended", "is_over"):
        assert getattr(other, name) == getattr(run, name)
    assert (other.window.first_seq, other.window.next_seq) == (0, run.window.next_seq)
    assert other.ended_s == pytest.approx(4990.0, abs=1)
    assert [attempt.upstream for attempt in other.attempts] == ["box"]
    assert ledger.total_bytes == other.account.total_bytes >= len(replay(other))
    other.account.close()
    assert ledger.total_bytes == 0


def test_an_evicted_beginning_stays_evicted() -> None:
    """The first seq is kept, and events are numbered on from there."""
    run = finished_run(*(numbered(n, 1000) for n in range(500)), window_bytes=150_000)
    other = unpack(pack(run), Ledger(), Limits(), 0.0)
    assert other.window.first_seq == run.window.first_seq > 0
    assert other.window.next_seq == 500
    middle = run.window.first_seq + 3
    assert other.window.read(other.window.cursor(middle))[0].startswith(numbered(middle, 1000))


def good() -> dict[str, Any]:
    return json.loads(pack(finished_run(ROLE, numbered(0))))


@pytest.mark.parametrize(
    "change",
    [
        {"state": "streaming"},
        {"state": "queued"},
        {"state": "nonsense"},
        {"state": None},
        {"events": "not base64!"},
        {"events": "QUJD"},
        {"events": None},
        {"first_seq": -1},
        {"first_seq": 1},
        {"first_seq": 3, "next_seq": 2},
        {"next_seq": 3},
        {"next_seq": 10**30},
        {"created": "yesterday"},
        {"upstreams": [1]},
        {"id": 5},
    ],
)
def test_what_is_no_run_is_refused_and_charged_to_nobody(change: dict[str, Any]) -> None:
    """Whatever the other side sends."""
    ledger = Ledger()
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        unpack(json.dumps(good() | change).encode(), ledger, Limits(), 0.0)
    assert (ledger.total_bytes, ledger.accounts) == (0, frozenset())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"id":"x"}'])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    """Before an account is opened."""
    ledger = Ledger()
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        unpack(data, ledger, Limits(), 0.0)
    assert ledger.accounts == frozenset()


def test_a_run_without_room_is_refused_and_charged_to_nobody() -> None:
    """A full ledger takes no runs from elsewhere."""
    ledger = Ledger(limit_bytes=1000)
    with pytest.raises(LedgerFull):
        unpack(pack(finished_run(ROLE)), ledger, Limits(), 0.0)
    assert (ledger.total_bytes, ledger.accounts) == (0, frozenset())


# --- two generations ------------------------------------------------------------------------------


async def two(rigs, upstream) -> tuple[Rig, Rig]:
    """The draining one and the serving one, which know each other."""
    draining, serving = await rigs(upstream, peer=True), await rigs(upstream, peer=True)
    serving.facts(peer_socket=draining.gateway._peer_socket)
    draining.facts(peer_socket=serving.gateway._peer_socket)
    draining.gateway.server.draining = True
    return draining, serving


async def ask(rig: Rig, path: str, method: str = "GET") -> Stream:
    return await asyncio.wait_for(get(rig.base_url, path, method=method), DEADLINE_S)


async def test_a_finished_run_goes_over_and_is_read_there(rigs, scripted_upstream) -> None:
    """Once; taking it twice changes nothing, and the former one has let go of it."""
    draining, serving = await two(rigs, scripted_upstream)
    answer = await chat(draining.base_url, "ok")
    await draining.idle()
    relay = draining.relay()
    other = OtherGeneration(serving.gateway._peer_socket, Limits())
    for _ in range(2):
        assert await other.hand_over(relay.run)
    draining.gateway.registry.handed_over(relay)
    other.close()
    assert draining.held_bytes == 0
    assert serving.gateway.registry.finished_count == 1
    for rig in (serving, draining):
        replayed = await ask(rig, f"/v1/runs/{answer.run_id}/stream")
        assert [event.data for event in replayed.events] == [e.data for e in answer.events]
        assert replayed.clean


async def test_what_the_other_one_sends_is_checked(rigs, scripted_upstream, tmp_path) -> None:
    """Garbage is a 400, no room is a 503; neither is an error of ours."""
    rig = await rigs(scripted_upstream, peer=True)
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(rig.gateway._peer_socket)
    ) as session:
        for body, status in (
            (b"{}", 400),
            (json.dumps(good() | {"next_seq": 9}).encode(), 400),
            (json.dumps(good()).encode(), 200),
        ):
            async with session.post("http://x/v1/adopt", data=body) as response:
                assert response.status == status
        rig.facts(ledger_limit_bytes=100)
        async with session.post("http://x/v1/adopt", data=pack(finished_run(ROLE))) as response:
            assert response.status == 503
    assert rig.gateway.registry.ledger.total_bytes == 0


async def test_a_run_is_found_by_whichever_one_is_asked(rigs, scripted_upstream) -> None:
    """Shown, listed, streamed, resumed and cancelled through the other generation."""
    draining, serving = await two(rigs, scripted_upstream)
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
    draining, serving = await two(rigs, scripted_upstream)
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
    draining, serving = await two(rigs, scripted_upstream)
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
        for connection in list(draining.gateway._inner.connections):
            connection.abort()
        *_, last = [json.loads(message.data) async for message in socket]
    assert last["state"] == "failed"
    await asyncio.wait_for(through.read_rest(), DEADLINE_S)
    assert not through.clean


async def silent_peer(rig: Rig, tmp_path, play) -> tuple[str, Any]:
    """Something that listens where the other generation should."""
    path = f"{rig.gateway._peer_socket}.other"

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
    gone = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.hang()
        gone.set()

    rig = await rigs(scripted_upstream, peer=True)
    _, server = await silent_peer(rig, tmp_path, play)
    stream = await Stream.open(rig.base_url, "/v1/runs/run_x/stream")
    pool = rig.gateway._peer._pool
    await until(lambda: pool._open, DEADLINE_S, "the other one is asked")
    await asyncio.sleep(0.05)
    await stream.vanish()
    await asyncio.wait_for(gone.wait(), DEADLINE_S)
    await until(lambda: not pool._open, DEADLINE_S, "the connection is closed")
    await stop_listening(server)


async def test_a_client_that_reads_nothing_through_the_other_one_is_dropped(
    rigs, scripted_upstream, tmp_path
) -> None:
    """After stall_s, as anywhere."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        while True:
            await peer.send(chunked(numbered(0, 60_000)))

    rig = await rigs(scripted_upstream, peer=True, stall_s=0.5)
    _, server = await silent_peer(rig, tmp_path, play)
    stream = await Stream.open(rig.base_url, "/v1/runs/run_x/stream", receive_buffer=16 * 1024)
    await stream.head()
    pool = rig.gateway._peer._pool
    ledger = rig.gateway.registry.ledger
    await until(lambda: ledger.total_bytes > 256 * 1024, DEADLINE_S, "what it holds is charged")
    await until(lambda: not pool._open, DEADLINE_S, "it was dropped")
    await until(lambda: not rig.gateway.server.table.open_connections, DEADLINE_S, "it is gone")
    await stop_listening(server)


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
