"""The gateway as a whole: routes, settings, its end, and an upstream that sends anything at all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from fakes.client import Stream, chat, open_chat
from fakes.machine import until
from fakes.upstream import DONE, ERROR, FINISH, OK, ROLE
from gateway.gateway_rig import (
    DEADLINE_S,
    HEAD,
    LAST,
    Peer,
    RawUpstream,
    Rig,
    Rigs,
    chunked,
    plain,
)
from gateway.pool_rig import let_go
from tidegate.core.runs.state import RunState
from tidegate.core.settings import Token
from tidegate.gateway.api.routes import find_route
from tidegate.gateway.server.errors import Refused

# --- routes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/healthz", 200),
        ("HEAD", "/readyz", 200),
        ("GET", "/v1/models", 200),
        ("HEAD", "/v1/models", 200),
        ("GET", "/v1/runs", 200),
        ("GET", "/metrics", 200),
        ("POST", "/healthz", 405),
        ("GET", "/v1/chat/completions", 405),
        ("HEAD", "/v1/chat/completions", 405),
        ("PUT", "/v1/runs/x", 405),
        ("GET", "/v1", 404),
        ("GET", "/v1/", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/V1/models", 404),
        ("GET", "/v1/runs/../models", 404),
        ("GET", "/v1/runs/%2e%2e/stream", 404),
        ("GET", "/v1/runs/a%2Fb", 404),
        ("GET", "/v1/adopt", 404),
        ("POST", "/v1/adopt", 404),
        ("POST", "/demo/chat/completions", 404),
        ("POST", "/v1/pull", 404),
    ],
)
async def test_what_is_not_in_the_table_does_not_exist(
    rigs, scripted_upstream, method: str, path: str, status: int
) -> None:
    """Inner routes least of all; 405 names what is allowed; HEAD has a GET's head and no body."""
    rig = await rigs(scripted_upstream)
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    )
    raw = await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()
    await writer.wait_closed()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert bool(body) is (method != "HEAD")
    if status == 405:
        assert b"\r\nAllow: " in head
    if status == 404:
        assert json.loads(body)["error"]["code"] in {"not_found", "run_not_found"}


def test_a_route_is_matched_whole() -> None:
    """Neither its beginning nor with a newline behind it."""
    for path in ("/v1/modelsx", "/v1/models\n", "/x/v1/models", "/v1/runs/" + "a" * 81, ""):
        with pytest.raises(Refused) as caught:
            find_route("GET", path)
        assert caught.value.status == 404


# --- settings -------------------------------------------------------------------------------------


async def test_a_refused_reload_changes_nothing(rigs, scripted_upstream) -> None:
    """All of the new settings or none of them."""
    rig = await rigs(scripted_upstream)
    before = (rig.gateway.settings, rig.gateway.catalog)
    with pytest.raises(ValueError, match="host"):
        rig.gateway.configure(
            msgspec.structs.replace(rig.settings, allowed_hosts=["not a host/"], upstreams=[]),
            [Token(name="x", sha256="0" * 64)],
            {},
        )
    assert (rig.gateway.settings, rig.gateway.catalog) == before
    assert (await chat(rig.base_url, "ok")).status == 200  # there is still no token to ask for


async def test_new_tokens_count_at_once_and_streams_go_on(rigs, scripted_upstream) -> None:
    """Who was let in is not thrown out."""
    rig = await rigs(scripted_upstream)
    live = await open_chat(rig.base_url, "numbered:40:10")
    await live.read_events(3)
    rig.tokens = [Token(name="x", sha256="0" * 64)]
    rig.reload(rig.settings)
    assert (await chat(rig.base_url, "ok")).status == 401
    await asyncio.wait_for(live.read_rest(), DEADLINE_S)
    assert live.events[-1].raw == DONE


# --- its end --------------------------------------------------------------------------------------


async def test_closing_tells_every_stream_why(rigs, scripted_upstream) -> None:
    """What is left gets an error event and a clean end of its body; waiting ones a status."""
    rig = await rigs(scripted_upstream)
    live = await open_chat(rig.base_url, "stuck:5")
    await live.read_events(3)
    waiting = await open_chat(rig.base_url, "silent")
    whole = await open_chat(rig.base_url, "slow-json:60000", stream=False)
    await until(lambda: rig.gateway.registry.active_count == 3, DEADLINE_S, "all are there")
    closing = asyncio.ensure_future(rig.gateway.close())
    for stream in (live, waiting, whole):
        await asyncio.wait_for(
            stream.read_all() if stream is not live else live.read_rest(), DEADLINE_S
        )
        assert stream.clean
    await asyncio.wait_for(closing, DEADLINE_S)
    assert live.events[-1].error == {
        "message": "cancelled: tidegate is stopping",
        "type": "cancelled",
        "param": None,
        "code": "cancelled",
    }
    assert {waiting.status, whole.status} <= {409, 503}
    await until(lambda: not scripted_upstream.active, DEADLINE_S, "the upstream is let go")


# --- an upstream that sends anything at all -------------------------------------------------------

VALID = [
    HEAD + chunked(*OK) + LAST,
    HEAD + chunked(ROLE, FINISH) + LAST,
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"".join(OK),
    HEAD.replace(b"chunked", b"chunked\r\nConnection: close") + chunked(b"".join(OK)) + LAST,
    b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + chunked(*OK) + LAST,
    HEAD + chunked(ROLE, OK[1], ERROR) + LAST,
    HEAD + chunked(ERROR) + LAST,
    plain(b'{"error":{"message":"no"}}', b"429 Too Many", b"Retry-After: 3"),
    plain(b'{"error":"no"}', b"400 Bad"),
    plain(b'{"choices":[]}'),
    b"HTTP/1.1 204 No Content\r\n\r\n",
]


INSERTED = [b"\r\n", b"\n\n", b"data: ", b"\x00", ERROR, DONE, LAST]


@st.composite
def damaged(draw: Any) -> tuple[list[bytes], bool]:
    """A valid answer, cut and hurt anywhere, or noise; and whether the upstream then hangs."""
    data = bytearray(draw(st.sampled_from(VALID)) if draw(st.integers(0, 9)) else draw(st.binary()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "drop", "insert", "cut", "double"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.one_of(st.binary(max_size=20), st.sampled_from(INSERTED)))
            case "cut":
                del data[at:]
            case "double":
                data += data[at:]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    pieces = [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return pieces, draw(st.booleans())


async def test_an_answer_is_whole_with_its_marker_whatever_follows(rigs, raw_upstream) -> None:
    """Framing that breaks behind the terminal marker takes nothing back, even in the same read."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(*OK) + b"zz\r\n")
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    answer = await chat(rig.base_url, "m")
    assert (answer.status, answer.clean) == (200, True)
    assert bytes(answer.body) == b"".join(OK)
    assert rig.relay().run.state is RunState.COMPLETED


class Anything:
    """Sends what it is told to each request."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.hangs = False

    async def play(self, peer: Peer) -> None:
        await peer.request()
        for piece in self.pieces:
            if peer.writer.is_closing():
                return
            peer.writer.write(piece)
            await asyncio.sleep(0.001)
        if self.hangs:
            await peer.hang()


async def judge(rig: Rig, *, stream: bool) -> None:
    """One answer: complete, or a status, or an error event; and nothing of it is left."""
    answer: Stream = await asyncio.wait_for(chat(rig.base_url, "m", stream=stream), DEADLINE_S)
    relay = rig.gateway.registry.find(answer.run_id, None)
    assert answer.clean, bytes(answer.body[-300:])
    is_stream = answer.headers["content-type"].startswith("text/event-stream; charset=utf-8")
    if stream and answer.status == 200 and is_stream:
        assert relay is not None
        body = bytes(answer.body)
        run = relay.run
        assert body == run.window.read(run.window.cursor(0))[0]
        if run.state is RunState.COMPLETED:
            assert b"[DONE]" in body or b'"finish_reason":"' in body
        else:
            assert b'"error"' in body
            assert answer.events, body
    elif answer.status < 400:
        assert not stream
    await rig.idle()
    pool = rig.pool()
    await let_go(pool)
    assert (pool.active, pool.status().queued) == (0, 0)
    rig.gateway.registry.sweep(rig.gateway.loop.time(), finished=True)
    assert (rig.held_bytes, rig.gateway.registry.ledger.accounts) == (0, frozenset())


@pytest.mark.long
@pytest.mark.parametrize(
    "loop_factory",
    [uvloop.new_event_loop, asyncio.new_event_loop],
)
def test_whatever_an_upstream_sends_the_client_is_told_the_truth(loop_factory: Any) -> None:
    """Never a broken answer that looks like a whole one, never a byte or a place left behind."""
    upstream = Anything()

    async def start() -> tuple[Rigs, Rig, RawUpstream]:
        raw = await RawUpstream(upstream.play).start()
        rigs = Rigs(lambda: "")
        return rigs, await rigs(raw, idle_s=0.15, first_output_s=0.15, total_s=0.5), raw

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        rigs, rig, raw = runner.run(start())

        @settings(
            max_examples=80,
            deadline=None,
            derandomize=True,
            database=None,
            # No shrinking: each try may wait for total_s, and there would be hundreds.
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(damaged(), st.booleans())
        @example(([VALID[0][:-1], b"\n"], False), True)
        @example(([VALID[0] + VALID[7]], True), True)
        @example(([plain(b"x", b"429 X", b"Retry-After: 5\r\n X-Folded: y")], True), True)
        def play(damage: tuple[list[bytes], bool], stream: bool) -> None:
            upstream.pieces, upstream.hangs = damage
            runner.run(judge(rig, stream=stream))

        try:
            play()
            runner.run(rigs.finish())
        finally:
            runner.run(raw.stop())
