"""All runs of a generation: the net beneath their clocks, and what goes when memory is short."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import suppress

import pytest

from fakes.client import Stream, chat, get, open_chat
from fakes.machine import until
from fakes.upstream import DONE, FINISH, OK, ROLE, chunk, numbered
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from tidegate.core.errors import LedgerFull
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.state import State
from tidegate.core.settings import Token, Upstream
from tidegate.gateway.relay.relay import Relay

MIB = 1024 * 1024


def bulk(kilobytes: int, *end: bytes):
    """A play: so many numbered events of 1000 bytes as fast as they are taken, then `end`."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(HEAD + chunked(ROLE))
            for first in range(0, kilobytes, 20):
                last = min(first + 20, kilobytes)
                await peer.send(chunked(b"".join(numbered(n, 1000) for n in range(first, last))))
            await peer.send(*end)

    return play


WHOLE_END = (chunked(FINISH, DONE) + LAST,)


async def stuck(rig: Rig) -> Stream:
    """A client of a run that has begun."""
    stream = await open_chat(rig.base_url, "m")
    await stream.read_events(1)
    return stream


# --- the net --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["queued", "connecting", "streaming", "plain"])
async def test_a_run_whose_end_never_comes_is_swept_at_every_stage(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Its reader is told, and nothing of it is held any more."""

    async def play(peer: Peer) -> None:
        await peer.request()
        if stage == "streaming":
            await peer.send(HEAD + chunked(ROLE, chunk(content="x")))
        await peer.hang()

    upstream = await raw_upstream(play)
    rig = await rigs(
        Upstream(name="box", url=upstream.url, max_concurrent=1),
        total_s=0.3,
        grace_s=0.3,
        disconnect_grace_s=60.0,
    )
    if stage == "queued":
        rig.pool().active = 1  # the place is somebody else's
    monkeypatch.setattr(Relay, "end", lambda *_, **__: None)
    stream = await open_chat(rig.base_url, "m", stream=stage != "plain")
    await until(lambda: rig.gateway.registry.total, DEADLINE_S, "the run is there")
    run = rig.relay().run
    await asyncio.wait_for(stream.read_all(), DEADLINE_S)
    assert stream.clean
    assert b"swept: stuck" in stream.body
    assert (run.state, run.released) == (State.EXPIRED, True)
    assert stream.status == (200 if stage == "streaming" else 504)
    registry = rig.gateway.registry
    assert registry.swept.runs == 1
    assert "swept: stuck" in str(registry.last_sweep)
    assert registry.swept_bytes["stuck"] > 0
    await until(lambda: not rig.held_bytes, DEADLINE_S, "no byte is held")
    if stage == "queued":
        rig.pool().active = 0


async def test_an_abandoned_run_whose_end_never_comes_does_not_wait_for_total_s(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grace after grace it goes."""
    upstream = await raw_upstream(bulk(20, b""))
    rig = await rigs(upstream, total_s=3600.0, grace_s=0.2, disconnect_grace_s=0.1)
    monkeypatch.setattr(Relay, "end", lambda *_, **__: None)
    stream = await stuck(rig)
    run = rig.relay().run
    await stream.vanish()
    await until(lambda: run.released, DEADLINE_S, "it was swept")
    assert rig.gateway.registry.swept_bytes["abandoned"] > 0
    await until(lambda: not rig.pool()._open, DEADLINE_S, "the upstream is let go")


async def test_a_finished_run_is_kept_for_its_time_and_then_forgotten(rigs, raw_upstream) -> None:
    """keep_finished_s after its end; asked for later it was never there."""
    rig = await rigs(await raw_upstream(bulk(20, *WHOLE_END)), keep_finished_s=0.5)
    answer = await chat(rig.base_url, "m")
    registry = rig.gateway.registry
    path = f"/v1/runs/{answer.run_id}"
    assert (await get(rig.base_url, path)).status == 200
    assert rig.held_bytes > 20_000
    await until(lambda: not registry.ledger.accounts, DEADLINE_S, "it was released")
    for verb, method in (("", "GET"), ("/stream", "GET"), ("/cancel", "POST")):
        assert (await get(rig.base_url, path + verb, method=method)).status == 404
    assert registry.swept_bytes["finished"] > 20_000
    assert registry.ended == {"completed": 1}


async def test_a_plain_answer_is_not_kept(rigs, scripted_upstream) -> None:
    """It has been written; there is nothing to resume."""
    rig = await rigs(scripted_upstream)
    answer = await chat(rig.base_url, "json", stream=False)
    assert answer.status == 200
    await until(lambda: not rig.gateway.registry.ledger.accounts, DEADLINE_S, "it was released")
    assert (await get(rig.base_url, f"/v1/runs/{answer.run_id}")).status == 404


async def test_a_sweep_that_was_asked_for_takes_what_is_finished(rigs, raw_upstream) -> None:
    """And tells what it freed; what is active stays."""
    rig = await rigs(await raw_upstream(bulk(20, *WHOLE_END)))
    for _ in range(3):
        await chat(rig.base_url, "m")
    await rig.idle()
    registry = rig.gateway.registry
    held = rig.held_bytes
    assert registry.sweep(rig.gateway.loop.time()).runs == 0
    swept = registry.sweep(rig.gateway.loop.time(), finished=True)
    assert (swept.runs, swept.bytes, swept.reasons) == (3, held, {"finished": 3})
    assert rig.held_bytes == 0


# --- when memory is short -------------------------------------------------------------------------


async def test_finished_windows_go_first_the_oldest_before_the_others(rigs, raw_upstream) -> None:
    """They are all that goes, as long as that is enough."""
    rig = await rigs(await raw_upstream(bulk(500, *WHOLE_END)))
    kept = [await chat(rig.base_url, "m") for _ in range(3)]
    await rig.idle()
    registry = rig.gateway.registry
    rig.facts(ledger_limit_bytes=registry.ledger.total_bytes + 100_000)
    last = await chat(rig.base_url, "m")
    assert (last.status, last.clean, last.body[-len(DONE) :]) == (200, True, DONE)
    left = [run.id for run in registry.newest(None, 10)]
    assert last.run_id in left
    assert kept[0].run_id not in left
    assert kept[2].run_id in left
    assert registry.swept_bytes["memory"] > 500_000
    assert "for memory" in str(registry.last_sweep)
    assert not rig.gateway.evictor.holds_back


async def test_windows_shrink_to_what_their_readers_need_before_anybody_waits(
    rigs, raw_upstream
) -> None:
    """A reader that keeps up needs no window: its answer goes on, whole, under any limit."""
    rig = await rigs(await raw_upstream(bulk(8000, *WHOLE_END)), total_s=60.0)
    rig.facts(ledger_limit_bytes=2 * MIB)
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), 30)
    assert (answer.status, answer.clean) == (200, True)
    assert len(answer.events) == 8000 + 3
    assert rig.relay().run.window.first_seq > 0
    assert rig.held_bytes <= 2 * MIB


async def test_upstreams_wait_while_readers_catch_up(rigs, raw_upstream) -> None:
    """Slow readers' windows are needed: their upstreams are paused, and go on afterwards."""
    rig = await rigs(
        await raw_upstream(bulk(6000, *WHOLE_END)), idle_s=1.0, total_s=60.0, close_flush_s=5.0
    )
    rig.facts(ledger_limit_bytes=3 * MIB)
    registry = rig.gateway.registry
    slow: list[Stream] = []
    while not rig.gateway.evictor.holds_back:
        slow.append(await open_chat(rig.base_url, "m", receive_buffer=16 * 1024))
        await until(
            lambda: registry.total == len(slow) and rig.relay().run.paused_s is not None,
            DEADLINE_S,
            "its upstream waits",
        )
    for _ in range(2):  # longer than idle_s, in which they are not late
        await asyncio.sleep(0.7)
        assert rig.held_bytes <= 3 * MIB
        assert registry.active_count == len(slow)
    for stream in await asyncio.gather(*(asyncio.wait_for(s.read_all(), 40) for s in slow)):
        assert (stream.clean, len(stream.events)) == (True, 6003)
    await until(lambda: not rig.gateway.evictor.holds_back, DEADLINE_S, "upstreams wait no longer")


async def test_a_run_that_begins_while_memory_is_short_keeps_little(rigs, raw_upstream) -> None:
    """It has the same manners as those that were there before; afterwards windows grow again."""
    rig = await rigs(await raw_upstream(bulk(3000, *WHOLE_END)))
    registry = rig.gateway.registry
    account = registry.ledger.open()
    rig.facts(ledger_limit_bytes=10 * MIB)
    account.set(Entry.WINDOW, 9 * MIB)
    assert rig.gateway.evictor.holds_back
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), 20)
    assert (answer.clean, len(answer.events)) == (True, 3003)
    run = rig.relay().run
    assert run.state is State.COMPLETED
    assert run.window.next_seq - run.window.first_seq < 1000
    account.close()
    await until(lambda: not rig.gateway.evictor.holds_back, DEADLINE_S, "memory is there again")
    await chat(rig.base_url, "m")
    assert rig.relay().run.window.first_seq == 0


async def test_a_finish_reason_is_remembered_when_its_event_had_to_go(rigs, raw_upstream) -> None:
    """How an answer ends is known though its window keeps nothing."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE, numbered(0), FINISH))
        await asyncio.sleep(0.1)
        await peer.send(chunked(b'data: {"choices":[],"usage":{}}\n\n') + LAST)
        await peer.hang()

    rig = await rigs(await raw_upstream(play))
    account = rig.gateway.registry.ledger.open()
    rig.facts(ledger_limit_bytes=10 * MIB)
    account.set(Entry.WINDOW, 9 * MIB)
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), DEADLINE_S)
    assert (answer.clean, len(answer.events)) == (True, 4)
    assert rig.relay().run.state is State.COMPLETED
    account.close()


async def test_where_nothing_helps_a_run_fails_with_the_reason(rigs, raw_upstream) -> None:
    """The events that found no room are not lost: they come before the error."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE, numbered(0)))
        await go_on.wait()
        await peer.send(chunked(numbered(1, 1000) * 200 + numbered(2, 300_000)))
        await peer.hang()

    go_on = asyncio.Event()
    rig = await rigs(await raw_upstream(play))
    live = await stuck(rig)
    joined = await Stream.open(rig.base_url, f"/v1/runs/{live.run_id}/stream")
    await joined.read_events(2)
    registry = rig.gateway.registry
    rig.facts(ledger_limit_bytes=registry.ledger.total_bytes + 100_000)
    go_on.set()
    for stream in (live, joined):
        await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
        (error,) = [event.error for event in stream.events if event.error]
        assert stream.events[-1].error == error
        assert "memory limit" in error["message"]
        assert error["code"] == "memory_limit"
        assert stream.clean
    assert [event.id for event in joined.events] == [str(n) for n in range(len(joined.events))]
    assert [event.data for event in joined.events] == [event.data for event in live.events]
    await rig.idle()
    rig.facts(ledger_limit_bytes=200_000)
    other = registry.ledger.open()
    with suppress(LedgerFull):
        other.set(Entry.WINDOW, 200_001)
    refused = await chat(rig.base_url, "m")
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["code"] == "memory_limit"  # type: ignore[index]
    other.close()


async def test_a_body_without_room_is_refused_and_charged_to_nobody(
    rigs, scripted_upstream
) -> None:
    """503 with Retry-After; health is still answered."""
    rig = await rigs(scripted_upstream)
    rig.facts(ledger_limit_bytes=500_000)
    ledger = rig.gateway.registry.ledger
    other = ledger.open()
    other.set(Entry.BODY, 200_000)
    refused = await open_chat(rig.base_url, "ok", padding="x" * 100_000)
    await refused.read_all()
    assert refused.status == 503
    assert "retry-after" in refused.headers
    other.close()
    assert rig.held_bytes == 0
    assert rig.gateway.registry.total == 0
    assert (await get(rig.base_url, "/healthz")).status == 200
    assert bytes((await chat(rig.base_url, "ok")).body) == b"".join(OK)


# --- what it says ---------------------------------------------------------------------------------


async def test_listings_are_newest_first_and_bounded(rigs, scripted_upstream) -> None:
    """And count each run once, by state."""
    rig = await rigs(scripted_upstream)
    ids = [(await chat(rig.base_url, "ok")).run_id for _ in range(3)]
    active = await stuck_at(rig, "stuck:1")
    registry = rig.gateway.registry
    assert [run.id for run in registry.newest(None, 10)] == [active, *reversed(ids)]
    assert [run.id for run in registry.newest(None, 2)] == [active, ids[2]]
    assert registry.newest("somebody else", 10) == []
    assert (registry.active_count, registry.finished_count, registry.total) == (1, 3, 4)
    assert registry.states() == {"streaming": 1, "completed": 3}


class Unwalked(dict[str, Relay]):
    """Runs that may be looked up and counted, but not gone through."""

    def _walk(self) -> None:
        raise AssertionError("every run that is kept was walked")

    __iter__ = __reversed__ = keys = values = items = _walk  # type: ignore[assignment]


async def test_what_is_asked_of_many_runs_walks_none_of_them(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics, another owner's list and an answer's id cost what they find, not what is kept."""
    data = json.dumps({"id": "resp_1", "object": "response", "status": "completed", "output": []})

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(plain(data.encode()))

    tokens = [
        Token(name=name, sha256=hashlib.sha256(name.encode()).hexdigest())
        for name in ("one", "other")
    ]
    rig = await rigs(await raw_upstream(play), tokens=tokens)
    one, other = ({"Authorization": f"Bearer {name}"} for name in ("one", "other"))
    body = {"model": "m", "input": "hi"}
    for _ in range(2):
        assert (await get(rig.base_url, "/v1/responses", body, headers=one)).status == 200
    registry = rig.gateway.registry
    newest = next(reversed(registry.finished())).run
    held = registry._relays, registry._finished
    registry._relays, registry._finished = Unwalked(registry._relays), Unwalked(registry._finished)
    assert registry.states() == {"completed": 2}
    metrics = (await get(rig.base_url, "/metrics", headers=one)).body
    assert b'tidegate_runs{state="completed"} 2.0' in metrics
    assert (await get(rig.base_url, "/v1/runs", headers=other)).json()["data"] == []
    assert len((await get(rig.base_url, "/v1/runs", headers=one)).json()["data"]) == 2
    found = registry.find_response("resp_1", newest.owner)
    assert found is not None
    assert found.run is newest
    for identity in ("resp_1", "resp_2"):
        path = f"/v1/responses/{identity}"
        assert (await get(rig.base_url, path, headers=other)).status == 404
        status = 200 if identity == "resp_1" else 404
        assert (await get(rig.base_url, path, headers=one)).status == status
    registry._relays, registry._finished = held


async def stuck_at(rig: Rig, model: str) -> str:
    stream = await open_chat(rig.base_url, model)
    await stream.read_events(1)
    return stream.run_id


async def test_a_deadline_that_cannot_be_served_does_not_stop_the_others(
    rigs, scripted_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run's broken clock is logged; another's limit still ends it."""
    rig = await rigs(scripted_upstream, idle_s=0.3)
    broken = await stuck_at(rig, "stuck:1")
    relay = rig.gateway.registry.find(broken, None)
    real = Relay.check

    def check(self: Relay, now_s: float) -> float | None:
        if self is relay:
            raise ZeroDivisionError
        return real(self, now_s)

    monkeypatch.setattr(Relay, "check", check)
    rig.gateway.registry.look_soon(relay, 0.0)
    other = await asyncio.wait_for(chat(rig.base_url, "stuck:2"), DEADLINE_S)
    assert other.events[-1].error is not None
    assert rig.errors
    rig.errors.clear()
    monkeypatch.undo()
