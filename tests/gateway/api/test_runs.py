"""Runs are looked at, resumed and cancelled by their owner; over WebSocket: `test_run_socket`."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from fakes.client import Stream, chat, get, open_chat
from fakes.machine import until
from fakes.upstream import OK, numbered
from gateway.gateway_rig import DEADLINE_S, Peer, Rig, Tap
from tidegate.core.settings import Token

ON_BOTH_LOOPS = True


async def ask(rig: Rig, path: str, method: str = "GET", **headers: str) -> Stream:
    return await asyncio.wait_for(
        get(rig.base_url, path, method=method, headers=headers), DEADLINE_S
    )


def code(stream: Stream) -> str:
    return str(json.loads(stream.body)["error"]["code"])


# --- where to start -------------------------------------------------------------------------------


async def test_a_cursor_may_come_as_query_or_header(rigs, scripted_upstream) -> None:
    """Exclusive; absent, empty or -1 is the beginning; the query counts before the header."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "ok")).run_id
    path = f"/v1/runs/{run}/stream"
    last = len(OK) - 1
    for query, header, first in (
        ("", None, 0),
        ("?starting_after=-1", None, 0),
        ("?starting_after=", None, 0),
        ("?starting_after=0", None, 1),
        ("?starting_after=00002", None, 3),
        (f"?starting_after={last - 1}", None, last),
        ("", "-1", 0),
        ("", "2", 3),
        ("?starting_after=0", "4", 1),
        ("?starting_after=-1", "4", 0),
    ):
        headers = {} if header is None else {"Last-Event-ID": header}
        answer = await ask(rig, path + query, **headers)
        assert answer.status == 200
        assert answer.headers["x-run-id"] == run
        assert [event.id for event in answer.events] == [str(n) for n in range(first, last + 1)]
        assert answer.clean


async def test_at_the_end_of_a_finished_run_there_is_nothing(rigs, scripted_upstream) -> None:
    """204, which tells an EventSource not to come back; the connection goes on."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "ok")).run_id
    answer = await ask(rig, f"/v1/runs/{run}/stream?starting_after={len(OK) - 1}")
    assert (answer.status, bytes(answer.body)) == (204, b"")


@pytest.mark.parametrize(
    "cursor",
    [
        *("x", "1.5", "-2", "+1", "1e3", "0x1", "1,2", "None", "%20", "%D9%A1", "1%002"),
        *("9" * 17, "9" * 5000, "9007199254740992"),
    ],
)
async def test_a_cursor_that_is_no_number_is_a_400(rigs, scripted_upstream, cursor: str) -> None:
    """Named, and never a crash."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "ok")).run_id
    answer = await ask(rig, f"/v1/runs/{run}/stream?starting_after={cursor}")
    assert (answer.status, code(answer)) == (400, "bad_number")


async def test_a_cursor_in_the_future_is_a_400(rigs, raw_upstream) -> None:
    """Of a run that goes on, and of one that is over; the error names the next event."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play))
    stream = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await stream.read_events(2)
    for _ in range(2):
        run = rig.relay().run
        answer = await ask(rig, f"/v1/runs/{run.id}/stream?starting_after={run.window.next_seq}")
        assert (answer.status, code(answer)) == (400, "cursor_ahead")
        assert str(run.window.next_seq) in json.loads(answer.body)["error"]["message"]
        tap.finish()
        await stream.read_rest()


async def test_what_was_evicted_is_a_410(rigs, raw_upstream) -> None:
    """Without a cursor one gets what is left."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), window_bytes=150_000)
    stream = await open_chat(rig.base_url, "m")
    tap.send(*(numbered(n, 1000) for n in range(600)))
    tap.finish()
    await stream.read_all()
    first = rig.relay().run.window.first_seq
    assert 0 < first < 600
    path = f"/v1/runs/{stream.run_id}/stream"
    for after in (0, first - 2):
        gone = await ask(rig, f"{path}?starting_after={after}")
        assert (gone.status, code(gone)) == (410, "cursor_evicted")
        assert str(first) in json.loads(gone.body)["error"]["message"]
    for query in ("", f"?starting_after={first - 1}"):
        kept = await ask(rig, path + query)
        assert [event.id for event in kept.events] == [str(n) for n in range(first, 603)]


async def test_a_plain_run_is_no_stream(rigs, scripted_upstream) -> None:
    """400 while it is there."""
    rig = await rigs(scripted_upstream)
    await open_chat(rig.base_url, "slow-json:60000", stream=False)
    await until(lambda: rig.gateway.registry.active_count, DEADLINE_S, "it is there")
    answer = await ask(rig, f"/v1/runs/{rig.relay().run.id}/stream")
    assert (answer.status, code(answer)) == (400, "no_stream")


async def test_a_reader_may_come_before_the_first_output(rigs, raw_upstream) -> None:
    """It has its status at once, and the events when they come."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play))
    creator = await open_chat(rig.base_url, "m")
    await until(lambda: rig.gateway.registry.active_count, DEADLINE_S, "it is there")
    reader = await Stream.open(rig.base_url, f"/v1/runs/{rig.relay().run.id}/stream")
    await asyncio.wait_for(reader.head(), DEADLINE_S)
    tap.send(numbered(0))
    tap.finish()
    for stream in (creator, reader):
        await asyncio.wait_for(stream.read_all(), DEADLINE_S)
        assert [event.data for event in stream.events][-1] == b"[DONE]"
        assert len(stream.events) == 4


async def test_a_failure_before_the_first_output_is_told_to_both(rigs, raw_upstream) -> None:
    """The creator has a status, a second reader an error event, and a replay has that too."""
    go_on = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()

    rig = await rigs(await raw_upstream(play))
    creator = await open_chat(rig.base_url, "m")
    await until(lambda: rig.gateway.registry.active_count, DEADLINE_S, "it is there")
    run = rig.relay().run
    reader = await Stream.open(rig.base_url, f"/v1/runs/{run.id}/stream")
    await reader.head()
    go_on.set()
    await creator.read_all()
    await reader.read_all()
    assert creator.status == 502
    replay = await ask(rig, f"/v1/runs/{run.id}/stream")
    for stream in (reader, replay):
        (event,) = stream.events
        assert event.id == "0"
        assert event.error is not None
        assert event.error["message"].startswith(f"{run.reason}; ")
        assert stream.clean


@pytest.mark.parametrize("after", [-1, 2])
async def test_head_of_a_stream_is_refused(rigs, scripted_upstream, after: int) -> None:
    """No body may follow a HEAD."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "ok")).run_id
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    path = f"/v1/runs/{run}/stream?starting_after={after}"
    writer.write(f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    raw = await asyncio.wait_for(reader.read(), DEADLINE_S)
    assert raw.startswith(b"HTTP/1.1 405 ")
    assert raw.endswith(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()


# --- whose it is ----------------------------------------------------------------------------------


def token(name: str) -> Token:
    return Token(name=name, sha256=hashlib.sha256(name.encode()).hexdigest())


async def test_a_run_is_its_owner_s(rigs, scripted_upstream) -> None:
    """For another key it does not exist, on any route; without a key there is no answer at all."""
    rig = await rigs(scripted_upstream, tokens=[token("alice"), token("bob")])
    alice, bob = {"Authorization": "Bearer alice"}, {"x-api-key": "bob"}
    run = (await chat(rig.base_url, "ok", headers=alice)).run_id
    paths = [
        (f"/v1/runs/{run}", "GET"),
        (f"/v1/runs/{run}/stream", "GET"),
        (f"/v1/runs/{run}/cancel", "POST"),
    ]
    for path, method in paths:
        for headers, status in ((alice, 200), (bob, 404), ({}, 401)):
            answer = await ask(rig, path, method, **headers)
            assert answer.status == status
            assert status != 404 or code(answer) == "run_not_found"
    for headers, ids in ((alice, [run]), (bob, [])):
        listed = json.loads((await ask(rig, "/v1/runs", **headers)).body)
        assert [each["id"] for each in listed["data"]] == ids


async def test_a_run_without_a_key_is_not_shown_to_a_key(rigs, scripted_upstream) -> None:
    """Made before there was a token, it is not shown to who has one."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "ok")).run_id
    rig.tokens = [token("alice")]
    rig.reload(rig.settings)
    assert (await ask(rig, f"/v1/runs/{run}", Authorization="Bearer alice")).status == 404


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1", ""])
async def test_a_listing_has_a_limit(rigs, scripted_upstream, limit: str) -> None:
    """From 1 to 1000."""
    rig = await rigs(scripted_upstream)
    assert (await ask(rig, f"/v1/runs?limit={limit}")).status == 400
    for _ in range(3):
        await chat(rig.base_url, "ok")
    assert len(json.loads((await ask(rig, "/v1/runs?limit=2")).body)["data"]) == 2


# --- cancelling -----------------------------------------------------------------------------------


async def test_cancelling_twice_is_cancelling(rigs, raw_upstream) -> None:
    """The state and the reason stay what they were, also where the answer was complete."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), close_flush_s=5.0)
    stream = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await stream.read_events(2)
    path = f"/v1/runs/{stream.run_id}/cancel"
    for _ in range(3):
        shown = json.loads((await ask(rig, path, "POST")).body)
        assert (shown["state"], shown["reason"]) == ("cancelled", "cancelled by client")
        assert shown["next_seq"] == 3
    await stream.read_rest()
    assert [event.error is not None for event in stream.events] == [False, False, True]


async def test_cancelling_what_is_complete_changes_nothing(rigs, scripted_upstream) -> None:
    """It is shown as it is."""
    rig = await rigs(scripted_upstream)
    run = (await chat(rig.base_url, "ok")).run_id
    shown = json.loads((await ask(rig, f"/v1/runs/{run}/cancel", "POST")).body)
    assert (shown["state"], shown["reason"]) == ("completed", None)
    assert (await ask(rig, f"/v1/runs/{run}/cancel")).status == 405


@pytest.mark.parametrize("run", ["run_x", "x" * 80, "-", "_"])
async def test_what_there_is_not_is_a_404(rigs, scripted_upstream, run: str) -> None:
    """On every route."""
    rig = await rigs(scripted_upstream)
    for verb, method in (("", "GET"), ("/stream", "GET"), ("/cancel", "POST")):
        answer = await ask(rig, f"/v1/runs/{run}{verb}", method)
        assert (answer.status, code(answer)) == (404, "run_not_found")
