"""A connection on the porch: what is cut, sent ahead or left, and how it comes to its end."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes.client import chat, get, open_chat
from fakes.machine import until
from fakes.upstream import OK
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, Tap, chunked, plain
from gateway.lane_rig import connect, is_on_lane, post, told
from gateway.server_rig import RawClient, request
from tidegate.core.runs.ledger import Entry
from tidegate.gateway.server.client_protocol import WAITING_BYTES
from tidegate.gateway.server.connection_table import FRESH_S, ConnectionPhase
from tidegate.gateway.server.porch import PORCH_BYTES

ON_BOTH_LOOPS = True
pytestmark = pytest.mark.parametrize("rigs", ["fast"], indirect=True)

KIB = 1024
READ_BYTES = 256 * KIB  # what a loop reads from a socket at once
WHOLE = b'{"choices":[]}'


def connection_bytes(rig: Rig) -> int:
    """What open connections are charged."""
    return rig.gateway.registry.ledger.entries[Entry.CONNECTION]


def phase_of(rig: Rig) -> ConnectionPhase:
    """Where the only connection stands."""
    (connection,) = rig.gateway.server.table
    return connection.phase


async def busy(rig: Rig, connections: int = 1) -> None:
    """Waits until so many have a request in hand."""
    table = rig.gateway.server.table
    await until(lambda: table.busy_connections == connections, DEADLINE_S, "it is in hand", 0.002)


async def gone(rig: Rig) -> None:
    """Waits until no connection is left."""
    table = rig.gateway.server.table
    await until(lambda: not table.connected, DEADLINE_S, "its connection is gone")


class Gate:
    """An upstream that answers, whole and always alike, once for each time it is opened."""

    def __init__(self, body: bytes = WHOLE) -> None:
        self.body = body
        self.turns = asyncio.Semaphore(0)
        self.bodies: list[bytes] = []

    async def play(self, peer: Peer) -> None:
        while True:
            self.bodies.append((await peer.request()).partition(b"\r\n\r\n")[2])
            await self.turns.acquire()
            await peer.send(plain(self.body))

    def open(self, answers: int = 1) -> None:
        for _ in range(answers):
            self.turns.release()


# --- what comes in pieces -------------------------------------------------------------------------


async def test_a_request_that_comes_in_two_reads_has_the_same_answer(
    rigs, scripted_upstream
) -> None:
    """Wherever it is cut, it goes the ordinary road, and its upstream is asked for the same."""
    rig = await rigs(scripted_upstream)
    data = post("ok", "X-Name: y", "x-on-disconnect: cancel")
    head = data.index(b"\r\n\r\n")
    client = await connect(rig)
    whole = told(await client.ask(data))
    await client.close()
    for cut in sorted({*range(1, len(data), 13), *range(head - 2, head + 6)}):
        await gone(rig)
        client = await connect(rig)
        await client.send(data[:cut])
        table = rig.gateway.server.table
        await until(lambda t=table: t.open_connections and not is_on_lane(rig), DEADLINE_S, "cut")  # type: ignore[misc]
        assert told(await client.ask(data[cut:])) == whole, cut
        assert not is_on_lane(rig)
        await client.close()
    asked = {(seen.body, *seen.headers.items()) for seen in scripted_upstream.requests}
    assert len(asked) == 1


# --- what comes too early -------------------------------------------------------------------------


async def test_a_request_behind_another_is_answered_after_it(rigs, raw_upstream) -> None:
    """On the lane again if it is plain: a client that is quick is not late for it."""
    gate = Gate()
    rig = await rigs(await raw_upstream(gate.play))
    client = await connect(rig)
    await client.send(post("one", stream=False))
    await busy(rig)
    await client.send(post("two", stream=False))
    await until(lambda: connection_bytes(rig) > PORCH_BYTES, DEADLINE_S, "it waits, and is counted")
    gate.open(2)
    for _ in range(2):
        assert (await client.answer()).body == WHOLE
    assert is_on_lane(rig)
    assert connection_bytes(rig) == PORCH_BYTES
    assert [b'"one"' in gate.bodies[0], b'"two"' in gate.bodies[1]] == [True, True]
    await client.close()


async def test_what_is_not_plain_behind_another_goes_the_ordinary_road(rigs, raw_upstream) -> None:
    """All of it, in its order, also what is only a part of a request yet."""
    gate = Gate()
    rig = await rigs(await raw_upstream(gate.play))
    client = await connect(rig)
    await client.send(post("one", stream=False))
    await busy(rig)
    third = post("three", stream=False)
    await client.send(request("GET", "/healthz") + post("two", stream=False))
    await client.send(third[:-4])
    gate.open(3)
    answers = [await client.answer() for _ in range(3)]
    assert [answer.body == WHOLE for answer in answers] == [True, False, True]
    assert not is_on_lane(rig)
    assert (await client.ask(third[-4:])).body == WHOLE
    assert [b'"two"' in gate.bodies[1], b'"three"' in gate.bodies[2]] == [True, True]
    await client.close()


@pytest.mark.long
async def test_a_flood_behind_a_request_is_read_no_further(rigs, raw_upstream) -> None:
    """A few reads are held and counted while an answer is awaited; all are answered in the end."""
    gate = Gate()
    rig = await rigs(await raw_upstream(gate.play))
    client = await connect(rig)
    await client.send(post("m", stream=False))
    await busy(rig)
    total = 20_000
    sending = asyncio.create_task(client.send(request("GET", "/healthz") * total))
    await until(lambda: connection_bytes(rig) > WAITING_BYTES, DEADLINE_S, "much waits")
    for _ in range(20):  # the client goes on sending, but nothing more is read
        await asyncio.sleep(0.005)
        assert connection_bytes(rig) < PORCH_BYTES + WAITING_BYTES + READ_BYTES
    gate.open()
    assert (await client.answer()).body == WHOLE
    for _ in range(total):
        assert (await client.answer()).status == 200
    await sending
    await client.close()


async def test_what_there_is_no_memory_for_is_not_kept(rigs, raw_upstream) -> None:
    """The request in hand gets its answer, which is the last; nothing stays charged."""
    gate = Gate()
    rig = await rigs(await raw_upstream(gate.play))
    client = await connect(rig)
    await client.send(post("m", stream=False))
    await busy(rig)
    rig.facts(ledger_limit_bytes=rig.gateway.registry.ledger.total_bytes + 8 * KIB)
    for _ in range(2):
        await client.send(b"x" * 32 * KIB)
        await asyncio.sleep(0.05)
        assert connection_bytes(rig) == PORCH_BYTES
    gate.open()
    assert (await client.answer()).body == WHOLE
    assert await client.rest() == b""
    await gone(rig)
    await client.close()


# --- clients that leave ---------------------------------------------------------------------------


async def test_a_client_that_never_asked_leaves_nothing(rigs, scripted_upstream) -> None:
    """An open connection costs a little and no more."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    await until(lambda: connection_bytes(rig) == PORCH_BYTES, DEADLINE_S, "it is there")
    await client.close()
    await gone(rig)
    assert connection_bytes(rig) == 0


@pytest.mark.parametrize("script", ["silent", "headers-then-silent", "stall:2", "stuck:300"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_takes_its_upstream_with_it(
    rigs, scripted_upstream, script: str, stream: bool
) -> None:
    """Before its answer and in the middle of it; what it had sent ahead is forgotten."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    await client.send(post(script, stream=stream))
    await busy(rig)
    await until(lambda: scripted_upstream.requests, DEADLINE_S, "the upstream is asked")
    assert is_on_lane(rig)
    run = rig.relay().run
    await client.send(post("ok"))
    await asyncio.sleep(0.02)
    client.writer.transport.abort()
    await until(lambda: run.is_over, DEADLINE_S, "the run is over")
    assert (run.state.value, run.reason) == ("cancelled", "cancelled: client disconnected")
    await until(lambda: not scripted_upstream.active, DEADLINE_S, "the upstream is let go")
    await gone(rig)
    assert len(scripted_upstream.requests) == 1


async def test_a_client_that_leaves_with_its_answer_has_had_it(rigs, scripted_upstream) -> None:
    """The run is complete, and nothing of the connection stays."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    assert (await client.ask(post("ok"))).body == b"".join(OK)
    client.writer.transport.abort()
    await gone(rig)
    assert rig.relay().run.state.value == "completed"
    assert connection_bytes(rig) == 0


# --- clients that read slowly ---------------------------------------------------------------------

WORD = b'data: {"choices":[{"index":0,"delta":{"content":"%05d %b"}}]}\n\n'


@pytest.mark.parametrize("stream", [True, False])
async def test_a_slow_client_gets_every_byte_and_may_go_on(
    rigs, raw_upstream, stream: bool
) -> None:
    """What it has not read is counted and bounded, and its connection stays on the lane."""
    events = [WORD % (number, b"x" * 900) for number in range(3_000)] + [b"data: [DONE]\n\n"]
    body = b"".join(events)
    text = json.dumps(body.decode()).encode()

    async def play(peer: Peer) -> None:
        while True:
            if b'"stream": true' in await peer.request():
                await peer.send(HEAD, *map(chunked, events), LAST)
            else:
                await peer.send(plain(text))

    rig = await rigs(await raw_upstream(play), window_bytes=512 * KIB)
    slow = await open_chat(rig.base_url, "m", stream=stream, receive_buffer=16 * KIB)
    ledger = rig.gateway.registry.ledger
    await until(lambda: ledger.statistics()["outbound"], DEADLINE_S, "much is outbound")
    assert is_on_lane(rig)
    client = RawClient(slow.reader, slow.writer)
    for _ in range(2):
        async with asyncio.timeout(DEADLINE_S):
            answer = await client.answer()
        assert answer.body == (body if stream else text)
        await client.send(post("m", stream=stream))
    await client.answer()
    assert is_on_lane(rig)
    assert ledger.statistics()["outbound"] == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_reads_nothing_is_dropped(rigs, raw_upstream, stream: bool) -> None:
    """After stall_s, with all that it has not read."""

    async def play(peer: Peer) -> None:
        await peer.request()
        if stream:
            await peer.send(HEAD, *(chunked(WORD % (n, b"x" * 90_000)) for n in range(100)))
        else:
            await peer.send(plain(b'"' + b"x" * 8_000_000 + b'"'))
        await peer.hang()

    rig = await rigs(await raw_upstream(play), stall_s=0.5)
    await open_chat(rig.base_url, "m", stream=stream, receive_buffer=4 * KIB)
    ledger = rig.gateway.registry.ledger
    await until(lambda: ledger.statistics()["outbound"], DEADLINE_S, "it is outbound")
    assert is_on_lane(rig)
    await gone(rig)
    await rig.idle()


# --- places and memory ----------------------------------------------------------------------------


async def test_when_all_places_are_taken_a_request_is_refused(rigs, raw_upstream) -> None:
    """And health is told all the same; the request that has the place goes on."""
    gate = Gate()
    rig = await rigs(await raw_upstream(gate.play), max_connections=1)
    client = await connect(rig)
    await client.send(post("m", stream=False))
    await busy(rig)
    refused = await chat(rig.base_url, "m")
    assert (refused.status, refused.json()["error"]["code"]) == (503, "too_many_connections")  # type: ignore[index]
    assert (await get(rig.base_url, "/healthz")).status == 200
    gate.open()
    assert (await client.answer()).body == WHOLE
    await client.close()


async def test_a_waiting_connection_makes_room_for_another(rigs, scripted_upstream) -> None:
    """One that has been answered is closed for one that comes."""
    rig = await rigs(scripted_upstream, max_connections=1)
    first, second = await connect(rig), await connect(rig)
    assert (await second.ask(post("ok"))).status == 200
    third = await connect(rig)
    assert (await third.ask(post("ok"))).status == 200
    for client in (first, second):
        assert await client.rest() == b""
        await client.close()
    assert is_on_lane(rig)
    await third.close()


async def test_a_request_is_not_the_one_that_makes_room_for_itself(rigs, scripted_upstream) -> None:
    """Its connection may have waited longest; others are closed, and it is answered."""
    rig = await rigs(scripted_upstream)
    clients = [await connect(rig) for _ in range(8)]
    for client in clients:
        assert (await client.ask(post("ok"))).status == 200
    await until(lambda: not rig.gateway.registry.active_count, DEADLINE_S, "all are over")
    await asyncio.sleep(FRESH_S + 0.1)
    ledger = rig.gateway.registry.ledger
    while rig.gateway.registry.sweep(rig.gateway.loop.time(), finished=True).runs:
        pass
    body = post("ok", stream=False, more="x" * 40 * KIB)
    rig.facts(ledger_limit_bytes=2 * (len(body) + 7 * PORCH_BYTES))
    assert (await clients[0].ask(body)).status == 200
    assert rig.gateway.server.table.statistics().evicted > 0
    assert not ledger.is_full
    for client in clients:
        await client.close()


# --- how it ends ----------------------------------------------------------------------------------


async def test_an_answer_that_began_before_a_drain_keeps_its_promise(rigs, raw_upstream) -> None:
    """The next one announces the end, and is the last."""
    gate = Gate()
    rig = await rigs(await raw_upstream(gate.play))
    client = await connect(rig)
    await client.send(post("m", stream=False))
    await busy(rig)
    rig.gateway.stop_accepting()
    gate.open(2)
    assert "connection" not in (await client.answer()).headers
    assert is_on_lane(rig)
    assert (await client.ask(post("m", stream=False))).headers["connection"] == "close"
    assert await client.rest() == b""
    await client.close()


async def test_a_shutdown_waits_for_the_request_in_hand(rigs, raw_upstream) -> None:
    """Its answer is the last of its connection; one that waits for a request is closed at once."""
    gate = Gate()
    rig = await rigs(await raw_upstream(gate.play))
    idle, client = await connect(rig), await connect(rig)
    await client.send(post("m", stream=False))
    await busy(rig)
    ending = asyncio.create_task(rig.gateway.server.shutdown(DEADLINE_S))
    assert await idle.rest() == b""
    await client.send(post("late", stream=False))
    gate.open()
    assert (await client.answer()).body == WHOLE
    assert await client.rest() == b""
    await ending
    assert len(gate.bodies) == 1
    for each in (idle, client):
        await each.close()


async def test_a_shutdown_ends_what_does_not_end(rigs, scripted_upstream) -> None:
    """Both a stream under way and an answer that was not begun, as if their clients had left."""
    rig = await rigs(scripted_upstream)
    clients = [await connect(rig), await connect(rig)]
    for client, script in zip(clients, ("stall:2", "silent"), strict=True):
        await client.send(post(script))
    await busy(rig, 2)
    await rig.gateway.server.shutdown(0.05)
    assert rig.gateway.server.table.open_connections == 0
    await rig.idle()
    for client in clients:
        await client.close()


async def test_closing_tells_each_reader_why(rigs, raw_upstream) -> None:
    """A stream under way gets its error and a clean end, and the connection closes."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play))
    stream = await open_chat(rig.base_url, "m")
    tap.send(WORD % (1, b"one"))
    await stream.read_events(2)
    assert is_on_lane(rig)
    closing = asyncio.create_task(rig.gateway.close())
    await stream.read_rest()
    assert stream.clean
    assert stream.events[-1].error is not None
    await asyncio.wait_for(closing, DEADLINE_S)


async def test_a_silent_connection_is_closed_in_time(rigs, scripted_upstream) -> None:
    """Before its first request after header_s, without a word."""
    rig = await rigs(scripted_upstream, header_s=0.2)
    client = await connect(rig)
    assert await client.rest() == b""
    await client.close()
    await gone(rig)
