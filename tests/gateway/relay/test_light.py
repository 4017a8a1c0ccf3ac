"""Light answers: sent and kept without a run, and made runs of as soon as anything is not plain."""

from __future__ import annotations

import asyncio
import json
import socket
from functools import partial

import pytest

from fakes.client import Stream, get
from fakes.machine import until
from fakes.upstream import DONE, FINISH, ROLE, ScriptedUpstream
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, RawUpstream, Rig, chunked, plain
from gateway.relay.relay_rig import WORD
from tidegate.core.formats import CHAT
from tidegate.core.settings import MIB
from tidegate.gateway.relay.light import whole_events
from tidegate.gateway.relay.registry import Registry
from tidegate.gateway.server.porch import PORCH_BYTES

pytestmark = pytest.mark.parametrize("rigs", ["light"], indirect=True)

WHOLE = HEAD + chunked(ROLE, WORD, FINISH, DONE) + LAST
ANSWER = json.dumps({"id": "x", "object": "chat.completion", "choices": []}).encode()
BODY = {"model": "m", "messages": []}


def playing(*pieces: bytes, gap_s: float = 0.0) -> object:
    """An upstream that answers each request with these writes."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            for number, piece in enumerate(pieces):
                if number:
                    await asyncio.sleep(gap_s)
                await peer.send(piece)

    return play


async def ask(rig: Rig, *, stream: bool = True, **values: object) -> Stream:
    """One chat, whole."""
    body = BODY | {"stream": stream} | values
    return await asyncio.wait_for(get(rig.base_url, "/v1/chat/completions", body), DEADLINE_S)


async def runs_of(rig: Rig) -> list[dict[str, object]]:
    """What `/v1/runs` lists."""
    data: list[dict[str, object]] = (await get(rig.base_url, "/v1/runs")).json()["data"]
    return data


async def test_a_whole_stream_needs_no_run_and_can_be_read_again(rigs, raw_upstream) -> None:
    """It is listed, shown, and resumed from any event, like every other finished run."""
    rig = await rigs(await raw_upstream(playing(WHOLE)))
    registry = rig.gateway.registry
    answer = await ask(rig)
    assert answer.clean
    assert bytes(answer.body) == ROLE + WORD + FINISH + DONE
    assert (len(registry.light), registry.finished_count, registry.total) == (1, 1, 1)
    assert registry.states() == {"completed": 1}
    assert rig.pool().status().active == 0
    [listed] = await runs_of(rig)
    assert (listed["id"], listed["state"], listed["next_seq"]) == (answer.run_id, "completed", 4)
    assert len(registry.light) == 1  # a listing makes no run of what is kept
    again = await get(rig.base_url, f"/v1/runs/{answer.run_id}/stream?starting_after=1")
    assert [event.data for event in again.events] == [FINISH[6:-2], DONE[6:-2]]
    assert (len(registry.light), registry.finished_count) == (0, 1)
    shown = (await get(rig.base_url, f"/v1/runs/{answer.run_id}")).json()
    assert shown["attempt_list"][0]["outcome"] == "completed"


async def test_a_kept_answer_costs_its_bytes_and_a_kilobyte(rigs, raw_upstream) -> None:
    """Charged while it is kept, and given back by a sweep."""
    rig = await rigs(await raw_upstream(playing(WHOLE)))
    for _ in range(20):
        assert (await ask(rig)).clean
    held = rig.held_bytes
    size = len(ROLE + WORD + FINISH + DONE)
    kept = len(rig.gateway.registry.light)
    assert kept >= 15  # the connection to the upstream may be on its way back
    assert 20 * size < held <= kept * (size + 1200) + (20 - kept) * (size + 6000)
    rig.gateway.registry.sweep(rig.gateway.loop.time(), finished=True)
    assert rig.held_bytes == 0


async def test_they_go_first_when_the_ledger_is_tight(rigs, raw_upstream) -> None:
    """The oldest first; every answer is sent whole all the same."""
    rig = await rigs(await raw_upstream(playing(WHOLE)))
    first = await ask(rig)
    rig.facts(ledger_limit_bytes=rig.gateway.registry.ledger.total_bytes + 12_000)
    for _ in range(30):
        assert (await ask(rig)).clean
    missing = await get(rig.base_url, f"/v1/runs/{first.run_id}")
    assert missing.status == 404
    assert rig.gateway.registry.swept.by_kind["memory"] > 0


@pytest.mark.parametrize("owner", ["mine", "another's"])
async def test_another_keys_answer_is_not_found(rigs, raw_upstream, owner: str) -> None:
    """Neither listed nor shown, and it stays kept."""
    rig = await rigs(await raw_upstream(playing(WHOLE)))
    run_id = (await ask(rig)).run_id
    found = rig.gateway.registry.find(run_id, "" if owner == "mine" else "f" * 64)
    assert (found is not None) is (owner == "mine")
    assert len(rig.gateway.registry.newest("f" * 64, 10)) == 0


async def test_a_plain_answer_is_passed_on_with_its_headers(rigs, raw_upstream) -> None:
    """In one read or head and body apart; nothing is kept of it."""
    told = plain(ANSWER, b"200 OK", b"x-ratelimit-remaining: 7")
    for pieces in ((told,), (told[:-10], told[-10:])):
        rig = await rigs(await raw_upstream(playing(*pieces, gap_s=0.02)))
        answer = await ask(rig, stream=False)
        assert (answer.status, bytes(answer.body)) == (200, ANSWER)
        await rig.idle()
        assert rig.gateway.registry.finished_count == 0
        assert rig.gateway.registry.ended["completed"] == 1


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD + chunked(ROLE, WORD), chunked(WORD, FINISH, DONE) + LAST),
        (HEAD, chunked(ROLE, WORD, FINISH, DONE) + LAST),
        (HEAD + chunked(ROLE, WORD, FINISH) + LAST,),
        (HEAD + chunked(ROLE, WORD, FINISH, DONE)[:-4], b"\r\n\r\n" + LAST),
    ],
    ids=["two reads", "head first", "no marker", "cut in the marker"],
)
async def test_what_is_not_whole_at_once_becomes_a_run(rigs, raw_upstream, pieces) -> None:
    """And the client is sent the same."""
    rig = await rigs(await raw_upstream(playing(*pieces, gap_s=0.05)))
    answer = await ask(rig)
    assert answer.clean
    text = bytes(answer.body)
    assert text.startswith(ROLE + WORD)
    assert b"finish_reason" in text
    assert b"error" not in text
    await rig.idle()
    assert rig.gateway.registry.states() == {"completed": 1}


@pytest.mark.parametrize(
    "said",
    [
        HEAD + chunked(ROLE, WORD, b'data: {"error":{"message":"no"}}\n\n') + LAST,
        HEAD + chunked(ROLE, WORD) + LAST,
        HEAD + chunked(ROLE, WORD, b"data: {no json\n\n", FINISH, DONE) + LAST,
        HEAD.replace(b"event-stream", b"html") + chunked(ROLE, WORD, FINISH, DONE) + LAST,
        b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}",
        b"not HTTP at all\r\n\r\n",
    ],
    ids=["error event", "no end", "no JSON", "no stream", "500", "garbage"],
)
async def test_no_fault_looks_like_success(rigs, raw_upstream, said: bytes) -> None:
    """What is wrong with an answer is found by a run, and told by it."""
    rig = await rigs(await raw_upstream(playing(said)))
    answer = await ask(rig)
    assert DONE not in bytes(answer.body)
    assert answer.status >= 500 or b"error" in bytes(answer.body)
    await rig.idle()
    assert len(rig.gateway.registry.light) == 0
    assert rig.gateway.registry.ended["completed"] == 0


async def test_a_lost_connection_is_replaced_or_told(rigs, raw_upstream) -> None:
    """A kept one that dies of idleness costs nothing; the second target answers for the first."""

    async def dies(peer: Peer) -> None:
        await peer.request()

    first, second = await raw_upstream(dies), await raw_upstream(playing(WHOLE))
    rig = await rigs(first, second, models={"m": ["box/m", "box1/m"]})
    answer = await ask(rig)
    assert answer.clean
    assert bytes(answer.body).endswith(DONE)


async def test_a_client_that_leaves_ends_the_request(rigs, raw_upstream) -> None:
    """After the grace the upstream knows; nothing is left behind."""
    asked = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.hang()

    upstream: RawUpstream = await raw_upstream(play)
    rig = await rigs(upstream)
    stream = await Stream.open(rig.base_url, "/v1/chat/completions", BODY | {"stream": True})
    await asyncio.wait_for(asked.wait(), DEADLINE_S)
    assert len(rig.gateway.registry.light.running) == 1
    await stream.vanish()
    await until(lambda: upstream.peers[-1].gone, DEADLINE_S, "the upstream is let go")
    await rig.idle()
    assert rig.gateway.registry.ended["cancelled"] == 1


async def test_it_is_a_run_after_a_second_or_a_look(rigs, raw_upstream) -> None:
    """So limits, listings and cancels find it."""

    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.hang()

    rig = await rigs(await raw_upstream(silent))
    registry = rig.gateway.registry
    first = await Stream.open(rig.base_url, "/v1/chat/completions", BODY | {"stream": True})
    await until(lambda: registry.light.running, DEADLINE_S, "it is light")
    assert registry.active_count == 1
    await until(lambda: not registry.light.running, DEADLINE_S, "it is a run")
    [run] = await runs_of(rig)
    assert run["state"] == "connecting"
    assert (await get(rig.base_url, f"/v1/runs/{run['id']}/cancel", {})).json()[
        "state"
    ] == "cancelled"
    assert b"cancelled" in bytes((await first.read_all()).body)


async def test_a_client_that_reads_nothing_is_waited_for(rigs, raw_upstream) -> None:
    """Its connection stays busy, and what it has not read is charged, until it reads."""
    big = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 50_000)
    rig = await rigs(await raw_upstream(playing(HEAD + chunked(ROLE, big, FINISH, DONE) + LAST)))
    table, connections = rig.gateway.server.table, rig.gateway.registry.ledger.connections
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", rig.port))
    sock.setblocking(False)
    body = json.dumps(BODY | {"stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    registry, sent = rig.gateway.registry, 0
    while connections.total_bytes < 10_000:
        sock.send(head % len(body) + body)
        sent += 1
        await until(partial(_has_begun, registry, sent), DEADLINE_S, "it is answered")
        assert sent < 200
    assert table.busy_connections == 1
    reader, writer = await asyncio.open_connection(sock=sock)
    for _ in range(sent):
        await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), DEADLINE_S)
    await until(lambda: not table.busy_connections, DEADLINE_S, "it is between two requests")
    assert connections.total_bytes == PORCH_BYTES
    writer.close()


def _has_begun(registry: Registry, runs: int) -> bool:
    return registry.total == runs


SCRIPTS = (
    "ok", "one-byte", "error-middle", "no-terminal:2", "drop:2", "reset:2", "json",
    "status:503",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_answers_are_those_of_the_ordinary_road(
    rigs, scripted_upstream: ScriptedUpstream, script: str, stream: bool
) -> None:
    """Byte for byte, but for ids."""
    seen = []
    for road in ("light", "ordinary"):
        rigs.road = road
        rig = await rigs(scripted_upstream)
        scripted_upstream.play("m", script)
        answer = await ask(rig, stream=stream)
        text = bytes(answer.body).replace(str(answer.run_id).encode(), b"RUN")
        seen.append((answer.status, answer.clean, text, sorted(answer.headers)))
    assert seen[0] == seen[1]


async def test_only_a_plain_whole_stream_counts(rigs) -> None:
    """An end, no trouble, no keep-alive before the first word, every event JSON."""
    whole = ROLE + WORD + FINISH + DONE
    for plain_one in (whole, whole.replace(b"word", b"an error, they say")):
        assert whole_events(CHAT, plain_one) == 4
    for odd in (
        whole[:-1], whole + b"data: ", ROLE + WORD + FINISH,
        whole.replace(WORD, b'data: {"error":{"message":"no"}}\n\n'),
        b": hello\n\n" + whole, b"data: {}x\n\n" + whole, DONE + ROLE, b"", b"\n\n",
        whole.replace(b"\n\n", b"\r\n\r\n", 1) + b"data: 1",
    ):  # fmt: skip
        assert whole_events(CHAT, odd) == 0, odd


async def test_megabytes_are_no_light_answer(rigs) -> None:
    """One event may be 4 MiB, and is read in many reads."""
    assert whole_events(CHAT, b"data: " + b"1" * (5 * MIB) + b"\n\n" + DONE) == 0
