"""At the ledger's own limit, in a real gateway: what goes first, what waits, what fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from fakes.client import Stream, chat, get, numbers, open_chat
from fakes.machine import until
from fakes.upstream import DONE, FINISH, OK, ROLE, numbered
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Play, Rig, chunked
from gateway.relay.test_evictor import MIB, counting, take
from gateway.relay.test_registry import WHOLE_END, bulk, stuck
from tidegate.core.errors import LedgerFull
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.state import RunState
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.server.connection_table import FRESH_S


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
    assert registry.swept.by_kind["memory"] > 500_000
    told = rig.gateway.evictor.at_limit
    assert (told.step, told.runs) == ("ledger", registry.swept.runs)
    assert told.freed_bytes == told.promised_bytes == registry.swept.bytes
    assert "for memory" in str(registry.swept.last)
    assert not rig.gateway.evictor.has_backpressure


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


@pytest.mark.long
async def test_upstreams_wait_while_readers_catch_up(rigs, raw_upstream) -> None:
    """Slow readers' windows are needed: their upstreams are paused, and go on afterwards."""
    rig = await rigs(
        await raw_upstream(bulk(6000, *WHOLE_END)), idle_s=1.0, total_s=60.0, close_flush_s=5.0
    )
    rig.facts(ledger_limit_bytes=3 * MIB)
    registry = rig.gateway.registry
    slow: list[Stream] = []
    while not rig.gateway.evictor.has_backpressure:
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
    await until(
        lambda: not rig.gateway.evictor.has_backpressure, DEADLINE_S, "upstreams wait no longer"
    )


async def test_a_run_that_begins_while_memory_is_short_keeps_little(rigs, raw_upstream) -> None:
    """It has the same manners as those that were there before; afterwards windows grow again."""
    rig = await rigs(await raw_upstream(bulk(3000, *WHOLE_END)))
    registry = rig.gateway.registry
    account = registry.ledger.open()
    rig.facts(ledger_limit_bytes=10 * MIB)
    account.set(Entry.WINDOW, 9 * MIB)
    assert rig.gateway.evictor.has_backpressure
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), 20)
    assert (answer.clean, len(answer.events)) == (True, 3003)
    run = rig.relay().run
    assert run.state is RunState.COMPLETED
    assert run.window.next_seq - run.window.first_seq < 1000
    account.close()
    await until(
        lambda: not rig.gateway.evictor.has_backpressure, DEADLINE_S, "memory is there again"
    )
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
    assert rig.relay().run.state is RunState.COMPLETED
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


async def test_connections_go_behind_kept_answers_and_before_any_run(rigs, raw_upstream) -> None:
    """At the ledger's own limit: an answer without readers, half a head, and only then a run."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(50, gate)))
    registry, ledger = rig.gateway.registry, rig.gateway.registry.ledger
    gate.set()
    await chat(rig.base_url, "m")
    gate.clear()
    await rig.idle()
    reading = await open_chat(rig.base_url, "m")
    await reading.read_events(1)
    await until(lambda: rig.relay().run.window.next_seq > 50, DEADLINE_S, "its events have come")
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"GET /v1/runs HTTP/1.1\r\n" + b"X: %b\r\n" % (b"y" * 900) * 30)
    await until(lambda: ledger.connections.total_bytes > 35_000, DEADLINE_S, "half a head")
    await asyncio.sleep(FRESH_S + 0.05)
    account = ledger.open()
    rig.facts(ledger_limit_bytes=(ledger.total_bytes + 4096) * 8 // 7)
    account.set(Entry.WINDOW, 4096)  # tight by little: the kept answer is enough
    account.set(Entry.WINDOW, 4200)
    assert (registry.finished_count, rig.gateway.server.table.statistics().evicted) == (0, 0)
    rig.facts(ledger_limit_bytes=(ledger.total_bytes + 100) * 8 // 7)
    account.set(Entry.WINDOW, 4400)  # now the head goes
    assert rig.gateway.server.table.statistics().evicted == 1
    assert not ledger.is_tight
    assert (await reader.read()).startswith(b"HTTP/1.1 503")
    writer.close()
    account.close()
    rig.facts(ledger_limit_bytes=0)
    gate.set()
    await reading.read_all()
    assert numbers(reading.events) == list(range(100))


def beside_blind(*gates: asyncio.Event) -> Play:
    """A play: floods "blind"; others get an event when each gate opens, and 300 after the last."""

    async def play(peer: Peer) -> None:
        asked = await peer.request()
        await peer.send(HEAD + chunked(ROLE, numbered(0)))
        if b"blind" in asked:
            await peer.send(*(chunked(numbered(n, 1000) * 20) for n in range(200)))
            await peer.hang()
        for number, gate in enumerate(gates[:-1], 1):
            await gate.wait()
            await peer.send(chunked(numbered(number)))
        await gates[-1].wait()
        for number in range(len(gates), 301):
            await peer.send(chunked(numbered(number, 1000)))
        await peer.send(*WHOLE_END)

    return play


async def three_blind(rig: Rig) -> list[Relay]:
    """Relays whose readers have had an event and read no more, so that their upstreams wait."""
    relays: list[Relay] = []
    for _ in range(3):
        blind = await open_chat(rig.base_url, "blind", receive_buffer=4096)
        await blind.read_events(1)
        relays.append(rig.relay())
        await until(lambda: relays[-1].run.paused_s is not None, DEADLINE_S, "its upstream waits")
    return relays


async def test_readers_who_read_nothing_go_before_one_who_reads_has_to_fail(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the ledger's limit the longest stalled run goes, no more than needed, and is told why."""
    monkeypatch.setattr("tidegate.gateway.relay.evictor.STALLED_S", 0.3)
    one_more, go_on = asyncio.Event(), asyncio.Event()
    upstream = await raw_upstream(beside_blind(one_more, go_on))
    rig = await rigs(upstream, stall_s=600.0, window_bytes=512 * 1024)
    reader = await open_chat(rig.base_url, "m")
    await reader.read_events(1)
    read = rig.relay().run
    runs = [relay.run for relay in await three_blind(rig)]
    loop, registry = rig.gateway.loop, rig.gateway.registry
    await until(
        lambda: all(
            each.stalled_s(loop.time()) > 0.3
            for run in runs
            for each in registry.find(run.id, None).subscribers
        ),
        DEADLINE_S,
        "they stall",
    )
    rig.facts(ledger_limit_bytes=registry.ledger.total_bytes + 8 * 1024)
    one_more.set()
    await until(lambda: read.window.next_seq == 3, DEADLINE_S, "it goes on")
    assert registry.swept.runs == 0  # what costs no reader anything was enough
    rig.facts(ledger_limit_bytes=registry.ledger.total_bytes + 8 * 1024)
    go_on.set()
    answer = await reader.read_all()
    assert numbers(answer.events) == list(range(301))
    assert answer.body.endswith(DONE)
    gone = [run for run in runs if run.released]
    assert 1 <= len(gone) < 3
    assert registry.swept.reasons["stalled"] == len(gone)
    for run in gone:
        assert run.state is RunState.EXPIRED
        assert str(run.reason).startswith("swept: its readers have read nothing for")
        assert str(run.reason).endswith("memory limit")
    assert registry.ended["failed"] == 0


async def test_readers_who_lag_go_before_one_who_keeps_up_has_to_fail(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no reader has stalled for long yet: what holds most goes, and is told why."""
    monkeypatch.setattr("tidegate.gateway.relay.evictor.STALLED_S", 3600.0)
    one_more, go_on = asyncio.Event(), asyncio.Event()
    upstream = await raw_upstream(beside_blind(one_more, go_on))
    rig = await rigs(upstream, stall_s=600.0, window_bytes=512 * 1024)
    reader = await open_chat(rig.base_url, "m")
    await reader.read_events(1)
    runs = [relay.run for relay in await three_blind(rig)]
    registry = rig.gateway.registry
    rig.facts(ledger_limit_bytes=registry.ledger.total_bytes + 8 * 1024)
    one_more.set()
    await reader.read_events(3)
    assert registry.swept.runs == 0  # what costs no reader anything was enough
    rig.facts(ledger_limit_bytes=registry.ledger.total_bytes + 8 * 1024)
    go_on.set()
    answer = await reader.read_all()
    assert numbers(answer.events) == list(range(301))
    assert answer.body.endswith(DONE)
    gone = [run for run in runs if run.released]
    assert 1 <= len(gone) < 3
    for run in gone:
        assert run.state is RunState.EXPIRED
        assert str(run.reason).startswith("swept: its readers lag by")
    assert registry.ended["failed"] == 0


async def test_last_words_that_stay_unread_go_before_a_reader_who_keeps_up_has_to_fail(
    rigs, raw_upstream
) -> None:
    """Readers of released runs have time to take what was written, while there is room for it."""
    go_on = asyncio.Event()
    rig = await rigs(await raw_upstream(beside_blind(go_on)), stall_s=600.0, close_flush_s=600.0)
    reader = await open_chat(rig.base_url, "m")
    await reader.read_events(1)
    relays = await three_blind(rig)
    loop, ledger = rig.gateway.loop, rig.gateway.registry.ledger
    await until(
        lambda: all(
            each.stalled_s(loop.time()) > 0.2 for relay in relays for each in relay.subscribers
        ),
        DEADLINE_S,
        "they stall",
    )
    (report,) = await take(rig, "stalled", stale_after_s=0.2)
    assert report.runs == 3
    unread_bytes = ledger.statistics()["outbound"]
    assert unread_bytes > ledger.total_bytes // 2
    rig.facts(ledger_limit_bytes=ledger.total_bytes + 8 * 1024)
    go_on.set()
    answer = await reader.read_all()
    assert numbers(answer.events) == list(range(301))
    assert answer.body.endswith(DONE)
    assert ledger.statistics()["outbound"] < unread_bytes


async def test_who_keeps_up_is_not_held_back_by_his_own_event(rigs, raw_upstream) -> None:
    """The ledger gets tight, and stays so, while an event of his is being charged."""
    gate = asyncio.Event()
    rig = await rigs(await raw_upstream(counting(100, gate)))
    reader = await open_chat(rig.base_url, "m")
    await reader.read_events(101)
    ledger = rig.gateway.registry.ledger
    others = ledger.open()
    others.set(Entry.BODY, 15 * MIB)
    rig.facts(ledger_limit_bytes=16 * MIB)
    gate.set()
    answer = await asyncio.wait_for(reader.read_all(), DEADLINE_S)
    assert ledger.is_tight
    assert numbers(answer.events) == list(range(200))
    others.close()
