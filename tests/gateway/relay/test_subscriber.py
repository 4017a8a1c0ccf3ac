"""Readers of a run: live and lagging, kept awake, dropped when they read nothing."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace

import pytest

from fakes.client import Stream, open_chat
from fakes.machine import until
from fakes.upstream import DONE, FINISH, ROLE, numbered
from gateway.gateway_rig import DEADLINE_S, Rig, Tap
from tidegate.core.formats.base import COMMENT as KEEP_ALIVE
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.state import RunState
from tidegate.gateway.relay.subscriber import StreamSubscriber

ON_BOTH_LOOPS = True


def pad(first: int, last: int) -> list[bytes]:
    """Numbered events of 1000 bytes."""
    return [numbered(number, 1000) for number in range(first, last)]


async def joined(rig: Rig, run_id: str, after: int = -1, receive_buffer: int = 0) -> Stream:
    stream = await Stream.open(
        rig.base_url,
        f"/v1/runs/{run_id}/stream?starting_after={after}",
        receive_buffer=receive_buffer,
    )
    return await stream.head()


# --- live and lagging -----------------------------------------------------------------------------


async def test_readers_join_anywhere_and_miss_nothing(rigs, raw_upstream) -> None:
    """At the start, in the middle, at the end, before the next event: each has what follows."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play))
    creator = await open_chat(rig.base_url, "m")
    tap.send(*pad(0, 300))
    await creator.read_events(301)
    readers = {after: await joined(rig, creator.run_id, after) for after in (-1, 0, 63, 150, 300)}
    tap.send(*pad(300, 400))
    tap.finish()
    await creator.read_rest()
    sent = [event.data for event in creator.events]
    for after, reader in readers.items():
        await asyncio.wait_for(reader.read_all(), DEADLINE_S)
        assert [event.id for event in reader.events] == [str(n) for n in range(after + 1, 403)]
        assert [event.data for event in reader.events] == sent[after + 1 :]
        assert reader.clean


async def test_going_from_live_to_lagging_and_back_loses_and_repeats_nothing(
    rigs, raw_upstream
) -> None:
    """Again and again, at random moments, with and without ids."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play))
    creator = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
    await until(lambda: rig.gateway.registry.total, DEADLINE_S, "the run is there")
    relay = rig.relay()
    tap.send(*pad(0, 1))
    await creator.read_events(2)
    reader = await joined(rig, creator.run_id, receive_buffer=16 * 1024)
    number = 1
    for burst in (1500, 3, 2000, 1, 1, 1500, 40, 1500):
        tap.send(*pad(number, number + burst))
        number += burst
        if burst > 1000:  # more than the sockets on the way take together
            await until(
                lambda: any(not subscriber.live for subscriber in relay.subscribers),
                DEADLINE_S,
                "it lags",
                0.001,
            )
        for stream in (creator, reader):
            await asyncio.wait_for(stream.read_events(number + 1), DEADLINE_S)
        await until(
            lambda: all(subscriber.live for subscriber in relay.subscribers), DEADLINE_S, "live"
        )
    tap.finish()
    for stream in (creator, reader):
        await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
    expected = ROLE + b"".join(pad(0, number)) + FINISH + DONE
    assert bytes(creator.body) == expected
    assert [event.id for event in reader.events] == [str(n) for n in range(number + 3)]
    assert b"".join(re.sub(rb"^id: \d+\n", b"", e.raw) for e in reader.events) == expected


async def test_who_reads_too_slowly_is_told_what_was_evicted(rigs, raw_upstream) -> None:
    """Another reader was faster; the slow one's error names the oldest event that is kept."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), window_bytes=200_000)
    quick = await open_chat(rig.base_url, "m")
    await until(lambda: rig.gateway.registry.total, DEADLINE_S, "the run is there")
    tap.send(*pad(0, 1))
    await quick.read_events(2)
    slow = await joined(rig, quick.run_id, receive_buffer=16 * 1024)
    run = rig.relay().run
    tap.send(*pad(1, 4000))
    await asyncio.wait_for(quick.read_events(4001), DEADLINE_S)
    await asyncio.wait_for(slow.read_all(), DEADLINE_S)
    *events, last = slow.events
    assert [event.id for event in events] == [str(n) for n in range(len(events))]
    assert last.error is not None
    assert last.error["code"] == "cursor_evicted"
    assert "read too slowly" in last.error["message"]
    assert slow.clean
    assert run.state is RunState.STREAMING
    tap.finish()
    await quick.read_rest()
    assert len(quick.events) == 4003


async def test_a_run_that_is_released_tells_its_lagging_reader_why(rigs, raw_upstream) -> None:
    """Cancelled, and its record gone: the reason still reaches its reader."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), close_flush_s=3.0)
    slow = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
    await until(lambda: rig.gateway.registry.total, DEADLINE_S, "the run is there")
    relay = rig.relay()
    tap.send(*pad(0, 2500))
    await until(lambda: relay.run.paused_s is not None, DEADLINE_S, "it lags")
    relay.cancel("cancelled by client")
    rig.gateway.registry.sweep(rig.gateway.loop.time() + 10_000.0)
    assert relay.run.released
    assert relay.run.account.entries[Entry.WINDOW] == 0
    await asyncio.wait_for(slow.read_all(), DEADLINE_S)
    (error,) = [event.error for event in slow.events if event.error]
    assert error["message"] == "cancelled by client"
    assert DONE not in slow.body
    assert slow.clean
    await until(lambda: not rig.gateway.registry.ledger.accounts, DEADLINE_S, "nothing is held")


# --- keep-alives ----------------------------------------------------------------------------------


async def test_silence_is_filled_from_the_first_byte_on(rigs, raw_upstream) -> None:
    """Every keepalive_s, also when the silence begins long after the reader came."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), keepalive_s=0.2, hold_s=0.1)
    stream = await open_chat(rig.base_url, "m")
    await stream.head()  # after hold_s
    loop = asyncio.get_running_loop()
    since_s = loop.time()

    async def quiet(count: int) -> None:
        """Waits until there are `count` keep-alives at the end of what came."""
        before = len(stream.body)
        stream.rest = stream.rest or stream.pieces()
        async for _ in stream.rest:
            if bytes(stream.body[before:]) == KEEP_ALIVE * count:
                break

    await asyncio.wait_for(quiet(3), DEADLINE_S)
    assert loop.time() - since_s >= 0.55
    tap.send(numbered(0))
    await stream.read_events(2)
    await asyncio.wait_for(quiet(2), DEADLINE_S)
    tap.finish()
    await stream.read_rest()
    assert bytes(stream.body).replace(KEEP_ALIVE, b"") == ROLE + numbered(0) + FINISH + DONE


async def test_a_keep_alive_stands_between_two_events_only(rigs, raw_upstream) -> None:
    """Half an event has come from the upstream: the client still stands at an event's end."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), keepalive_s=0.1)
    stream = await open_chat(rig.base_url, "m")
    tap.send(numbered(0), numbered(1)[:40])
    await stream.read_events(2)
    assert stream.rest is not None
    async with asyncio.timeout(DEADLINE_S):
        async for _ in stream.rest:
            if stream.body.count(KEEP_ALIVE) >= 2:
                break
    tap.send(numbered(1)[40:])
    tap.finish()
    await asyncio.wait_for(stream.read_rest(), DEADLINE_S)
    for comment in re.finditer(re.escape(KEEP_ALIVE), bytes(stream.body)):
        before = bytes(stream.body[: comment.start()])
        assert before.endswith((b"\n\n", KEEP_ALIVE)) or not before
    run = rig.relay().run
    assert (
        run.window.read(run.window.cursor(0))[0] == ROLE + numbered(0) + numbered(1) + FINISH + DONE
    )


class Reads:
    """A client that has read everything, at a time of its own."""

    http10 = False
    outbound_bytes = 0
    high_water_bytes = 1

    def __init__(self, now_s: float) -> None:
        self.loop = SimpleNamespace(time=lambda: now_s)

    def write(self, data: bytes) -> int:
        return 0

    def stalled_s(self, now_s: float) -> float:
        return 0.0


async def test_the_next_look_is_always_later(rigs, raw_upstream) -> None:
    """On a clock of whole milliseconds too, where a sum may miss the moment by a rounding."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), keepalive_s=0.05)
    stream = await open_chat(rig.base_url, "m")
    tap.send(numbered(0))
    await stream.read_events(2)
    run = rig.relay().run
    for wrote_ms in (*range(1_000_000, 1_000_500), *range(50_000_000, 50_000_500)):
        for now_ms in (wrote_ms, wrote_ms + 48, wrote_ms + 49, wrote_ms + 50):
            subscriber = StreamSubscriber(run, Reads(wrote_ms / 1000), b"")
            assert subscriber.check(now_ms / 1000) > now_ms / 1000


# --- readers that read nothing --------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("over", [False, True], ids=["running", "ended"])
async def test_who_reads_nothing_is_dropped_after_stall_s(rigs, raw_upstream, over: bool) -> None:
    """And what was outbound for it is given back; another reader is not disturbed."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), stall_s=1.5)
    reader = await open_chat(rig.base_url, "m")
    tap.send(*pad(0, 1))
    await reader.read_events(2)
    dead = await joined(rig, reader.run_id, receive_buffer=16 * 1024)
    tap.send(*pad(1, 2500))
    if over:
        tap.finish()
    await asyncio.wait_for(reader.read_events(2501), DEADLINE_S)
    run = rig.relay().run
    await until(lambda: run.readers == (0 if over else 1), DEADLINE_S, "it was dropped")
    await until(lambda: not run.account.entries[Entry.OUTBOUND], DEADLINE_S, "nothing is outbound")
    tap.finish()
    await reader.read_rest()
    assert len(reader.events) == 2503
    await asyncio.wait_for(dead.read_all(), DEADLINE_S)
    assert not dead.clean


@pytest.mark.long
async def test_slow_is_not_dead(rigs, raw_upstream) -> None:
    """A reader that makes progress within stall_s stays, however long it takes in all."""
    tap = Tap()
    rig = await rigs(await raw_upstream(tap.play), stall_s=2.0)
    slow = await open_chat(rig.base_url, "m", receive_buffer=16 * 1024)
    tap.send(*pad(0, 3000))
    tap.finish()
    for _ in range(8):
        await slow.read_events(len(slow.events) + 100)
        await asyncio.sleep(0.3)
    await asyncio.wait_for(slow.read_rest(), DEADLINE_S)
    assert bytes(slow.body) == ROLE + b"".join(pad(0, 3000)) + FINISH + DONE
