"""What is written of runs, and when: never a prompt, always the end, and nothing while idle."""

from __future__ import annotations

import asyncio
import hashlib
import json

import msgspec
import pytest

from fakes.client import chat, get, open_chat
from fakes.machine import until
from fakes.upstream import OK, numbered
from gateway.gateway_rig import DEADLINE_S, Rig, Tap, plain
from gateway.records.records_rig import bytes_on_disk, found, new_places, release, rows
from gateway.responses_rig import CREATED, WORDS, sends
from gateway.responses_rig import DONE as RESPONSE_DONE
from gateway.responses_rig import ask as ask_response
from tidegate.core.formats import CHAT
from tidegate.core.protocol.worker import StorePlaces
from tidegate.core.settings import Journal, Token
from tidegate.gateway.records import recorder

ON_EVERY_ROAD = True
TOKEN = "tg-recorder"


@pytest.fixture
def places(tmp_path) -> StorePlaces:
    return new_places(tmp_path)


async def written_to(rig: Rig, run_id: str, seq: int) -> None:
    """Waits until the journal has all events before `seq`."""
    deadline_s = rig.gateway.loop.time() + DEADLINE_S
    while True:
        kept = await found(rig, run_id)
        if kept is not None and kept.run.next_seq >= seq:
            return
        assert rig.gateway.loop.time() < deadline_s, kept and kept.run
        await asyncio.sleep(0.05)


async def test_an_answer_is_written_byte_for_byte(rigs, scripted_upstream, places) -> None:
    """And a row says who had it of whom, how long it took, and how much it was."""
    owner = hashlib.sha256(TOKEN.encode()).hexdigest()
    rig = await rigs(
        scripted_upstream,
        places=places,
        tokens=[Token(name="laptop", sha256=owner)],
        models={"big": ["box/ok"]},
    )
    answer = await chat(rig.base_url, "big", headers={"Authorization": f"Bearer {TOKEN}"})
    await rig.idle()
    kept = await found(rig, answer.run_id)
    assert kept is not None
    assert kept.events == b"".join(OK) == bytes(answer.body)
    assert not kept.is_alive
    run = kept.run
    assert (run.first_seq, run.next_seq, run.state) == (0, len(OK), "completed")
    assert (run.owner, run.token, run.model) == (owner, "laptop", "big")
    assert (run.upstream_model, run.upstreams) == ("ok", ("box",))
    [row] = await rows(rig)
    assert (row.id, row.owner, row.token) == (answer.run_id, owner, "laptop")
    assert (row.asked, row.upstream, row.model, row.format) == ("big", "box", "ok", CHAT.name)
    assert (row.streamed, row.outcome, row.code, row.attempts) == (True, "completed", "", 1)
    assert row.answer_bytes == len(answer.body)
    assert row.request_bytes > 50
    assert row.first_output_s is not None
    assert 0 <= row.queued_s <= row.first_output_s
    assert row.first_output_s - 0.01 <= row.duration_s < DEADLINE_S  # by another clock
    assert TOKEN.encode() not in bytes_on_disk(places)


async def test_an_answer_in_one_piece_leaves_a_row_alone(rigs, raw_upstream, places) -> None:
    """It cannot be read again, so there is nothing to find; its tokens are counted."""
    body = json.dumps({"choices": [{"message": {"content": "canary"}}], "usage": USAGE}).encode()

    async def play(peer) -> None:
        while True:
            await peer.request()
            await peer.send(plain(body))

    rig = await rigs(await raw_upstream(play), places=places)
    answer = await chat(rig.base_url, "m", stream=False)
    assert answer.status == 200
    await rig.idle()
    assert await found(rig, answer.run_id) is None
    [row] = await rows(rig)
    assert (row.streamed, row.first_output_s, row.answer_bytes) == (False, None, len(body))
    assert (row.usage.input, row.usage.output) == (7, 3)
    assert b"canary" not in bytes_on_disk(places)


USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


async def test_failures_are_written_with_their_reasons(rigs, scripted_upstream, places) -> None:
    """An answer that breaks off, one that never began, and a failover that counts its tries."""
    rig = await rigs(
        scripted_upstream,
        places=places,
        models={"both": ["box/status:503", "box/ok"], "none": ["box/status:503"]},
    )
    broken = await chat(rig.base_url, "drop:2")
    await chat(rig.base_url, "both")
    refused = await chat(rig.base_url, "none")
    await rig.idle()
    kept = await found(rig, broken.run_id)
    assert kept is not None
    assert kept.events == bytes(broken.body)
    assert (kept.run.state, kept.run.code) == ("failed", "upstream_disconnected")
    assert kept.run.reason
    told = {row.asked: row for row in await rows(rig)}
    assert told["drop:2"].outcome == "failed"
    assert (told["both"].outcome, told["both"].attempts, told["both"].model) == (
        *("completed", 2),
        "ok",
    )
    assert refused.status == 503
    assert (told["none"].outcome, told["none"].code) == ("failed", "upstream_503")
    assert told["none"].first_output_s is None


async def test_a_running_answer_is_written_as_it_grows(rigs, raw_upstream, places) -> None:
    """Within `every_s`, by what is new; it is alive until it ends, and then it is whole."""
    tap = Tap()
    rig = await rigs(
        await raw_upstream(tap.play),
        places=places,
        journal=Journal(every_s=0.2),
        window_bytes=1 << 20,
    )
    stream = await open_chat(rig.base_url, "m")
    total = 0
    for _ in range(3):
        tap.send(*(numbered(total + n, 200) for n in range(5)))
        total += 5
        await stream.read_events(total + 1)
        await written_to(rig, stream.run_id, total + 1)
        kept = await found(rig, stream.run_id)
        assert kept is not None
        assert kept.is_alive
        assert (kept.run.state, kept.run.first_seq, kept.run.ended) == ("streaming", 0, None)
        assert kept.events == bytes(stream.body)
    tap.finish()
    await stream.read_rest()
    await rig.idle()
    kept = await found(rig, stream.run_id)
    assert kept is not None
    assert not kept.is_alive
    assert kept.events == bytes(stream.body)
    assert len(await rows(rig)) == 1


async def test_one_that_waits_for_its_first_output_is_known(
    rigs, scripted_upstream, places
) -> None:
    """So that it reads as failed if its worker dies, instead of having never been."""
    rig = await rigs(scripted_upstream, places=places, journal=Journal(every_s=0.1))
    stream = await open_chat(rig.base_url, "wait:60000")
    await until(lambda: rig.gateway.registry.active_count == 1, DEADLINE_S, "it is under way")
    run_id = rig.relay().run.id
    await written_to(rig, run_id, 0)
    kept = await found(rig, run_id)
    assert kept is not None
    assert (kept.is_alive, kept.events, kept.run.next_seq) == (True, b"", 0)
    await stream.vanish()
    await rig.idle()
    kept = await found(rig, run_id)
    assert kept is not None
    assert (kept.run.state, kept.is_alive) == ("cancelled", False)


async def test_no_more_is_kept_of_a_run_than_its_window_would_hold(
    rigs, raw_upstream, places
) -> None:
    """What goes goes at the front, and what is kept is the window's."""
    tap, window = Tap(), 256 * 1024
    rig = await rigs(
        await raw_upstream(tap.play),
        places=places,
        journal=Journal(every_s=0.1),
        window_bytes=window,
    )
    stream = await open_chat(rig.base_url, "m")
    total = 1
    for _ in range(12):
        tap.send(*(numbered(total + n, 4000) for n in range(20)))  # some 80 KB
        total += 20
        await stream.read_events(total)
        await written_to(rig, stream.run_id, total)
        kept = await found(rig, stream.run_id)
        assert kept is not None
        assert len(kept.events) <= window + 200_000
        assert bytes(stream.body).endswith(kept.events)
    assert kept.run.first_seq > 0
    assert len(kept.events) > window // 4
    tap.finish()
    await stream.read_rest()
    await rig.idle()
    kept = await found(rig, stream.run_id)
    assert kept is not None
    assert bytes(stream.body).endswith(kept.events)


async def test_what_the_window_lost_before_it_was_written_is_missing_at_the_front(
    rigs, raw_upstream, places
) -> None:
    """It is said from which event on the answer is kept."""
    tap = Tap()
    rig = await rigs(
        await raw_upstream(tap.play),
        places=places,
        journal=Journal(every_s=0.3),
        window_bytes=128 * 1024,
    )
    stream = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await stream.read_events(2)
    await written_to(rig, stream.run_id, 2)
    for part in range(40):
        tap.send(*(numbered(n, 2000) for n in range(part * 10, part * 10 + 10)))
    tap.finish()
    await stream.read_rest()
    await rig.idle()
    kept = await found(rig, stream.run_id)
    assert kept is not None
    assert 0 < kept.run.first_seq < kept.run.next_seq == len(stream.events)
    assert bytes(stream.body).endswith(kept.events)
    assert kept.events


@pytest.mark.parametrize("keep", ["answers", "ends"])
async def test_a_response_that_is_not_to_be_stored_leaves_no_text(
    rigs, raw_upstream, places, keep: str
) -> None:
    """Neither does any answer with `keep = "ends"`; how it ended is known in each case."""
    rig = await rigs(
        await raw_upstream(sends(CREATED, *WORDS, RESPONSE_DONE)),
        places=places,
        journal=Journal(keep=keep),
    )
    for store in (True, False):
        answer = await ask_response(
            rig, "", {"model": "m", "input": "canary", "stream": True, "store": store}
        )
        await rig.idle()
        kept = await found(rig, answer.run_id)
        assert kept is not None
        is_kept = store and keep == "answers"
        assert kept.events == (bytes(answer.body) if is_kept else b"")
        assert kept.run.next_seq == 5
        assert kept.run.first_seq == (0 if is_kept else 5)
        assert (kept.run.state, kept.run.stored) == ("completed", store)
        assert kept.run.response_id == "resp_theirs"
    assert b"canary" not in bytes_on_disk(places)


async def test_off_is_off(rigs, scripted_upstream, places) -> None:
    """From the start, and by a reload, after which nothing of what was kept is left."""
    rig = await rigs(scripted_upstream, places=places)
    run_id = (await chat(rig.base_url, "ok")).run_id
    await rig.idle()
    assert await found(rig, run_id) is not None
    rig.reload(msgspec.structs.replace(rig.settings, journal=Journal(keep="off")))
    await release(rig)
    answer = await get(rig.base_url, f"/v1/runs/{run_id}")
    assert answer.status == 404
    await rig.gateway.stores.open()
    assert run_id.encode() not in bytes_on_disk(StorePlaces(memory=places.memory))
    await chat(rig.base_url, "ok")
    await rig.idle()
    assert len(await rows(rig)) == 2
    assert not bytes_on_disk(StorePlaces(memory=places.memory))


async def test_nothing_turns_while_nothing_is_to_be_written(
    rigs, scripted_upstream, places
) -> None:
    """A quiet gateway sleeps."""
    rig = await rigs(scripted_upstream, places=places, journal=Journal(every_s=0.1))
    await chat(rig.base_url, "numbered:3:100")
    await rig.idle()
    mine = rig.gateway.recorder
    await until(
        lambda: mine._ticking is None and mine._gathering is None, DEADLINE_S, "no timer is left"
    )
    assert not mine._written


async def test_many_are_written_some_at_a_time(
    rigs, raw_upstream, places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop turns in between, and each is written."""
    monkeypatch.setattr(recorder, "MOST_PER_TURN", 2)
    taps = [Tap() for _ in range(7)]
    waiting = iter(taps)

    async def play(peer) -> None:
        await next(waiting).play(peer)

    rig = await rigs(await raw_upstream(play), places=places, journal=Journal(every_s=0.1))
    streams = [await open_chat(rig.base_url, "m") for _ in taps]
    for tap in taps:
        tap.send(numbered(0))
    for stream in streams:
        await stream.read_events(2)
        await written_to(rig, stream.run_id, 2)
    for tap in taps:
        tap.finish()
    for stream in streams:
        await stream.read_rest()
    await rig.idle()
    for stream in streams:
        kept = await found(rig, stream.run_id)
        assert kept is not None
        assert kept.events == bytes(stream.body)


async def test_what_ends_in_numbers_is_gathered(
    rigs, scripted_upstream, places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its row and its entry, once, whether they are handed over by number or by time."""
    monkeypatch.setattr(recorder, "MOST_GATHERED", 4)
    rig = await rigs(scripted_upstream, places=places)
    answers = await asyncio.gather(*(chat(rig.base_url, "ok") for _ in range(10)))
    await rig.idle()
    told = await rows(rig)
    assert {row.id for row in told} == {answer.run_id for answer in answers}
    assert len(told) == 10
    for answer in answers:
        kept = await found(rig, answer.run_id)
        assert kept is not None
        assert kept.events == b"".join(OK)
