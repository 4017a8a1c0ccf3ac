"""Runs that memory let go of, and those whose worker died: found, read on, listed, forgotten."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from fakes.client import Stream, chat, get, open_chat, replay, without_ids
from fakes.machine import until
from fakes.upstream import DONE, OK, ROLE, numbered
from gateway.gateway_rig import DEADLINE_S, Rig, Tap, two_generations
from gateway.records.records_rig import (
    bytes_on_disk,
    found,
    leave_behind,
    new_places,
    release,
    rows,
    under_way,
)
from gateway.responses_rig import CREATED, WORDS, sends
from gateway.responses_rig import DONE as RESPONSE_DONE
from gateway.responses_rig import ask as ask_response
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.settings import Journal, Token
from tidegate.gateway.records import recall

ON_EVERY_ROAD = True
BEGUN = [ROLE, *(numbered(n) for n in range(5))]


@pytest.fixture
def places(tmp_path) -> StorePlaces:
    return new_places(tmp_path)


async def ask(rig: Rig, path: str, method: str = "GET", **headers: str) -> Stream:
    return await asyncio.wait_for(
        get(rig.base_url, path, method=method, headers=headers), DEADLINE_S
    )


def told(answer: Stream) -> dict[str, Any]:
    return json.loads(answer.body)  # type: ignore[no-any-return]


def code(answer: Stream) -> str:
    return str(told(answer)["error"]["code"])


async def messages(rig: Rig, path: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.ws_connect(rig.base_url + path) as ws:
        return [json.loads(message.data) async for message in ws]


# --- what is over -------------------------------------------------------------------------------


async def test_a_released_run_can_be_read_again(rigs, scripted_upstream, places) -> None:
    """Whole, from any event on, over SSE and over WebSocket, as before."""
    rig = await rigs(scripted_upstream, places=places)
    answer = await chat(rig.base_url, "ok")
    path = f"/v1/runs/{answer.run_id}"
    for query, skipped in (("", 0), ("?starting_after=1", 2)):
        await release(rig)
        again = await ask(rig, f"{path}/stream{query}")
        assert again.status == 200
        assert without_ids(again.body) == b"".join(OK[skipped:])
        assert again.clean
    await release(rig)
    *events, last = await messages(rig, f"{path}/stream")
    assert [each["seq"] for each in events] == list(range(len(OK)))
    assert last == {"state": "completed", "reason": None}
    await release(rig)
    shown = told(await ask(rig, path))
    assert (shown["state"], shown["upstream"], shown["attempts"]) == ("completed", "box", 1)
    assert shown["attempt_list"][0]["outcome"] == "completed"
    assert (shown["first_seq"], shown["next_seq"]) == (0, len(OK))
    await release(rig)
    assert told(await ask(rig, f"{path}/cancel", "POST"))["state"] == "completed"
    await release(rig)
    assert (await ask(rig, f"{path}/stream?starting_after={len(OK) - 1}")).status == 204
    await release(rig)
    assert (await ask(rig, f"{path}/stream?starting_after=99")).status == 400


async def test_a_failure_keeps_its_reason(rigs, scripted_upstream, places) -> None:
    """And its events, with the error at their end."""
    rig = await rigs(scripted_upstream, places=places)
    answer = await chat(rig.base_url, "drop:2")
    before = told(await ask(rig, f"/v1/runs/{answer.run_id}"))
    await release(rig)
    after = told(await ask(rig, f"/v1/runs/{answer.run_id}"))
    assert after["reason"] == before["reason"] is not None
    assert after["state"] == "failed"
    again = await replay(rig.base_url, answer.run_id)
    assert without_ids(again.body) == bytes(answer.body)


async def test_a_run_belongs_to_its_token(rigs, scripted_upstream, places) -> None:
    """Another one's does not exist, wherever it is kept."""
    mine, theirs = (
        Token(name=name, sha256=hashlib.sha256(name.encode()).hexdigest())
        for name in ("tg-mine", "tg-theirs")
    )
    rig = await rigs(scripted_upstream, places=places, tokens=[mine, theirs])
    key = {"Authorization": "Bearer tg-mine"}
    run_id = (await chat(rig.base_url, "ok", headers=key)).run_id
    await release(rig)
    other = {"Authorization": "Bearer tg-theirs"}
    for path, method in (("", "GET"), ("/stream", "GET"), ("/cancel", "POST"), ("", "DELETE")):
        answer = await ask(rig, f"/v1/runs/{run_id}{path}", method, **other)
        assert (answer.status, code(answer)) == (404, "run_not_found")
    assert told(await ask(rig, "/v1/runs", **other))["data"] == []
    [listed] = told(await ask(rig, "/v1/runs", **key))["data"]
    assert (listed["id"], listed["place"]) == (run_id, "journal")
    assert (await ask(rig, f"/v1/runs/{run_id}", **key)).status == 200


async def test_what_was_brought_back_is_let_go_soon_and_not_written_again(
    rigs, scripted_upstream, places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory has it for a minute; it can be brought back any time, and counts once."""
    monkeypatch.setattr(recall, "HELD_S", 0.1)
    rig = await rigs(scripted_upstream, places=places)
    run_id = (await chat(rig.base_url, "ok")).run_id
    await release(rig)
    registry = rig.gateway.registry
    for _ in range(2):
        assert (await ask(rig, f"/v1/runs/{run_id}")).status == 200
        await until(lambda: not registry.finished_count, DEADLINE_S, "memory let go of it")
    assert len(await rows(rig)) == 1
    assert rig.held_bytes == 0


async def test_two_who_ask_at_once_have_one_run(rigs, scripted_upstream, places) -> None:
    """It is charged once."""
    rig = await rigs(scripted_upstream, places=places)
    run_id = (await chat(rig.base_url, "ok")).run_id
    await release(rig)
    answers = await asyncio.gather(*(replay(rig.base_url, run_id) for _ in range(8)))
    assert {without_ids(answer.body) for answer in answers} == {b"".join(OK)}
    assert rig.gateway.registry.finished_count == 1
    assert len(rig.gateway.registry.ledger.accounts) == 1


async def test_where_memory_is_full_it_says_so(rigs, raw_upstream, places) -> None:
    """503, and the run is there later."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), places=places)
    stream = await open_chat(rig.base_url, "m")
    tap.send(*(numbered(n, 5000) for n in range(100)))
    tap.finish()
    await stream.read_rest()
    await release(rig)
    ledger = rig.gateway.registry.ledger
    ledger.limit_bytes = ledger.total_bytes + 100_000
    answer = await ask(rig, f"/v1/runs/{stream.run_id}")
    assert answer.status == 503
    assert "memory" in told(answer)["error"]["message"]
    ledger.limit_bytes = 0
    assert (await ask(rig, f"/v1/runs/{stream.run_id}")).status == 200


async def test_an_answer_without_its_text_is_not_taken_for_an_empty_one(
    rigs, raw_upstream, places
) -> None:
    """Read from the beginning it is gone; a client that has all of it hears that it is over."""
    upstream = await raw_upstream(sends(CREATED, *WORDS, RESPONSE_DONE))
    rig = await rigs(upstream, places=places, journal=Journal(keep="ends"))
    made = await ask_response(rig, "", {"model": "m", "input": "hi", "background": True})
    identity, run_id = told(made)["id"], made.run_id
    await release(rig)
    path = f"/v1/runs/{run_id}"
    shown = told(await ask(rig, path))
    assert (shown["state"], shown["first_seq"]) == ("completed", shown["next_seq"])
    gone = await ask(rig, f"{path}/stream")
    assert (gone.status, code(gone)) == (410, "cursor_evicted")
    again = await ask_response(rig, f"/{identity}?stream=true")
    assert (again.status, code(again)) == (410, "cursor_evicted")
    last = f"{path}/stream?starting_after={shown['next_seq'] - 1}"
    assert (await ask(rig, last)).status == 204


# --- what was interrupted -----------------------------------------------------------------------


async def test_an_interrupted_answer_ends_with_an_error(rigs, scripted_upstream, places) -> None:
    """All that was kept, then the format's own error, and nothing that looks like an end."""
    run = under_way(BEGUN)
    await leave_behind(places, run, BEGUN)
    rig = await rigs(scripted_upstream, places=places)
    path = f"/v1/runs/{run.id}"
    shown = told(await ask(rig, path))
    reason = "the worker died at event 6"
    assert (shown["state"], shown["reason"]) == ("failed", reason)
    answer = await replay(rig.base_url, run.id)
    body = without_ids(answer.body)
    assert body.startswith(b"".join(BEGUN))
    assert DONE not in body
    error = json.loads(answer.events[-1].data)["error"]
    assert error["code"] == "worker_died"
    assert reason in error["message"]
    assert [event.id for event in answer.events] == [str(n) for n in range(7)]
    again = await replay(rig.base_url, run.id, after=3)
    assert [event.id for event in again.events] == ["4", "5", "6"]
    *events, last = await messages(rig, f"{path}/stream?starting_after=4")
    assert [each["seq"] for each in events] == [5, 6]
    assert last == {"state": "failed", "reason": reason}
    [row] = await rows(rig)
    assert (row.id, row.outcome, row.code) == (run.id, "failed", "worker_died")
    assert rig.gateway.tally.requests == {("box", "chat completion", "failed"): 1}


async def test_a_cursor_before_what_is_kept_is_gone(rigs, scripted_upstream, places) -> None:
    """410, and the oldest event that there is is named."""
    run = under_way(BEGUN, first_seq=10, next_seq=16)
    await leave_behind(places, run, BEGUN)
    rig = await rigs(scripted_upstream, places=places)
    answer = await ask(rig, f"/v1/runs/{run.id}/stream?starting_after=3")
    assert (answer.status, code(answer)) == (410, "cursor_evicted")
    assert "10" in told(answer)["error"]["message"]
    again = await replay(rig.base_url, run.id, after=9)
    assert [event.id for event in again.events] == [str(n) for n in range(10, 17)]


async def test_an_interrupted_response_in_the_background_is_failed(
    rigs, scripted_upstream, places
) -> None:
    """Polled by its id, and read from any event on; it can be deleted."""
    events = [CREATED, *WORDS]
    run = under_way(
        events,
        path="/responses",
        response_id="resp_" + "5" * 32,
        upstream_response_id="resp_theirs",
        background=True,
    )
    await leave_behind(places, run, events)
    rig = await rigs(scripted_upstream, places=places)
    answer = await ask_response(rig, f"/{run.response_id}")
    assert answer.status == 200
    assert (told(answer)["status"], told(answer)["id"]) == ("failed", run.response_id)
    assert "the worker died at event 4" in told(answer)["error"]["message"]
    stream = await ask_response(rig, f"/{run.response_id}?stream=true&starting_after=1")
    assert stream.events[-1].name == "response.failed"
    assert stream.events[0].data == WORDS[1].split(b"data: ")[1].strip()
    deleted = await ask_response(rig, f"/{run.response_id}", method="DELETE")
    assert told(deleted)["deleted"] is True
    assert (await ask_response(rig, f"/{run.response_id}")).status == 404
    assert b"b \\" not in bytes_on_disk(StorePlaces(memory=places.memory))


async def test_a_response_is_found_by_its_id(rigs, raw_upstream, places) -> None:
    """Made in the background or not; its input items are not kept, whoever remembers it."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS, RESPONSE_DONE)), places=places)
    made = await ask_response(rig, "", {"model": "m", "input": "hi", "background": True})
    identity = told(made)["id"]
    await rig.idle()
    before = bytes((await ask_response(rig, f"/{identity}")).body)
    events = bytes((await ask_response(rig, f"/{identity}?stream=true")).body)
    await release(rig)
    assert bytes((await ask_response(rig, f"/{identity}")).body) == before
    await release(rig)
    assert bytes((await ask_response(rig, f"/{identity}?stream=true")).body) == events
    await release(rig)
    items = await ask_response(rig, f"/{identity}/input_items")
    assert code(items) == "input_items_not_kept"
    await release(rig)
    assert told(await ask_response(rig, f"/{identity}/cancel", method="POST"))["id"] == identity


async def test_a_response_goes_on_from_one_that_only_the_journal_knows(
    rigs, raw_upstream, places
) -> None:
    """Its upstream is asked by the id that it gave it itself."""
    asked: list[bytes] = []
    answering = sends(CREATED, *WORDS, RESPONSE_DONE)

    async def play(peer) -> None:
        request = peer.request

        async def noted() -> bytes:
            asked.append(await request())
            return asked[-1]

        peer.request = noted
        await answering(peer)

    rig = await rigs(await raw_upstream(play), places=places)
    made = await ask_response(rig, "", {"model": "m", "input": "hi", "background": True})
    identity = told(made)["id"]
    await release(rig)
    body = {"model": "m", "input": "more", "stream": True, "previous_response_id": identity}
    answer = await ask_response(rig, "", body)
    assert answer.events[-1].name == "response.completed"
    assert b'"previous_response_id":"resp_theirs"' in asked[1].replace(b": ", b":")
    unknown = await ask_response(rig, "", {**body, "previous_response_id": "resp_unknown"})
    assert unknown.events[-1].name == "response.completed"
    assert b"resp_unknown" in asked[2]


# --- listings -----------------------------------------------------------------------------------


async def test_a_listing_has_each_run_once(rigs, scripted_upstream, places) -> None:
    """Newest first; what is in memory is shown as it is there."""
    rig = await rigs(scripted_upstream, places=places)
    former = [(await chat(rig.base_url, "ok")).run_id for _ in range(3)]
    await release(rig)
    later = [(await chat(rig.base_url, "ok")).run_id for _ in range(2)]
    await ask(rig, f"/v1/runs/{former[1]}")
    listed = told(await ask(rig, "/v1/runs"))
    assert "incomplete" not in listed
    assert [each["id"] for each in listed["data"]] == [*reversed(later), *reversed(former)]
    places_of = {each["id"]: each["place"] for each in listed["data"]}
    assert {run for run, place in places_of.items() if place == "journal"} == {
        former[0],
        former[2],
    }
    assert len(told(await ask(rig, "/v1/runs?limit=4"))["data"]) == 4
    whole = await rig.gateway.recall.listed_whole(100)
    assert [run.id for run in whole] == [*reversed(later), *reversed(former)]


async def test_the_history_tells_of_what_the_journal_lets_go(
    rigs, scripted_upstream, places
) -> None:
    """In the listing of everything, which is the watchdog's."""
    rig = await rigs(scripted_upstream, places=places)
    run_id = (await chat(rig.base_url, "ok")).run_id
    await release(rig)
    rig.reload(msgspec.structs.replace(rig.settings, journal=Journal(keep="off")))
    [listed] = await rig.gateway.recall.listed_whole(100)
    assert (listed.id, listed.place, listed.state) == (run_id, "history", "completed")
    assert told(await ask(rig, "/v1/runs"))["data"] == []


# --- forgetting ---------------------------------------------------------------------------------


async def test_a_deleted_run_is_gone(rigs, scripted_upstream, places) -> None:
    """While it is under way, when it is over, and when only the journal knows it."""
    rig = await rigs(scripted_upstream, places=places, journal=Journal(every_s=0.1))
    for model, is_released in (("stall:2", False), ("ok", False), ("ok", True)):
        stream = await open_chat(rig.base_url, model)
        await stream.read_events(2)
        if model == "ok":
            await stream.read_rest()
        else:
            await until(lambda: bool(rig.gateway.recorder._written), DEADLINE_S, "it is written")
        if is_released:
            await release(rig)
        path = f"/v1/runs/{stream.run_id}"
        answer = await ask(rig, path, "DELETE")
        assert told(answer) == {"id": stream.run_id, "object": "run", "deleted": True}
        assert (await ask(rig, path)).status == 404
        assert (await ask(rig, path, "DELETE")).status == 404
        assert await found(rig, stream.run_id) is None
        await stream.vanish()
    await rig.idle()
    assert {row.outcome for row in await rows(rig)} == {"cancelled", "completed"}
    assert told(await ask(rig, "/v1/runs"))["data"] == []
    assert b"chat.completion.chunk" not in bytes_on_disk(places)


async def test_all_that_is_over_can_be_forgotten(rigs, scripted_upstream, places) -> None:
    """In memory and in both files; or one run alone."""
    rig = await rigs(scripted_upstream, places=places)
    runs = [(await chat(rig.base_url, "ok")).run_id for _ in range(4)]
    assert await rig.gateway.recall.forget_whole(runs[0]) == 1
    assert [row.id for row in await rows(rig)] == runs[:0:-1]
    await release(rig)
    more = (await chat(rig.base_url, "ok")).run_id
    await rig.idle()
    assert await rig.gateway.recall.forget_whole(None) == 4
    assert told(await ask(rig, "/v1/runs"))["data"] == []
    assert await rows(rig) == []
    left = bytes_on_disk(places)
    assert not [run for run in (*runs, more) if run.encode() in left]


# --- another generation -------------------------------------------------------------------------


async def test_a_run_of_a_living_worker_is_left_to_it(rigs, scripted_upstream, places) -> None:
    """It is asked, as if there were no journal; nothing is made of what is half written."""
    draining, serving = await two_generations(
        rigs, scripted_upstream, places=places, journal=Journal(every_s=0.1)
    )
    stream = await open_chat(draining.base_url, "stall:2")
    await stream.read_events(2)
    run_id = stream.run_id
    deadline_s = draining.gateway.loop.time() + DEADLINE_S
    while await found(draining, run_id) is None:
        assert draining.gateway.loop.time() < deadline_s
        await asyncio.sleep(0.05)
    assert told(await ask(serving, f"/v1/runs/{run_id}"))["state"] == "streaming"
    assert serving.gateway.registry.finished_count == 0
    [listed] = told(await ask(serving, "/v1/runs"))["data"]
    assert (listed["id"], listed["place"]) == (run_id, "memory")
    answer = await ask(serving, f"/v1/runs/{run_id}", "DELETE")
    assert told(answer)["deleted"] is True
    assert await found(serving, run_id) is None
    assert (await ask(serving, f"/v1/runs/{run_id}")).status == 404
    await stream.read_rest()


# --- when the file cannot be used ---------------------------------------------------------------


async def test_a_journal_that_cannot_be_used_is_told(rigs, scripted_upstream, places) -> None:
    """A run that may be in it is a 503, and a listing says that it lacks something."""
    rig = await rigs(scripted_upstream, places=places)
    run_id = (await chat(rig.base_url, "ok")).run_id
    await release(rig)
    folder = Path(places.memory or "") / "journal"
    folder.rename(folder.with_name("away"))
    folder.write_bytes(b"")  # no directory can be made here
    answer = await ask(rig, f"/v1/runs/{run_id}")
    assert (answer.status, code(answer)) == (503, "journal_unavailable")
    assert answer.headers["retry-after"] == "10"
    listed = told(await ask(rig, "/v1/runs"))
    assert listed["data"] == []
    assert "journal" in listed["incomplete"]
    later = await chat(rig.base_url, "ok")  # and no answer suffers
    assert bytes(later.body) == b"".join(OK)
    assert (await ask(rig, f"/v1/runs/{later.run_id}")).status == 200
    for method, path in (("DELETE", ""), ("GET", "")):
        answer = await ask(rig, f"/v1/runs/{later.run_id}{path}", method)
        assert (answer.status, code(answer)) == (503, "journal_unavailable")
    [error] = rig.errors
    assert "the journal is paused" in error.getMessage()
    rig.errors.clear()
