"""Runs: replayed byte for byte, joined, resumed, cancelled, and its owner's alone."""

import asyncio
import json

import aiohttp
import pytest

from fakes.client import (
    Stream,
    chat,
    get,
    numbers,
    open_chat,
    replay,
    without_ids,
)
from fakes.gateway import Gateway
from fakes.machine import until
from fakes.scenario import toml, wait_idle
from fakes.upstream import ScriptedUpstream


@pytest.mark.parametrize(
    "model", ["ok", "numbered:300:0", "crlf", "one-byte", "finish-no-done", "drop:3", "bulk:300"]
)
async def test_a_replay_is_what_the_creator_was_sent(running: Gateway, model: str) -> None:
    """Byte for byte, the error event and the marker included; and as often as one likes."""
    answer = await chat(running.base_url, model)
    assert answer.status == 200
    for _ in range(2):
        again = await replay(running.base_url, answer.run_id)
        assert without_ids(bytes(again.body)) == bytes(answer.body)
        assert [event.id for event in again.events] == [str(i) for i in range(len(again.events))]
        assert again.clean
    assert again.headers["content-type"].startswith("text/event-stream")


async def test_a_replay_starts_behind_the_cursor(running: Gateway) -> None:
    """`starting_after` and `Last-Event-ID` are exclusive, -1 is the beginning, the end is a 204."""
    answer = await chat(running.base_url, "numbered:20:0")
    run = answer.run_id
    last = len(answer.events) - 1
    for after in (0, 7, last - 1):
        by_query = await replay(running.base_url, run, after=after)
        by_header = await get(
            running.base_url, f"/v1/runs/{run}/stream", headers={"Last-Event-ID": str(after)}
        )
        assert by_query.body == by_header.body
        assert by_query.events[0].id == str(after + 1)
        assert [e.data for e in by_query.events] == [e.data for e in answer.events[after + 1 :]]
    whole = await replay(running.base_url, run, after=-1)
    assert whole.events[0].id == "0"
    assert (await replay(running.base_url, run, after=last)).status == 204
    assert (await replay(running.base_url, run, after=last + 1)).status == 400
    nonsense = await get(running.base_url, f"/v1/runs/{run}/stream?starting_after=x")
    assert nonsense.status == 400


@pytest.mark.smoke
async def test_readers_join_half_way_over_both_roads(running: Gateway) -> None:
    """Two more readers, one over SSE and one over WebSocket, end with the identical events."""
    creator = await open_chat(running.base_url, "numbered:200:5")
    await creator.read_events(60)
    joined = asyncio.create_task(replay(running.base_url, creator.run_id))
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{running.base_url}/v1/runs/{creator.run_id}/stream") as socket,
    ):
        over_socket = [json.loads(message.data) async for message in socket]
    await creator.read_rest()
    await creator.close()
    sse = await joined
    sent = [event.data.decode() for event in creator.events]
    assert numbers(creator.events) == list(range(200))
    assert [event.data.decode() for event in sse.events] == sent
    assert over_socket[-1] == {"state": "completed", "reason": None}
    assert [m["data"] for m in over_socket[:-1]] == sent
    assert [m["seq"] for m in over_socket[:-1]] == list(range(len(sent)))
    assert {m["event"] for m in over_socket[:-1]} == {"message"}


async def test_a_killed_reader_resumes_without_gap_or_repeat(running: Gateway) -> None:
    """The creator is killed half-way, comes back within the grace, and has each event once."""
    creator = await open_chat(running.base_url, "numbered:200:5")
    seen = list(await creator.read_events(50))
    run = creator.run_id
    await creator.vanish()
    second = await Stream.open(
        running.base_url, f"/v1/runs/{run}/stream?starting_after={len(seen) - 1}"
    )
    seen += list(await second.read_events(50))
    await second.vanish()
    third = await get(
        running.base_url, f"/v1/runs/{run}/stream", headers={"Last-Event-ID": str(len(seen) - 1)}
    )
    seen += third.events
    assert numbers(seen) == list(range(200))
    assert [event.id for event in seen[50:]] == [str(i) for i in range(50, len(seen))]
    assert third.events[-1].data == b"[DONE]"


async def test_what_was_evicted_is_gone_by_name(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """With a small window the beginning is a 410 that names the oldest seq still held."""
    running = gateway(toml(("box", scripted_upstream.url), limits='window = "128KiB"'))
    answer = await chat(running.base_url, "bulk:1000")
    assert numbers(answer.events) == list(range(1000))
    gone = await replay(running.base_url, answer.run_id, after=0)
    assert gone.status == 410
    error = gone.json()["error"]  # type: ignore[index]
    assert error["code"] == "cursor_evicted"
    shown = (await get(running.base_url, f"/v1/runs/{answer.run_id}")).json()
    oldest = shown["first_seq"]  # type: ignore[index]
    assert oldest > 0
    assert str(oldest) in error["message"]
    kept = await replay(running.base_url, answer.run_id)
    assert kept.events[0].id == str(oldest)
    assert [e.data for e in kept.events] == [e.data for e in answer.events[oldest:]]


async def test_a_run_belongs_to_the_key_that_made_it(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Another key finds nothing: not to see, not to stream, not to cancel, not in the list."""
    running = gateway(toml(("box", scripted_upstream.url)))
    alice, bob = (
        {"Authorization": f"Bearer {running.command('token', 'new', name).stdout.strip()}"}
        for name in ("alice", "bob")
    )
    answer = await chat(running.base_url, "ok", headers=alice)
    run = f"/v1/runs/{answer.run_id}"
    assert (await get(running.base_url, run)).status == 401
    assert (await get(running.base_url, run, headers=alice)).status == 200
    for path, method in ((run, "GET"), (f"{run}/stream", "GET"), (f"{run}/cancel", "POST")):
        assert (await get(running.base_url, path, method=method, headers=bob)).status == 404
    theirs = (await get(running.base_url, "/v1/runs", headers=bob)).json()
    assert theirs == {"object": "list", "data": []}
    own = (await get(running.base_url, "/v1/runs", headers=alice)).json()
    assert [each["id"] for each in own["data"]] == [answer.run_id]  # type: ignore[index]


async def test_a_run_is_shown_as_it_is(gateway, scripted_upstream: ScriptedUpstream) -> None:
    """The record has the promised members, and they are true while it streams and afterwards."""
    running = gateway(toml(("box", scripted_upstream.url)))
    stream = await open_chat(running.base_url, "gap:700")
    await stream.read_events(2)
    (shown,) = (await get(running.base_url, "/v1/runs")).json()["data"]  # type: ignore[index]
    assert shown["id"] == stream.run_id
    assert shown["object"] == "run"
    assert (shown["state"], shown["reason"], shown["ended"]) == ("streaming", None, None)
    assert (shown["model"], shown["upstream"], shown["attempts"]) == ("gap:700", "box", 1)
    assert (shown["first_seq"], shown["next_seq"], shown["subscribers"]) == (0, 2, 1)
    assert shown["bytes"] > 0
    await stream.read_rest()
    await stream.close()
    after = (await get(running.base_url, f"/v1/runs/{stream.run_id}")).json()
    assert (after["state"], after["reason"]) == ("completed", None)  # type: ignore[index]
    assert after["ended"] >= after["created"]  # type: ignore[index]
    assert (await get(running.base_url, "/v1/runs/run_unknown")).status == 404


async def test_a_cancel_ends_it_for_everybody(gateway, scripted_upstream: ScriptedUpstream) -> None:
    """All readers are told why, the upstream is let go at once, and a second cancel is no error."""
    running = gateway(toml(("box", scripted_upstream.url), limits="close_flush_s = 1.0"))
    creator = await open_chat(running.base_url, "stuck:10")
    await creator.read_events(5)
    joined = asyncio.create_task(replay(running.base_url, creator.run_id))
    path = f"/v1/runs/{creator.run_id}/cancel"
    first = (await get(running.base_url, path, method="POST")).json()
    assert first["state"] == "cancelled"  # type: ignore[index]
    assert "cancelled by client" in first["reason"]  # type: ignore[index]
    second = await get(running.base_url, path, method="POST")
    assert second.status == 200
    await creator.read_rest()
    await creator.close()
    for stream in (creator, await joined):
        error = stream.events[-1].error
        assert error is not None
        assert "cancelled by client" in error["message"]
        assert b"[DONE]" not in stream.body
    await until(lambda: scripted_upstream.active == 0, 2, "the upstream was let go")
    await wait_idle(running, scripted_upstream)
