"""All runs of a generation: the net beneath their clocks, and how they are found."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from fakes.client import Stream, chat, get, open_chat
from fakes.machine import until
from fakes.upstream import DONE, FINISH, ROLE, chunk, numbered
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked, plain
from gateway.pool_rig import none_left
from tidegate.core.runs.state import RunState
from tidegate.core.settings import Token, Upstream
from tidegate.gateway.relay.relay import Relay


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
        rig.pool().active = 1  # the slot is another request's
    monkeypatch.setattr(Relay, "end", lambda *_, **__: None)
    stream = await open_chat(rig.base_url, "m", stream=stage != "plain")
    await until(lambda: rig.gateway.registry.total, DEADLINE_S, "the run is there")
    run = rig.relay().run
    await asyncio.wait_for(stream.read_all(), DEADLINE_S)
    assert stream.clean
    assert b"swept: stuck" in stream.body
    assert (run.state, run.released) == (RunState.EXPIRED, True)
    assert stream.status == (200 if stage == "streaming" else 504)
    registry = rig.gateway.registry
    assert registry.swept.runs == 1
    assert "swept: stuck" in str(registry.swept.last)
    assert registry.swept.by_kind["stuck"] > 0
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
    assert rig.gateway.registry.swept.by_kind["abandoned"] > 0
    await none_left(rig.pool())


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
    assert registry.swept.by_kind["finished"] > 20_000
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


# --- what it says ---------------------------------------------------------------------------------


async def test_listings_are_newest_first_and_bounded(rigs, scripted_upstream) -> None:
    """And count each run once, by state."""
    rig = await rigs(scripted_upstream)
    ids = [(await chat(rig.base_url, "ok")).run_id for _ in range(3)]
    active = await stuck_at(rig, "stuck:1")
    registry = rig.gateway.registry
    assert [run.id for run in registry.newest(None, 10)] == [active, *reversed(ids)]
    assert [run.id for run in registry.newest(None, 2)] == [active, ids[2]]
    assert registry.newest("another user", 10) == []
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
    with monkeypatch.context() as unwalked:
        for name in ("_relays", "_finished"):  # that they were walked is seen here alone
            unwalked.setattr(registry, name, Unwalked(getattr(registry, name)))
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
