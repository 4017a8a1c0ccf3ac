"""Relief as the watchdog orders it, in a real gateway: who loses what, and what he is told."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from fakes.client import chat, get, numbers, open_chat, replay
from fakes.machine import until
from fakes.upstream import DONE, ROLE, numbered
from gateway.gateway_rig import DEADLINE_S, HEAD, Peer, Rig, chunked
from gateway.pool_rig import none_left
from gateway.relay.test_registry import WHOLE_END, bulk
from tidegate.core.memory.report import StepReport
from tidegate.core.protocol.worker import Reclaim
from tidegate.core.runs.eviction import Eviction, Victim
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.state import RunState
from tidegate.core.runs.window import SEGMENT_BYTES
from tidegate.gateway.api import create
from tidegate.gateway.api.demo import StuckRelay
from tidegate.gateway.relay import evictor
from tidegate.gateway.relay.evictor import Heap
from tidegate.gateway.server.connection_table import CONNECTION_BYTES, FRESH_S

MIB = 1024 * 1024


async def take(
    rig: Rig, *steps: str, stale_after_s: float = 600.0, most: int = 50
) -> list[StepReport]:
    """One order, carried out."""
    order = Reclaim(
        request=1,
        steps=list(steps),
        stale_after_s=stale_after_s,
        most=most,
        reason="memory level 3",
    )
    return await rig.gateway.evictor.carry_out(order)


async def background(rig: Rig, events: int) -> str:
    """A run that goes on though its client has left; it has had so many events."""
    stream = await open_chat(rig.base_url, "m", headers={"x-on-disconnect": "continue"})
    await stream.read_events(1)
    await stream.vanish()
    run = rig.relay().run
    await until(lambda: run.window.next_seq > events, DEADLINE_S, "its events have come")
    await until(lambda: not run.readers, DEADLINE_S, "no reader is left")
    return str(run.id)


def counting(upto: int, gate: asyncio.Event):
    """A play: so many numbered events, the rest (as many again) when `gate` is open."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE))
        for first in (0, upto):
            for n in range(first, first + upto):
                await peer.send(chunked(numbered(n, 1000)))
            await gate.wait()
        await peer.send(*WHOLE_END)

    return play


async def test_what_is_finished_and_stale_goes_and_its_bytes_are_counted(
    rigs, raw_upstream
) -> None:
    """The report, the ledger, the totals and the metrics say the same."""
    rig = await rigs(await raw_upstream(bulk(100, *WHOLE_END)))
    kept = [await chat(rig.base_url, "m") for _ in range(3)]
    await rig.idle()
    registry = rig.gateway.registry
    held = rig.held_bytes
    assert (await take(rig, "stale", stale_after_s=60.0))[0].runs == 0
    assert rig.held_bytes == held
    (report,) = await take(rig, "stale", stale_after_s=0.0)
    assert (report.step, report.runs) == ("stale", 3)
    assert report.promised_bytes == report.freed_bytes == held
    assert rig.held_bytes == 0
    assert (registry.swept.runs, registry.swept.bytes) == (3, held)
    assert (await get(rig.base_url, f"/v1/runs/{kept[0].run_id}/stream")).status == 404
    scraped = (await get(rig.base_url, "/metrics")).body.decode()
    assert f'tidegate_relief_bytes_total{{step="stale"}} {float(held)}' in scraped
    assert f'tidegate_swept_bytes_total{{reason="finished"}} {float(held)}' in scraped


@pytest.mark.parametrize("step", ["tidy", "stale"])
async def test_open_heads_and_idle_connections_go_and_no_reader(
    rigs, raw_upstream, step: str
) -> None:
    """The first reclaim steps take what no run needs, if it has waited for half a second."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(50, gate)))
    server = rig.gateway.server
    reading = await open_chat(rig.base_url, "m")
    await reading.read_events(1)
    half, idle = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(2)]
    half[1].write(b"GET /v1/runs HTTP/1.1\r\n" + b"X: y\r\n" * 100)
    idle[1].write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert await idle[0].readuntil(b"\r\n\r\n")
    await until(
        lambda: server.table.statistics().connections["head"] == 1, DEADLINE_S, "half a head"
    )
    await until(
        lambda: server.table.statistics().connections["idle"] == 1, DEADLINE_S, "an idle one"
    )
    await take(rig, step)
    assert server.table.statistics().evicted == 0
    await asyncio.sleep(FRESH_S + 0.05)
    await take(rig, step)
    assert server.table.statistics().evicted == 2
    assert (await half[0].read()).startswith(b"HTTP/1.1 503")
    await idle[0].read()
    assert rig.gateway.registry.ledger.connections.total_bytes < 2 * CONNECTION_BYTES
    for _, writer in (half, idle):
        writer.close()
    gate.set()
    await reading.read_all()
    assert numbers(reading.events) == list(range(100))


async def test_a_reader_of_a_finished_run_is_spared_by_the_step_for_finished_ones(
    rigs, raw_upstream
) -> None:
    """A reader is at its end: that run goes when the reader has it."""
    rig = await rigs(await raw_upstream(bulk(6000, *WHOLE_END)), window_bytes=16 * MIB)
    whole = await chat(rig.base_url, "m")
    await rig.idle()
    reader = await open_replay(rig, whole.run_id)
    (report,) = await take(rig, "finished")
    assert report.runs == 0
    assert len((await reader.read_all()).events) == 6003


async def open_replay(rig: Rig, run_id: str):
    """A slow reader in the middle of a finished run."""
    from fakes.client import Stream

    reader = await Stream.open(
        rig.base_url, f"/v1/runs/{run_id}/stream", None, receive_buffer=16 * 1024
    )
    await reader.read_events(1)
    await until(lambda: rig.relay().subscribers, DEADLINE_S, "it is being read")
    return reader


async def test_readers_who_read_nothing_are_told_when_their_run_ends(rigs, raw_upstream) -> None:
    """The reason names how long, and the level."""
    rig = await rigs(await raw_upstream(bulk(60000, *WHOLE_END)), stall_s=600.0, total_s=600.0)
    stream = await open_chat(rig.base_url, "m", receive_buffer=4096)
    await stream.read_events(1)
    relay = rig.relay()
    await until(lambda: relay.run.paused_s is not None, DEADLINE_S, "its upstream waits")
    loop = rig.gateway.loop
    assert (await take(rig, "stalled", stale_after_s=600.0))[0].runs == 0
    await until(
        lambda: min(each.stalled_s(loop.time()) for each in relay.subscribers) > 0.2,
        DEADLINE_S,
        "it stalls",
    )
    (report,) = await take(rig, "stalled", stale_after_s=0.2)
    assert report.runs == 1
    assert report.freed_bytes >= 0.9 * report.promised_bytes > 0
    assert relay.run.state is RunState.EXPIRED
    assert "its readers have read nothing for" in str(relay.run.reason)
    assert str(relay.run.reason).endswith("memory level 3")


async def test_a_background_run_that_loses_its_window_goes_on(rigs, raw_upstream) -> None:
    """Who comes later learns what is gone; who comes from there on misses nothing."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(300, gate)))
    run_id = await background(rig, 300)
    run = rig.relay().run
    (report,) = await take(rig, "windows")
    assert (report.runs, run.state) == (1, RunState.STREAMING)
    assert report.freed_bytes == report.promised_bytes > 300_000
    assert run.window.first_seq == run.window.next_seq == 301
    late = await replay(rig.base_url, run_id, after=10)
    assert late.status == 410
    assert b"301" in late.body
    gate.set()
    rest = await replay(rig.base_url, run_id, after=300)
    assert numbers(rest.events) == list(range(300, 600))
    assert rest.events[-1].data == b"[DONE]"


async def test_background_runs_end_with_a_reason(rigs, raw_upstream) -> None:
    """The largest first, and never one that has a reader."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(50, gate)))
    read = await open_chat(rig.base_url, "m", headers={"x-on-disconnect": "continue"})
    await read.read_events(1)
    ended = await background(rig, 50)
    run = rig.relay().run
    (report,) = await take(rig, "background")
    assert report.runs == 1
    assert run.reason == "swept: it has no readers, and memory is short, memory level 3"
    assert (await get(rig.base_url, f"/v1/runs/{ended}")).status == 404
    gate.set()
    whole = await read.read_all()
    assert numbers(whole.events) == list(range(100))
    assert whole.body.endswith(DONE)


async def test_an_order_takes_few_at_a_time_and_lets_the_loop_turn(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most ten between two turns, and at most as many as the order says."""
    rig = await rigs(await raw_upstream(bulk(5, *WHOLE_END)))
    for _ in range(30):
        await chat(rig.base_url, "m")
    await rig.idle()
    registry, turns = rig.gateway.registry, [0]
    evict = rig.gateway.evictor.evict

    def counted(victim: Victim) -> int:
        turns[-1] += 1
        if turns[-1] == 1:
            rig.gateway.loop.call_soon(turns.append, 0)
        return evict(victim)

    monkeypatch.setattr(rig.gateway.evictor, "evict", counted)
    reports = await take(rig, "stale", "finished", stale_after_s=0.0, most=25)
    assert [report.runs for report in reports] == [25, 0]
    assert max(turns) <= evictor.BITE
    assert registry.finished_count == 5


async def test_who_comes_between_two_bites_loses_nothing(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is looked at again before it is carried out."""
    monkeypatch.setattr(evictor, "BITE", 1)
    rig = await rigs(await raw_upstream(bulk(5, *WHOLE_END)))
    for _ in range(3):
        await chat(rig.base_url, "m")
    await rig.idle()
    registry = rig.gateway.registry
    *_, last = registry.each_finished()
    order = asyncio.ensure_future(take(rig, "finished"))
    await asyncio.sleep(0)  # the first one is gone
    run = last.run
    run.attach()
    last.subscribers = (_Reader(run),)  # type: ignore[assignment]
    (report,) = await order
    assert report.runs == 2
    assert registry.find(run.id, None) is last
    last.subscribers = ()
    run.detach(rig.gateway.loop.time())


class _Reader:
    """A reader who has just come."""

    def __init__(self, run) -> None:
        self.cursor = run.window.end
        self.outbound_bytes = 0

    def stalled_s(self, now_s: float) -> float:
        return 0.0


async def test_tidying_closes_idle_upstream_connections(rigs, scripted_upstream) -> None:
    """They can be had again; what the allocator has is promised."""
    rig = await rigs(scripted_upstream)
    rig.gateway.evictor.heap = Heap(resident_bytes=lambda: 50 * MIB, free_bytes=lambda: 123)
    await chat(rig.base_url, "ok")
    await rig.idle()
    pool = rig.pool()
    assert pool.status().connections == 1
    (report,) = await take(rig, "tidy")
    assert (report.promised_bytes, report.freed_bytes, report.runs) == (123, 0, 0)
    await none_left(pool)
    assert (await chat(rig.base_url, "ok")).clean


async def test_a_step_that_fails_costs_the_others_nothing(rigs, raw_upstream) -> None:
    """An order from another version may name what we do not know."""
    rig = await rigs(await raw_upstream(bulk(5, *WHOLE_END)))
    await chat(rig.base_url, "m")
    await rig.idle()
    reports = await take(rig, "finished", "compress", "stale")
    assert [(report.step, report.runs) for report in reports] == [("finished", 1), ("stale", 0)]
    assert "reclaim step compress failed" in rig.errors.pop().getMessage()


async def test_a_squeeze_halves_windows_and_harms_nobody_who_reads(rigs, raw_upstream) -> None:
    """It ends as it began, for runs that were there and for those that came meanwhile."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(400, gate)), window_bytes=4 * SEGMENT_BYTES)
    first = await open_chat(rig.base_url, "m")
    await first.read_events(300)
    relay = rig.relay()
    rig.facts(squeeze=True)
    assert relay.run.window.cap_bytes == 2 * SEGMENT_BYTES
    assert relay.run.window.held_bytes <= 2 * SEGMENT_BYTES
    second = await open_chat(rig.base_url, "m")
    await second.read_events(1)
    assert rig.relay().run.window.cap_bytes == 2 * SEGMENT_BYTES
    gate.set()
    for stream in (first, second):
        assert numbers((await stream.read_all()).events) == list(range(800))
    rig.facts(squeeze=False)
    whole = await chat(rig.base_url, "m")
    assert numbers(whole.events) == list(range(800))
    assert rig.relay().run.window.cap_bytes == 4 * SEGMENT_BYTES


async def test_shed_refuses_new_runs_alone(rigs, raw_upstream) -> None:
    """In words, with a time to come back; health, runs and what is under way go on."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(5, gate)))
    stream = await open_chat(rig.base_url, "m")
    await stream.read_events(2)
    rig.facts(level=3, shed="memory level 3")
    refused = await chat(rig.base_url, "m")
    assert refused.status == 503
    assert refused.headers["retry-after"] == "10"
    assert b"memory level 3" in refused.body
    ready = await get(rig.base_url, "/readyz")
    assert ready.status == 503
    assert b"memory level 3" in ready.body
    for path in ("/healthz", "/v1/runs", f"/v1/runs/{stream.run_id}", "/metrics"):
        assert (await get(rig.base_url, path)).status == 200
    gate.set()
    assert (await stream.read_all()).body.endswith(DONE)
    rig.facts(level=0)
    assert (await chat(rig.base_url, "m")).status == 200


async def stalls(rig: Rig, relay) -> None:
    """Waits until its reader has something to read and does not."""
    loop = rig.gateway.loop
    await until(
        lambda: relay.subscribers[0].stalled_s(loop.time()) > 0.1, DEADLINE_S, "its reader stalls"
    )


async def test_a_write_that_the_kernel_took_in_part_is_charged_whole(rigs, raw_upstream) -> None:
    """So long as it is kept; when all has been read nothing is charged."""
    rig = await rigs(await raw_upstream(bulk(6000, *WHOLE_END)), window_bytes=16 * MIB)
    stream = await open_chat(rig.base_url, "m", receive_buffer=4096)
    await stream.read_events(1)
    relay = rig.relay()
    await stalls(rig, relay)
    (connection,) = rig.gateway.server.table
    unsent = connection.transport.get_write_buffer_size()
    entries = relay.run.account.entries
    await until(lambda: entries[Entry.OUTBOUND] >= unsent > 0, DEADLINE_S, "it is charged")
    await stream.read_all()
    await until(lambda: not entries[Entry.OUTBOUND], DEADLINE_S, "nothing is left")


async def test_a_websocket_is_told_why_its_run_ends(rigs, raw_upstream) -> None:
    """Its last word has the reason and the level."""
    rig = await rigs(await raw_upstream(bulk(60000, *WHOLE_END)), stall_s=600.0, total_s=600.0)
    stream = await open_chat(rig.base_url, "m", receive_buffer=4096)
    await stream.read_events(1)
    run = rig.relay().run
    await until(lambda: run.paused_s is not None, DEADLINE_S, "its upstream waits")
    path = f"/v1/runs/{stream.run_id}/stream?starting_after={run.window.next_seq - 1}"
    victim = Victim(
        run.id, Eviction.RELEASE, "stalled", "swept: its readers sleep, memory level 3", 0
    )
    async with aiohttp.ClientSession() as session, session.ws_connect(rig.base_url + path) as ws:
        await until(lambda: run.readers == 2, DEADLINE_S, "it has joined")
        rig.gateway.evictor.evict(victim)
        messages = [message.json() async for message in ws]
    last = messages[-1]
    assert last["state"] == "expired"
    assert last["reason"] == run.reason == "swept: its readers sleep, memory level 3"


@pytest.mark.parametrize("step", ["stale", "stalled"])
async def test_a_run_whose_own_end_hangs_goes_all_the_same(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Its state says that it is over, and nothing of it is held."""
    monkeypatch.setattr(create, "Relay", StuckRelay)
    rig = await rigs(
        await raw_upstream(bulk(60000, b"")),
        stall_s=600.0,
        total_s=600.0,
        disconnect_grace_s=600.0,
    )
    stream = await open_chat(rig.base_url, "m", receive_buffer=4096)
    await stream.read_events(1)
    relay = rig.relay()
    run = relay.run
    await until(lambda: run.paused_s is not None, DEADLINE_S, "its upstream waits")
    if step == "stale":
        await stream.vanish()
        await until(lambda: not run.readers, DEADLINE_S, "its reader has gone")
    else:
        await stalls(rig, relay)
    registry, loop = rig.gateway.registry, rig.gateway.loop
    (report,) = await take(rig, step, stale_after_s=0.0)
    assert (report.runs, run.state, run.released) == (1, RunState.EXPIRED, True)
    assert registry.find(run.id, None) is None
    assert loop.time() >= run.ended_s
    await none_left(rig.pool())
    assert registry.ended == {"expired": 1}


async def test_a_reader_in_the_middle_of_a_finished_run_is_told_that_the_rest_is_gone(
    rigs, raw_upstream
) -> None:
    """When he has read nothing for long enough; every event before that is whole."""
    rig = await rigs(
        await raw_upstream(bulk(6000, *WHOLE_END)), window_bytes=16 * MIB, stall_s=600.0
    )
    whole = await chat(rig.base_url, "m")
    await rig.idle()
    reader = await open_replay(rig, whole.run_id)
    relay = rig.relay()
    await stalls(rig, relay)
    (report,) = await take(rig, "stalled", stale_after_s=0.0)
    assert report.runs == 1
    answer = await reader.read_all()
    assert answer.clean
    *events, last = answer.events
    assert numbers(events) == list(range(len(events) - 1))
    assert "its readers have read nothing for" in last.error["message"]
    assert "memory level 3" in last.error["message"]


async def test_relief_goes_on_while_a_generation_drains(rigs, raw_upstream) -> None:
    """Memory is short for both; what is being read goes on to its end."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(50, gate)))
    gate.set()
    await chat(rig.base_url, "m")
    gate.clear()
    stream = await open_chat(rig.base_url, "m")
    await stream.read_events(51)
    rig.gateway.stop_accepting()
    reports = await take(rig, "stale", "stalled", "finished", "windows", stale_after_s=0.0)
    assert [report.runs for report in reports] == [1, 0, 0, 1]
    gate.set()
    assert numbers((await stream.read_all()).events) == list(range(100))
