"""Pages of other origins: what those of `allowed_origins` are told on every road, and no others."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from contextlib import suppress

import aiohttp
import msgspec
import pytest

from fakes.client import chat
from gateway.gateway_rig import Peer, Rig
from gateway.lane_rig import connect, post
from gateway.server_rig import Answer, request
from tidegate.core.settings import Token

ON_EVERY_ROAD = True

KEY = "tg-" + "k3y" * 10
APP = "http://192.168.1.7:3000"
ORIGIN = f"Origin: {APP}"
TOKEN = Token(name="laptop", sha256=hashlib.sha256(KEY.encode()).hexdigest())
BEARER = f"Authorization: Bearer {KEY}"
ASKED = (
    "Authorization, content-type,x-stainless-lang , anthropic-dangerous-direct-browser-access"
    ", openai-beta, x-on-disconnect"
)


async def rig_for_pages(rigs, upstream, *origins: str, **values: object) -> Rig:
    rig: Rig = await rigs(upstream, **values)
    rig.reload(msgspec.structs.replace(rig.settings, allowed_origins=list(origins or (APP,))))
    return rig


async def ask(rig: Rig, data: bytes) -> Answer:
    client = await connect(rig)
    try:
        return await client.ask(data)
    finally:
        await client.close()


def cross(answer: Answer) -> dict[str, str]:
    """What an answer says to a browser."""
    return {n: v for n, v in answer.headers.items() if n.startswith("access-control-")}


def assert_readable(answer: Answer, status: int) -> None:
    """The page may read it, all of it that helps, and no other page may."""
    assert answer.status == status, answer.body
    assert answer.headers["access-control-allow-origin"] == APP
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"].split(", ")
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-run-id", "x-request-id", "request-id", "retry-after"} <= set(exposed)


@pytest.mark.parametrize("over", [(), (BEARER,)])
async def test_an_allowed_page_reads_every_kind_of_answer(
    rigs, scripted_upstream, over: tuple[str, ...]
) -> None:
    """Streams, whole answers, listings, errors of every origin, with a token and without one."""
    tokens = [TOKEN] if over else []
    rig = await rig_for_pages(rigs, scripted_upstream, tokens=tokens)
    mine = (ORIGIN, *over)
    streamed = await ask(rig, post("ok", *mine))
    assert_readable(streamed, 200)
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    run = streamed.headers["x-run-id"]
    assert_readable(await ask(rig, post("ok", *mine, stream=False)), 200)
    assert_readable(await ask(rig, post("ok", *mine, path="/v1/messages", max_tokens=1)), 200)
    assert_readable(await ask(rig, post("status:500", *mine)), 500)
    assert_readable(await ask(rig, post("error-first", *mine)), 503)
    assert_readable(await ask(rig, request("POST", "/v1/chat/completions", *mine, body=b"{")), 400)
    for path, status in (
        ("/v1/models", 200),
        ("/v1/runs", 200),
        (f"/v1/runs/{run}/stream", 200),
        (f"/v1/runs/{run}/stream?starting_after=x", 400),
        ("/v1/runs/run_none", 404),
        ("/healthz", 200),
        ("/", 200),
        ("/nothing", 404),
        ("/api/tags", 502),
    ):
        answer = await ask(rig, request("GET", path, *mine))
        assert_readable(answer, status)
    assert answer.headers["vary"] == "Origin"
    assert_readable(await ask(rig, request("DELETE", f"/v1/runs/{run}", *mine)), 200)
    if over:
        assert_readable(await ask(rig, post("ok", ORIGIN)), 401)
        assert_readable(await ask(rig, post("ok", ORIGIN, f"{BEARER}x")), 401)
    assert_readable(await ask(rig, post("ok", ORIGIN, "Host: evil.example")), 403)


async def test_sound_is_read_too_and_no_word_of_an_upstream_on_who_may(rigs, raw_upstream) -> None:
    """What passes as it comes has our fields; an upstream that lets every page in is not heard."""
    sound = b"\x00\xff" * 64
    theirs = b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n"

    async def play(peer: Peer) -> None:
        with suppress(asyncio.IncompleteReadError):
            while asked := await peer.request():
                is_sound = b"/speech" in asked
                kind, body = (b"audio/mpeg", sound) if is_sound else (b"application/json", b"{}")
                await peer.send(head % (kind, len(body), theirs), body)

    rig = await rig_for_pages(rigs, await raw_upstream(play))
    for path, body in (("/v1/audio/speech", sound), ("/v1/embeddings", b"{}")):
        values = {"stream": False} if path.endswith("embeddings") else {}
        answer = await ask(rig, post("m", ORIGIN, path=path, **values))
        assert_readable(answer, 200)
        assert answer.body == body
        plain = await ask(rig, post("m", path=path, **values))
        assert (plain.status, cross(plain)) == (200, {})


async def test_what_varies_already_varies_by_origin_too(rigs, scripted_upstream) -> None:
    """A cache keeps the page at / and the sentence at / apart, and this page's from another's."""
    rig = await rig_for_pages(rigs, scripted_upstream)
    for fields in ((ORIGIN,), ()):
        answer = await ask(rig, request("GET", "/", *fields))
        assert answer.headers["vary"] == "Accept, Origin"
        assert bool(cross(answer)) is bool(fields)


@pytest.mark.parametrize(
    "origins",
    [
        ("http://evil.example",),
        ("null",),
        ("",),
        (f"{APP}.evil.example",),
        (f"{APP}/",),
        (APP.upper(),),
        (APP, APP),
        (APP, "http://evil.example"),
        (f"{APP}, http://evil.example",),
        (f"{APP} http://evil.example",),
    ],
)
async def test_no_other_page_is_told_anything_or_changes_anything(
    rigs, scripted_upstream, origins: tuple[str, ...]
) -> None:
    """Not by a preflight, not by what it may ask without one, and no model is asked."""
    rig = await rig_for_pages(rigs, scripted_upstream)
    named = [f"Origin: {origin}" for origin in origins]
    preflight = (*named, "Access-Control-Request-Method: POST")
    for data, statuses in (
        (request("GET", "/v1/models", *named), {200, 400}),
        (request("OPTIONS", "/v1/chat/completions", *preflight), {405, 400}),
        (post("ok", *named), {403, 400}),
        (post("ok", *named, "Sec-Fetch-Site: same-origin"), {403, 400}),
    ):
        answer = await ask(rig, data)
        assert answer.status in statuses, data
        assert not cross(answer)
        if answer.status == 403:
            assert "allowed_origins" in answer.error["message"]
    assert not scripted_upstream.seen("ok")


async def test_without_the_setting_no_page_is_told_anything(rigs, scripted_upstream) -> None:
    """Off is the default; and it is so again at once when an origin is taken out."""
    rig = await rig_for_pages(rigs, scripted_upstream)
    client = await connect(rig)
    assert_readable(await client.ask(post("ok", ORIGIN)), 200)
    rig.reload(msgspec.structs.replace(rig.settings, allowed_origins=[]))
    answer = await client.ask(post("ok", ORIGIN))
    assert (answer.status, cross(answer)) == (403, {})
    answer = await client.ask(request("GET", "/v1/models", ORIGIN))
    assert (answer.status, cross(answer), answer.headers.get("vary")) == (200, {}, None)
    await client.close()


async def test_a_preflight_is_told_what_clients_send_and_no_more(rigs, scripted_upstream) -> None:
    """It comes without a token, by whatever name; what is not asked for is not told."""
    rig = await rig_for_pages(rigs, scripted_upstream, tokens=[TOKEN])
    asks = (ORIGIN, "Access-Control-Request-Method: POST")
    for path in ("/v1/chat/completions", "/v1/runs/run_0", "/nothing"):
        for host in ("127.0.0.1", "llm.example.com"):
            answer = await ask(
                rig,
                request(
                    "OPTIONS",
                    path,
                    *asks,
                    f"Host: {host}",
                    f"Access-Control-Request-Headers: {ASKED}, x-forwarded-for, cookie, a b, *",
                    "Access-Control-Request-Private-Network: true",
                ),
            )
            assert (answer.status, answer.body) == (204, b"")
            assert cross(answer) == {
                "access-control-allow-origin": APP,
                "access-control-allow-methods": "GET, POST, DELETE",
                "access-control-allow-headers": ", ".join(
                    name.strip().lower() for name in ASKED.split(",")
                ),
                "access-control-allow-private-network": "true",
                "access-control-max-age": "7200",
            }
            assert answer.headers["vary"] == "Origin, Access-Control-Request-Headers"
    bare = await ask(rig, request("OPTIONS", "/v1/models", *asks))
    assert not {"access-control-allow-headers", "access-control-allow-private-network"} & set(
        bare.headers
    )
    assert (await ask(rig, request("OPTIONS", "/v1/models", ORIGIN))).status == 401  # no preflight
    for odd in (("//x", "127.0.0.1"), ("/x", "user@127.0.0.1"), ("/x", "127.1")):
        answer = await ask(rig, request("OPTIONS", odd[0], *asks, f"Host: {odd[1]}"))
        assert (answer.status, cross(answer)) == (400, {})


async def test_a_preflight_lets_nothing_else_through(rigs, scripted_upstream) -> None:
    """What it carries besides is neither read nor asked, and the connection goes on in step."""
    rig = await rig_for_pages(rigs, scripted_upstream)
    hidden = post("ok", "Host: 127.0.0.1")
    asks = (ORIGIN, "Access-Control-Request-Method: POST")
    client = await connect(rig)
    data = request("OPTIONS", "/v1/chat/completions", *asks, body=hidden)
    assert (await client.ask(data)).status == 204
    assert (await client.ask(request("GET", "/v1/models", ORIGIN))).status == 200
    await client.close()
    many = ",".join(f"x-stainless-{n}" for n in range(400))
    answer = await ask(
        rig, request("OPTIONS", "/x", *asks, f"Access-Control-Request-Headers: {many}")
    )
    assert answer.headers["access-control-allow-headers"].count(",") == 63
    twice = (*asks, "Access-Control-Request-Method: GET")
    assert (await ask(rig, request("OPTIONS", "/v1/models", *twice))).status in {400, 405}
    assert not scripted_upstream.seen("ok")


# --- WebSockets, whose page can set no header ---------------------------------------------------


async def shake(rig: Rig, path: str, *fields: str) -> tuple[int, dict[str, str]]:
    """The status and the head of the answer to a handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    key = base64.b64encode(b"k" * 16).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *fields,
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    writer.close()
    heads = (line.partition(": ") for line in rest)
    return int(first.split()[1]), {name.lower(): value for name, _, value in heads}


@pytest.mark.parametrize(
    ("offered", "status", "chosen"),
    [
        (f"tidegate, tidegate-token.{KEY}", 101, "tidegate"),
        (f"realtime,openai-insecure-api-key.{KEY},openai-beta.realtime-v1", 101, "realtime"),
        (f"tidegate-token.{KEY}, tidegate", 101, "tidegate"),
        (f"tidegate-token.{KEY}", 101, None),
        (f"other, tidegate-token.{KEY}", 101, None),
        (f"tidegate, tidegate-token.{KEY}x", 401, None),
        (f"tidegate, tidegate-token.{KEY}, openai-insecure-api-key.{KEY}", 101, "tidegate"),
        (f"tidegate, {KEY}", 401, None),
        ("tidegate, tidegate-token.", 401, None),
        ("tidegate", 401, None),
    ],
)
async def test_a_websocket_carries_its_token_as_a_subprotocol(
    rigs, scripted_upstream, caplog, offered: str, status: int, chosen: str | None
) -> None:
    """In our spelling and in OpenAI's; what is chosen is no token, and no log has it."""
    caplog.set_level("DEBUG")
    rig = await rig_for_pages(rigs, scripted_upstream, tokens=[TOKEN])
    protocols = f"Sec-WebSocket-Protocol: {offered}"
    got, head = await shake(rig, "/v1/responses", ORIGIN, protocols)
    assert (got, head.get("sec-websocket-protocol")) == (status, chosen)
    assert KEY not in str(head)
    assert KEY not in caplog.text
    got, _ = await shake(rig, "/v1/responses", "Origin: http://evil.example", protocols)
    assert got == 403


async def test_a_subprotocol_is_a_token_for_a_websocket_alone(rigs, scripted_upstream) -> None:
    """Nothing else is let in by it, and no token in a URL ever."""
    rig = await rig_for_pages(rigs, scripted_upstream, tokens=[TOKEN])
    protocols = f"Sec-WebSocket-Protocol: tidegate, tidegate-token.{KEY}"
    assert (await ask(rig, request("GET", "/v1/models", protocols))).status == 401
    assert (await ask(rig, post("ok", protocols))).status == 401
    for query in (f"token={KEY}", f"api_key={KEY}", f"tidegate-token.{KEY}"):
        assert (await shake(rig, f"/v1/responses?{query}", ORIGIN))[0] == 401


async def test_an_allowed_page_reads_a_run_over_a_websocket(rigs, scripted_upstream) -> None:
    """To its last word."""
    rig = await rig_for_pages(rigs, scripted_upstream, tokens=[TOKEN])
    run = (await chat(rig.base_url, "ok", headers={"Authorization": f"Bearer {KEY}"})).run_id
    protocols = ("tidegate", f"tidegate-token.{KEY}")
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"{rig.base_url}/v1/runs/{run}/stream", protocols=protocols, origin=APP
        ) as socket,
    ):
        assert socket.protocol == "tidegate"
        messages = [json.loads(message.data) async for message in socket]
    assert messages[-1] == {"state": "completed", "reason": None}
