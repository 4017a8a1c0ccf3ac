"""What a token of each scope may do: on every route, on every road, and through the other one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from fakes.client import Stream, chat, get, open_chat
from fakes.upstream import ScriptedUpstream
from gateway.gateway_rig import DEADLINE_S, ROADS, Rig, Rigs, scoped, two_generations
from gateway.lane_rig import connect, post
from gateway.records.records_rig import new_places, release
from tidegate.gateway.api import openapi
from tidegate.gateway.api.routes import ROUTES
from tidegate.gateway.relay.handover import OWNER_HEADER

pytestmark = pytest.mark.parametrize("rigs", ROADS, indirect=True)

USE, OTHER, READ, OWNER, NEWER = "tg-use", "tg-other", "tg-read", "tg-owner", "tg-newer"
TOKENS = [
    scoped(USE),
    scoped(OTHER, name="other"),
    scoped(READ, "read"),
    scoped(OWNER, "owner"),
    scoped(NEWER, "audit"),
]
OPEN = {"GET /", "GET /page/{id}", "GET /healthz", "GET /readyz", "GET /openapi.json"}
# All that a token may do that is only there to look; what is new here asks for more by itself.
READABLE = {
    *("GET /v1/runs", "GET /v1/runs/{id}", "GET /v1/models", "GET /v1/models/{id}"),
    *(
        "GET /v1/usage",
        "GET /v1/live",
        "GET /metrics",
        "GET /repairs",
        "GET /api/tags",
        "GET /api/ps",
        "GET /api/version",
    ),
}
BODY = {"model": "ok", "messages": [], "input": "x", "prompt": "x", "stream": True, "query": "x"}
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
UPGRADE["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(
    rig: Rig, path: str, key: str, method: str = "GET", body: object = None, **headers: str
) -> Stream:
    return await asyncio.wait_for(
        get(rig.base_url, path, body, method=method, headers=bearer(key) | headers), DEADLINE_S
    )


async def listed(rig: Rig, key: str) -> list[dict[str, Any]]:
    answer = await ask(rig, "/v1/runs", key)
    assert answer.status == 200
    return list(json.loads(answer.body)["data"])


def said(path: str, body: bytes | bytearray) -> str:
    """The words of an error, however this route's clients read it."""
    error = json.loads(body)["error"]
    if path.startswith("/api/"):
        return str(error)
    if not path.startswith("/v1/messages"):
        assert error["code"] == "scope_not_allowed"
    return str(error["message"])


def posts(upstream: ScriptedUpstream) -> int:
    """How often a model was asked."""
    return sum(request.method == "POST" for request in upstream.requests)


# --- every route ----------------------------------------------------------------------------------


async def test_each_scope_gets_what_it_is_for_on_every_route(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """Anything else is a 403 in the route's own words that says which scope is needed."""
    rig = await rigs(scripted_upstream, tokens=TOKENS)
    for key in (USE, READ, OWNER, NEWER):
        async with aiohttp.ClientSession(rig.base_url, headers=bearer(key)) as session:
            for route in ROUTES:
                template, asked = openapi.template(route.path), posts(scripted_upstream)
                name, path = f"{route.method} {template}", template.replace("{id}", "ok")
                may = name in OPEN or key in {USE, OWNER} or (key == READ and name in READABLE)
                for method in [route.method, *(["HEAD"] if route.method == "GET" else [])]:
                    body = BODY if method == "POST" else None
                    async with session.request(method, path, json=body) as answer:
                        endless = answer.content_type == "text/event-stream" and method == "GET"
                        told = b"" if endless else await answer.read()
                    assert (answer.status != 403) is may, f"{method} {path} with {key}"
                    if not may and told:
                        expected = "--scope use" if key == READ else "does not know"
                        assert expected in said(path, told), path
                assert may or posts(scripted_upstream) == asked


async def test_only_to_look_never_reaches_a_model(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """By no way of asking: on a connection that was let in before, or over a WebSocket."""
    rig = await rigs(scripted_upstream, tokens=TOKENS)
    client = await connect(rig)
    assert (await client.ask(post("ok", f"x-api-key: {USE}"))).status == 200
    asked = posts(scripted_upstream)
    for _ in range(2):
        answer = await client.ask(post("ok", f"x-api-key: {READ}"))
        assert (answer.status, answer.error["code"]) == (403, "scope_not_allowed")
    assert (await client.ask(post("ok", f"x-api-key: {USE}"))).status == 200
    await client.close()
    for path in ("/v1/responses", f"/v1/runs/{rig.relay().run.id}/stream"):
        refused = await ask(rig, path, READ, **UPGRADE)
        assert (refused.status, "--scope use" in said(path, refused.body)) == (403, True)
    assert posts(scripted_upstream) == asked + 1


# --- whose runs -----------------------------------------------------------------------------------


async def test_to_look_is_to_see_every_run_and_read_none(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """Listed with the names of their tokens, never with a hash; an owner sees as much."""
    rig = await rigs(scripted_upstream, tokens=TOKENS)
    runs = [(await chat(rig.base_url, "ok", headers=bearer(key))).run_id for key in (USE, OTHER)]
    runs.append((await chat(rig.base_url, "ok", headers=bearer(OWNER))).run_id)
    names = dict(zip(runs, ("use", "other", "owner"), strict=True))
    for key in (READ, OWNER):
        assert {run["id"]: run["token"] for run in await listed(rig, key)} == names
        for run, name in names.items():
            shown = await ask(rig, f"/v1/runs/{run}", key)
            assert (shown.status, json.loads(shown.body)["token"]) == (200, name)
            for token in TOKENS:
                assert token.sha256.encode() not in shown.body
    for key, own in ((USE, runs[0]), (OTHER, runs[1])):
        assert [(run["id"], run["token"]) for run in await listed(rig, key)] == [(own, names[own])]
    for run in runs[:2]:
        assert (await ask(rig, f"/v1/runs/{run}/stream", READ)).status == 403
        assert (await ask(rig, f"/v1/runs/{run}/stream", OWNER)).status == 404
    assert (await ask(rig, f"/v1/runs/{runs[2]}/stream", OWNER)).clean


async def test_an_owner_ends_any_run_and_only_an_owner(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """What another token asked for goes on, whoever else would end it."""
    rig = await rigs(scripted_upstream, tokens=TOKENS)
    stream = await open_chat(rig.base_url, "numbered:500:20", headers=bearer(USE))
    await stream.read_events(2)
    path = f"/v1/runs/{stream.run_id}/cancel"
    assert [(await ask(rig, path, key, "POST")).status for key in (READ, OTHER)] == [403, 404]
    assert rig.relay().run.reason is None
    shown = json.loads((await ask(rig, path, OWNER, "POST")).body)
    assert (shown["state"], shown["token"]) == ("cancelled", "use")
    await stream.read_rest()
    assert stream.events[-1].error is not None


async def test_a_revoked_tokens_runs_are_seen_without_its_name(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """So are those from before there was a token."""
    rig = await rigs(scripted_upstream)
    await chat(rig.base_url, "ok")
    rig.tokens = TOKENS
    rig.reload(rig.settings)
    await chat(rig.base_url, "ok", headers=bearer(USE))
    rig.tokens = TOKENS[2:]
    rig.reload(rig.settings)
    assert [run["token"] for run in await listed(rig, READ)] == [None, None]


async def test_what_only_the_journal_knows_is_held_to_the_same(
    rigs: Rigs, scripted_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Seen by who looks after all, read by its own token alone, forgotten by that and an owner."""
    rig = await rigs(scripted_upstream, tokens=TOKENS, places=new_places(tmp_path))
    runs = [(await chat(rig.base_url, "ok", headers=bearer(USE))).run_id for _ in range(2)]
    for key, expected in (
        (READ, {"": 200, "/stream": 403, "/cancel": 403, "DELETE": 403}),
        (OTHER, {"": 404, "/stream": 404, "/cancel": 404, "DELETE": 404}),
        (OWNER, {"/stream": 404, "": 200, "/cancel": 200, "DELETE": 200}),
        (USE, {"": 404, "/stream": 404}),
    ):
        for way, status in expected.items():
            await release(rig)
            method = {"/cancel": "POST", "DELETE": "DELETE"}.get(way, "GET")
            path = f"/v1/runs/{runs[0]}{way.removeprefix('DELETE')}"
            assert (await ask(rig, path, key, method)).status == status, f"{way} with {key}"
    await release(rig)
    for key, seen in ((READ, runs[1:]), (OWNER, runs[1:]), (USE, runs[1:]), (OTHER, [])):
        names = {run["id"]: (run["token"], run["place"]) for run in await listed(rig, key)}
        assert names == dict.fromkeys(seen, ("use", "journal"))
    assert (await ask(rig, f"/v1/runs/{runs[1]}/stream", USE)).clean


# --- two at once, and what changes ----------------------------------------------------------------


@pytest.mark.parametrize("first", [USE, READ, OWNER, NEWER])
@pytest.mark.parametrize("second", [USE, READ, OWNER, NEWER])
async def test_two_keys_in_one_request_never_add_up(
    rigs: Rigs, scripted_upstream: ScriptedUpstream, first: str, second: str
) -> None:
    """Two that are valid are none; one beside nonsense may do what it may alone."""
    rig = await rigs(scripted_upstream, tokens=TOKENS)
    for fields in (
        (f"Authorization: Bearer {first}", f"x-api-key: {second}"),
        (f"x-api-key: {first}", f"x-api-key: {second}"),
        (f"Authorization: Bearer {first}", f"Authorization: Bearer {second}"),
    ):
        client = await connect(rig)
        for data in (post("ok", *fields), post("ok", *fields, stream=False)):
            status = (await client.ask(data)).status
            assert status == (401 if first != second else 200 if first in {USE, OWNER} else 403)
        await client.close()
    beside = await ask(rig, "/v1/chat/completions", first, "POST", BODY, **{"x-api-key": "sk-none"})
    assert beside.status == (200 if first in {USE, OWNER} else 403)


async def test_a_key_that_comes_to_be_for_less_counts_at_once(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """Though its head was let in before, on the same connection; and so does one for more."""
    rig = await rigs(scripted_upstream, tokens=[scoped(USE)])
    client = await connect(rig)
    data = post("ok", f"Authorization: Bearer {USE}")
    for scope, status in (("use", 200), ("read", 403), ("audit", 403), ("owner", 200)):
        rig.tokens = [scoped(USE, scope)]
        rig.reload(rig.settings)
        assert (await client.ask(data)).status == status
        looked = (await ask(rig, "/v1/runs", USE)).status
        assert looked == (403 if scope == "audit" else 200)
    assert (await client.ask(data)).status == 200
    await client.close()


async def test_a_key_that_is_for_looking_is_not_braked(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """It is no wrong one, however often it is refused."""
    rig = await rigs(scripted_upstream, tokens=TOKENS)
    for _ in range(15):
        assert (await ask(rig, "/v1/chat/completions", READ, "POST", BODY)).status == 403
    assert not rig.gateway._brake._tries


@pytest.mark.parametrize("scope", ["read", "owner", "audit"])
async def test_a_scope_that_is_lost_or_changed_on_the_way_lets_nothing_in(
    rigs: Rigs, scripted_upstream: ScriptedUpstream, scope: str
) -> None:
    """As where a program that knows no scopes wrote the file, or a hand did; also the other way."""
    made = scoped(USE, scope)
    for other in {"use", "read", "owner", "audit"} - {scope}:
        changed = replace(made, scope=other)
        rig = await rigs(scripted_upstream, tokens=[changed, scoped(OTHER)])
        for path, method, body in (
            ("/v1/runs", "GET", None),
            ("/v1/chat/completions", "POST", BODY),
        ):
            assert (await ask(rig, path, USE, method, body)).status == 401
    rig.tokens = [replace(scoped(USE), scope=scope)]
    rig.reload(rig.settings)
    assert (await ask(rig, "/v1/runs", USE)).status == 401


# --- through the other generation -----------------------------------------------------------------


async def test_a_draining_generations_runs_are_seen_and_ended(
    rigs: Rigs, scripted_upstream: ScriptedUpstream
) -> None:
    """The same through the other generation, with the same names; its text stays its owner's."""
    draining, serving = await two_generations(rigs, scripted_upstream)
    for rig in (draining, serving):
        rig.tokens = TOKENS
        rig.reload(rig.settings)
    streams = [
        await open_chat(draining.base_url, "numbered:500:20", headers=bearer(key))
        for key in (USE, OTHER)
    ]
    for stream in streams:
        await stream.read_events(2)
    first, second = (stream.run_id for stream in streams)
    for key in (READ, OWNER):
        names = {run["id"]: run["token"] for run in await listed(serving, key)}
        assert names == {first: "use", second: "other"}
        shown = json.loads((await ask(serving, f"/v1/runs/{first}", key)).body)
        assert (shown["state"], shown["token"]) == ("streaming", "use")
    assert [run["id"] for run in await listed(serving, USE)] == [first]
    assert (await ask(serving, f"/v1/runs/{second}", USE)).status == 404
    assert (await ask(serving, f"/v1/runs/{first}/stream", READ)).status == 403
    assert (await ask(serving, f"/v1/runs/{first}/stream", OWNER)).status == 404
    async with aiohttp.ClientSession(headers=bearer(OWNER)) as session:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
            await session.ws_connect(f"{serving.base_url}/v1/runs/{first}/stream")
    path = f"/v1/runs/{first}/cancel"
    assert [(await ask(serving, path, key, "POST")).status for key in (READ, OTHER)] == [403, 404]
    shown = json.loads((await ask(serving, path, OWNER, "POST")).body)
    assert (shown["state"], shown["token"]) == ("cancelled", "use")
    for stream in streams:
        await ask(serving, f"/v1/runs/{stream.run_id}/cancel", OWNER, "POST")
        await stream.read_rest()


async def test_a_generation_that_knows_no_scopes_shows_only_what_is_ones_own(
    rigs: Rigs, scripted_upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads whose token it is and nothing else of it: others' runs are not there for anyone."""
    draining, serving = await two_generations(rigs, scripted_upstream)
    for rig in (draining, serving):
        rig.tokens = TOKENS
        rig.reload(rig.settings)
    monkeypatch.setattr("tidegate.gateway.api.routes.SCOPE_HEADER", "x-unheard-of")
    stream = await open_chat(draining.base_url, "numbered:500:20", headers=bearer(USE))
    await stream.read_events(2)
    path = f"/v1/runs/{stream.run_id}"
    for key in (READ, OWNER):
        assert await listed(serving, key) == []
        assert (await ask(serving, path, key)).status == 404
    assert (await ask(serving, f"{path}/cancel", OWNER, "POST")).status == 404
    assert (await ask(serving, f"{path}/cancel", USE, "POST")).status == 200
    await stream.read_rest()


@pytest.mark.parametrize("scope", ["audit", "", "read", "owner", "use,owner"])
async def test_what_another_generation_says_it_may_is_checked(
    rigs: Rigs, scripted_upstream: ScriptedUpstream, scope: str
) -> None:
    """One of a newer version may ask for a scope that is not known here: it gets nothing."""
    rig = await rigs(scripted_upstream, peer=True, tokens=TOKENS)
    run = (await chat(rig.base_url, "ok", headers=bearer(USE))).run_id
    headers = {OWNER_HEADER: "f" * 64, "x-tidegate-scope": scope}
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(rig.peer_socket), headers=headers
    ) as session:
        statuses = []
        for method, path in (("GET", f"/v1/runs/{run}"), ("POST", f"/v1/runs/{run}/cancel")):
            async with session.request(method, f"http://peer{path}") as answer:
                statuses.append(answer.status)
        async with session.get(f"http://peer/v1/runs/{run}/stream") as answer:
            statuses.append(answer.status)
    expected = {"read": [200, 403, 403], "owner": [200, 200, 404]}
    assert statuses == expected.get(scope, [403, 403, 403])
