"""Which requests the fast lane takes, and that nothing in an answer tells whether it was taken."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from pathlib import Path

import msgspec
import pytest

from fakes.client import get
from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, Rig
from gateway.lane_rig import CHAT, both_roads, connect, is_on_lane, post, told
from gateway.server_rig import RawClient, request
from tidegate.core.settings import Server, Token
from tidegate.gateway.api import create
from tidegate.gateway.api.delivery import Delivery
from tidegate.gateway.api.fast_lane import MOST_REMEMBERED
from tidegate.gateway.server.client_protocol import ClientProtocol

ON_BOTH_LOOPS = True
pytestmark = pytest.mark.parametrize("rigs", ["fast"], indirect=True)

KEY = "tg-3f9c2b7d51"
PATHS = [
    *(CHAT, "/v1/completions", "/v1/messages", "/v1/responses", "/api/chat", "/api/generate"),
]


def token(key: str, name: str = "laptop") -> Token:
    return Token(name=name, sha256=hashlib.sha256(key.encode()).hexdigest())


def code_of(answer: object) -> str:
    return json.loads(answer.body)["error"]["code"]  # type: ignore[attr-defined]


# --- what is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [*PATHS, "/v1/embeddings"])
async def test_the_common_kinds_are_taken(rigs, scripted_upstream, path: str, stream: bool) -> None:
    """One after the other on one connection, and each is a run of its own."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    runs = set()
    for _ in range(3):
        answer = await client.ask(post("ok", path=path, stream=stream))
        assert answer.status == 200
        runs.add(answer.headers["x-run-id"])
        assert is_on_lane(rig)
    assert len(runs) == 3
    assert rig.gateway.server.table.statistics().accepted == 1
    await client.close()


PLAIN = post("ok")
LEFT = {
    "a GET": request("GET", "/healthz"),
    "another path": post("ok", path="/v1/rerank"),
    "a query": post("ok", path=CHAT + "?x=1"),
    "no such path": post("ok", path="/v1/nothing"),
    "an end": post("ok", "Connection: close"),
    "HTTP/1.0": PLAIN.replace(b"/1.1", b"/1.0"),
    "chunks": request("POST", CHAT, "Transfer-Encoding: chunked")
    + b'e\r\n{"model":"ok"}\r\n0\r\n\r\n',
    "an expectation": post("ok", "Expect: 100-continue"),
    "a page of our own": post("ok", "Origin: http://127.0.0.1"),
    "a page of another site": post("ok", "Origin: http://evil.example"),
    "another host": post("ok", "Host: evil.example"),
    "no host": PLAIN.replace(b"Host: 127.0.0.1\r\n", b""),
    "no body": request("POST", CHAT, body=b""),
    "no JSON": request("POST", CHAT, body=b"{"),
    "no model": request("POST", CHAT, body=b"{}"),
    "a deep list": request("POST", CHAT, body=b'{"model":"ok","x":' + b"[" * 50_000),
    "an unknown policy": post("ok", "x-on-disconnect: maybe"),
    "a policy that needs a stream": post("ok", "x-on-disconnect: continue", stream=False),
    "a ring of gateways": post("ok", "x-tidegate-hops: 9"),
    "a background response": post("ok", path="/v1/responses", background=True, stream=False),
    "a large body": post("ok", more="x" * 2_000),
    "nonsense": b"nonsense\r\n\r\n",
    "two in one read": PLAIN + request("GET", "/healthz"),
    "a line end before it": b"\r\n" + PLAIN,
}


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT)
async def test_everything_else_goes_the_ordinary_road(rigs, scripted_upstream, data: bytes) -> None:
    """It is answered as by a gateway without a lane, and its connection never comes back."""
    answers = []
    for rig in await both_roads(rigs, scripted_upstream, max_body_bytes=1_500):
        client = await connect(rig)
        first = await client.ask(data)
        assert not is_on_lane(rig)
        said = [told(first) if "x-run-id" not in first.headers else (first.status,)]
        if first.headers.get("connection") != "close":
            if first.status == 100 or data is LEFT["two in one read"]:
                await client.answer()
            after = await client.ask(PLAIN)
            said.append((after.status, after.body))
            assert not is_on_lane(rig)
        else:
            said.append(await client.rest())
        answers.append(said)
        await client.close()
    assert answers[0] == answers[1]


async def test_what_the_upstream_is_sent_is_the_same_on_both_roads(rigs, scripted_upstream) -> None:
    """The same head, but for what is drawn, and the same body to the byte."""
    sent = []
    fields = ("anthropic-beta: a", "openai-organization: b", "Content-Type: text/plain", "X: y")
    for rig in await both_roads(rigs, scripted_upstream):
        client = await connect(rig)
        assert (await client.ask(post("ok", *fields))).status == 200
        seen = scripted_upstream.requests[-1]
        sent.append((seen.method, seen.path, seen.headers, seen.body))
        await client.close()
    assert sent[0] == sent[1]


# --- how it is answered ---------------------------------------------------------------------------

# Whole answers and broken ones, those that are told with a status, and those in the stream.
ENDINGS = [
    *("ok", "tools", "one-byte", "crlf", "odd-fields", "finish-no-done", "http10", "trailers"),
    *("continue", "numbered:20:1", "bulk:30", "status:404", "status:503", "status:429:1"),
    *("context-length", "content-filter", "error-first", "error-in-200", "html:502", "drop:0"),
    *("drop:2", "reset:2", "cut:2:5", "end:2", "no-terminal:2", "http10-cut:2"),
    *("error-middle", "huge-event", "eof", "abort", "garbage", "big-head", "json", "sse", "gzip"),
    *("too-short", "too-long", "no-model", "no-route", "moderation", "no-quota", "redirect"),
]  # fmt: skip


FAULT_LIMITS = {"first_output_s": 0.5, "idle_s": 0.4, "total_s": 8.0, "hold_s": 5.0}


@pytest.mark.long
@pytest.mark.parametrize("script", ENDINGS)
async def test_both_roads_answer_alike_however_it_ends(
    rigs, scripted_upstream, script: str
) -> None:
    """Status, headers, body and what becomes of the connection, whatever the upstream does."""
    roads = await both_roads(rigs, scripted_upstream, **FAULT_LIMITS)
    for stream in (True, False):
        fast, ordinary = await asyncio.gather(*(outcome(rig, script, stream) for rig in roads))
        assert fast == ordinary


async def outcome(rig: Rig, script: str, stream: bool) -> object:
    """What comes of a request, and how its run is written down."""
    client = await connect(rig)
    try:
        answer: object = told(await client.ask(post(script, stream=stream)))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        answer = type(error)
    else:
        assert is_on_lane(rig) is rig.settings.server.fast_lane
    await client.close()
    await rig.idle()
    [run] = rig.gateway.registry.newest(None, 1)
    reason = re.sub("[0-9.]+ s after", "T s after", run.reason or "")
    return answer, run.state, reason, run.attempts, run.next_seq


async def test_a_stream_that_shall_go_on_does(rigs, scripted_upstream) -> None:
    """Without its client, to the end; and it can be read afterwards."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    await client.send(post("gap:300", "x-on-disconnect: Continue"))
    await client.reader.readuntil(b"\n\n")
    assert is_on_lane(rig)
    await client.close()
    run = rig.relay().run
    await until(lambda: run.is_over, DEADLINE_S, "the run is over")
    assert run.state.value == "completed"
    assert (await get(rig.base_url, f"/v1/runs/{run.id}/stream")).body.endswith(b"data: [DONE]\n\n")


# --- who comes in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["Authorization: Bearer ", "x-api-key: "])
async def test_a_revoked_token_is_refused_at_once(rigs, scripted_upstream, header: str) -> None:
    """Though its head was let in before, on the same connection; its run belonged to the token."""
    rig = await rigs(scripted_upstream, tokens=[token(KEY), token("tg-other", "phone")])
    client = await connect(rig)
    for _ in range(2):
        assert (await client.ask(post("ok", header + KEY))).status == 200
    assert is_on_lane(rig)
    assert rig.relay().run.owner == token(KEY).sha256
    rig.tokens = [token("tg-other", "phone")]
    rig.reload(rig.settings)
    assert code_of(await client.ask(post("ok", header + KEY))) == "invalid_api_key"
    assert (await client.ask(post("ok", header + "tg-other"))).status == 200
    await client.close()


async def test_the_first_token_shuts_out_who_has_none(rigs, scripted_upstream) -> None:
    """Though its head was let in while there was no token."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    assert (await client.ask(PLAIN)).status == 200
    rig.tokens = [token(KEY)]
    rig.reload(rig.settings)
    assert code_of(await client.ask(PLAIN)) == "invalid_api_key"
    await client.close()


async def test_a_name_that_is_ours_no_more_is_refused_at_once(rigs, scripted_upstream) -> None:
    """Though its head was let in before."""
    rig = await rigs(scripted_upstream)
    ours = msgspec.structs.replace(rig.settings, allowed_hosts=["box.example"])
    former, data = rig.settings, post("ok", "Host: box.example")
    rig.reload(ours)
    client = await connect(rig)
    assert (await client.ask(data)).status == 200
    assert is_on_lane(rig)
    rig.reload(former)
    assert code_of(await client.ask(data)) == "host_not_allowed"
    await client.close()


async def test_a_wrong_key_counts_once(rigs, scripted_upstream) -> None:
    """Both roads look at it, and one of them tells the brake."""
    rig = await rigs(scripted_upstream, tokens=[token(KEY)])
    for _ in range(3):
        client = await connect(rig)
        assert (await client.ask(post("ok", "x-api-key: wrong"))).status == 401
        await client.close()
    [tries] = rig.gateway._brake._tries.values()
    assert tries.level == pytest.approx(3, abs=0.5)


async def test_a_flood_of_other_heads_is_not_remembered_for_ever(rigs, scripted_upstream) -> None:
    """The book of heads has a bound, and holds no key."""
    rig = await rigs(scripted_upstream, tokens=[token(KEY)])
    client = await connect(rig)
    for number in range(MOST_REMEMBERED + 3):
        data = post("ok", f"x-api-key: {KEY}", f"X: {number}", stream=False)
        assert (await client.ask(data)).status == 200
    assert is_on_lane(rig)
    book = rig.gateway._lane._tickets  # type: ignore[attr-defined]
    assert len(book) == 3
    assert KEY not in repr(book)
    await client.close()


# --- when it is closed ----------------------------------------------------------------------------


async def taken(rig: Rig) -> bool:
    """Whether a new connection's request is taken; it is answered all the same."""
    client = await connect(rig)
    assert (await client.ask(PLAIN)).status == 200
    was_taken = is_on_lane(rig)
    await client.close()
    await until(lambda: not rig.gateway.server.table.open_connections, DEADLINE_S, "it is gone")
    return was_taken


async def test_a_reload_closes_and_opens_it(rigs, scripted_upstream) -> None:
    """fast_lane = false counts from the next request on; so does true, for new connections."""
    rig = await rigs(scripted_upstream)
    former = rig.settings
    client = await connect(rig)
    assert (await client.ask(PLAIN)).status == 200
    rig.reload(msgspec.structs.replace(former, server=Server(fast_lane=False)))
    assert (await client.ask(PLAIN)).status == 200
    assert not is_on_lane(rig)
    await client.close()
    await until(lambda: not rig.gateway.server.table.open_connections, DEADLINE_S, "it is gone")
    assert not await taken(rig)
    rig.reload(former)
    assert await taken(rig)


async def test_nothing_begins_while_memory_is_shed(rigs, scripted_upstream) -> None:
    """On a connection that was let in before as on any other; then it begins again."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    assert (await client.ask(PLAIN)).status == 200
    rig.facts(level=3, shed="memory level 3")
    assert code_of(await client.ask(PLAIN)) == "memory_limit"
    await client.close()
    rig.facts(level=0)
    await until(lambda: not rig.gateway.server.table.open_connections, DEADLINE_S, "it is gone")
    assert await taken(rig)


async def test_nothing_begins_while_parked(rigs, scripted_upstream) -> None:
    """The reason is told to a connection that was let in before as to any other."""
    rig = await rigs(scripted_upstream)
    client = await connect(rig)
    assert (await client.ask(PLAIN)).status == 200
    rig.gateway.parked = "a bad line"
    assert code_of(await client.ask(PLAIN)) == "parked"
    await client.close()


async def test_a_unix_socket_has_no_lane(rigs, scripted_upstream, tmp_path: Path) -> None:
    """Its file's mode has decided who comes in, whatever Host and key say."""
    rig = await rigs(scripted_upstream, tokens=[token(KEY)])
    path = rig.peer_socket + "c"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    await rig.gateway.accept_clients([sock])
    client = RawClient(*await asyncio.open_unix_connection(path))
    for data in (post("ok", f"x-api-key: {KEY}"), post("ok", "Host: x", f"x-api-key: {KEY}")):
        assert (await client.ask(data)).status == 200
    [connection] = rig.gateway.server.table
    assert isinstance(connection, ClientProtocol)
    await client.close()


# --- faults of ours -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["parse_request", "new_relay"])
async def test_a_fault_of_ours_is_told_by_the_ordinary_road(
    rigs, scripted_upstream, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A 500 with a number, one line in the log, and nothing stays."""

    def fail(*given: object) -> None:
        raise LookupError("planted")

    rig = await rigs(scripted_upstream)
    monkeypatch.setattr(create, step, fail)
    client = await connect(rig)
    answer = await client.ask(PLAIN)
    assert (answer.status, code_of(answer)) == (500, "internal_error")
    assert len(rig.errors) == 1
    rig.errors.clear()
    await client.close()


async def test_an_answer_that_cannot_be_written_is_a_500_and_ends_its_connection(
    rigs, scripted_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line in the log that has the run's number; the run ends as if nothing were read."""

    async def fail(delivery: Delivery) -> None:
        raise LookupError("planted")

    rig = await rigs(scripted_upstream)
    monkeypatch.setattr(Delivery, "finish", fail)
    client = await connect(rig)
    await client.send(post("ok", stream=False))
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    error = msgspec.json.decode(body)["error"]
    assert error["code"] == "internal_error"
    assert error["message"].rpartition(" ")[2] in rig.errors[0].getMessage()
    assert len(rig.errors) == 1
    rig.errors.clear()
    await rig.idle()
    await client.close()
