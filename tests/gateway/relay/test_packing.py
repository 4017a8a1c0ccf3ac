"""Answers that are over are deflated once they are left alone, and read as before."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from itertools import pairwise
from unittest.mock import Mock

import pytest

from fakes.client import Stream, chat, get, numbers, open_chat, replay, without_ids
from fakes.machine import until
from fakes.upstream import DONE, FINISH, ROLE, chunk
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Rig, chunked, two_generations
from gateway.relay.relay_rig import always
from gateway.relay.test_evictor import take
from gateway.relay.test_registry import WHOLE_END, bulk
from gateway.responses_rig import CREATED, WORDS, ask, sends, told
from gateway.responses_rig import DONE as RESPONSE_DONE
from tidegate.core.runs import deflated
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import Trigger
from tidegate.core.runs.window import SEGMENT_BYTES
from tidegate.core.settings import Limits
from tidegate.gateway.relay import packing
from tidegate.gateway.relay.handover import Peer as OtherGeneration
from tidegate.gateway.relay.light_answers import LightAnswers
from tidegate.gateway.relay.packing import BATCH_BYTES, REST_S, Packing
from tidegate.gateway.relay.relay import Relay

ON_EVERY_ROAD = True

MIB = 1024 * 1024
QUIET_S = 0.1


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds are long for a test."""
    monkeypatch.setattr(packing, "QUIET_S", QUIET_S)


async def packed(rig: Rig) -> None:
    """Waits until all that is over is packed, and nothing is about to happen."""
    await rig.idle()
    work = rig.gateway.registry.packing
    await until(lambda: not len(work) and not work._is_busy, DEADLINE_S, "it is packed")
    await until(lambda: work._timer is None, DEADLINE_S, "nothing is planned")


async def answered(rig: Rig) -> tuple[Stream, int]:
    """An answer that is packed, and what was held before."""
    answer = await asyncio.wait_for(chat(rig.base_url, "m"), DEADLINE_S)
    await rig.idle()
    held = rig.held_bytes
    await packed(rig)
    return answer, held


async def test_a_finished_answer_is_packed_and_read_from_any_event(rigs, raw_upstream) -> None:
    """Its reader notices nothing, and what it read stays packed."""
    rig = await rigs(await raw_upstream(bulk(300, *WHOLE_END)))
    answer, held = await answered(rig)
    assert rig.held_bytes < held / 20
    registry = rig.gateway.registry
    assert registry.packing.freed_bytes >= held - rig.held_bytes - SEGMENT_BYTES
    assert registry.ledger.total_bytes - registry.ledger.connections.total_bytes == rig.held_bytes
    small = rig.held_bytes
    [listed] = (await get(rig.base_url, "/v1/runs")).json()["data"]
    assert (listed["first_seq"], listed["next_seq"], listed["bytes"]) == (0, 303, small)
    assert (len(registry.light), registry.finished_count, registry.total) == (1, 1, 1)
    shown = (await get(rig.base_url, f"/v1/runs/{answer.run_id}")).json()
    assert (len(registry.light), registry.finished_count, registry.total) == (0, 1, 1)
    assert (shown["first_seq"], shown["next_seq"], shown["bytes"] < 2 * small) == (0, 303, True)
    assert shown["attempt_list"][0]["outcome"] == "completed"
    for after in (None, 0, 130, 301):
        again = await replay(rig.base_url, answer.run_id, after=after)
        assert again.clean
        assert bytes(answer.body).endswith(without_ids(bytes(again.body)))
        assert len(again.events) == 303 - (0 if after is None else after + 1)
    assert (await replay(rig.base_url, answer.run_id, after=302)).status == 204
    assert rig.held_bytes < 2 * small
    await packed(rig)
    assert (rig.held_bytes, len(registry.light)) == (small, 1)


async def test_many_readers_of_a_packed_answer_read_the_same(rigs, raw_upstream) -> None:
    """At once, in the middle of whatever the thread is doing."""
    rig = await rigs(await raw_upstream(bulk(300, *WHOLE_END)))
    answer = await chat(rig.base_url, "m")
    found = []
    for _ in range(10):
        reads = (replay(rig.base_url, answer.run_id, after=n * 60) for n in range(5))
        found += await asyncio.gather(*reads)
        await asyncio.sleep(QUIET_S / 4)
    for number, again in enumerate(found):
        assert numbers(again.events) == list(range(number % 5 * 60, 300))
    await packed(rig)
    assert numbers((await replay(rig.base_url, answer.run_id)).events) == list(range(300))


@pytest.mark.parametrize("rigs", ["light"], indirect=True)
async def test_a_light_answer_is_packed_and_becomes_a_run_again(rigs, raw_upstream) -> None:
    """Asked for by its owner it is a run like any other, and is packed anew."""
    body = (ROLE, *(chunk(content=f"word{n} ") for n in range(30)), FINISH, DONE)
    rig = await rigs(await raw_upstream(always(HEAD + chunked(b"".join(body)) + LAST)))
    answer, held = await answered(rig)
    registry = rig.gateway.registry
    small = rig.held_bytes
    assert held - small == registry.packing.freed_bytes > len(b"".join(body)) / 2
    [listed] = (await get(rig.base_url, "/v1/runs")).json()["data"]
    assert (listed["id"], listed["next_seq"], listed["bytes"]) == (answer.run_id, 33, small)
    assert registry.find(answer.run_id, "f" * 64) is None
    again = await replay(rig.base_url, answer.run_id, after=1)
    assert without_ids(bytes(again.body)) == b"".join(body[2:])
    assert len(registry.light) == 0
    await packed(rig)
    assert rig.held_bytes < held + 4096 - len(b"".join(body)) / 2
    assert without_ids(bytes((await replay(rig.base_url, answer.run_id)).body)) == b"".join(body)


@pytest.mark.long
async def test_what_is_being_read_is_packed_when_its_reader_has_gone(rigs, raw_upstream) -> None:
    """To inflate what is read at once again would be work for nothing."""
    rig = await rigs(await raw_upstream(bulk(6000, *WHOLE_END)), window_bytes=16 * MIB)
    reader = await open_chat(rig.base_url, "m", receive_buffer=4096)
    await reader.read_events(1)
    relay = rig.relay()
    rest = asyncio.ensure_future(reader.read_all())
    await until(lambda: relay.run.is_over, DEADLINE_S, "it is over")
    slow = await Stream.open(rig.base_url, f"/v1/runs/{relay.run.id}/stream", receive_buffer=4096)
    await slow.read_events(1)
    await rest
    held = relay.run.window.held_bytes
    await asyncio.sleep(4 * QUIET_S)
    assert relay.run.window.held_bytes == held
    await slow.vanish()
    await until(lambda: relay.run.window.held_bytes < held / 20, DEADLINE_S, "it is packed")
    await packed(rig)


async def test_what_is_not_worth_it_stays_as_it_is(rigs, raw_upstream, monkeypatch) -> None:
    """A few words are not tried, noise is tried once, however often it is read."""
    tried = []

    def deflate(data: bytes) -> bytes | None:
        tried.append(len(data))
        return deflated.deflate(data)

    monkeypatch.setattr(packing, "deflate", deflate)
    noise = random.Random(1).choices([chr(n) for n in range(35, 127) if chr(n) != "\\"], k=30_000)
    for content, times in (("a few words", 0), ("".join(noise), 1)):
        body = (ROLE, chunk(content=content), FINISH, DONE)
        rig = await rigs(await raw_upstream(always(HEAD + chunked(b"".join(body)) + LAST)))
        tried.clear()
        answer, held = await answered(rig)
        for _ in range(3):
            assert (await replay(rig.base_url, answer.run_id)).clean
            await packed(rig)
        again = without_ids(bytes((await replay(rig.base_url, answer.run_id)).body))
        assert again == b"".join(body)
        assert len(tried) <= times + 1  # once as a light answer, once as a run
        assert len(again) < rig.held_bytes <= held + 5000


async def test_a_background_response_is_found_by_its_id_when_it_is_packed(
    rigs, raw_upstream
) -> None:
    """Whole, and as events from anywhere; then it is deleted."""
    rig = await rigs(await raw_upstream(sends(CREATED, *WORDS * 30, RESPONSE_DONE)))
    begun = await ask(rig, "", {"model": "m", "input": "hi", "background": True})
    identity = told(begun)["id"]
    await rig.idle()
    before = await ask(rig, f"/{identity}")
    events = await ask(rig, f"/{identity}?stream=true&starting_after=7")
    await packed(rig)
    assert rig.gateway.registry.packing.freed_bytes > 1000
    assert (await ask(rig, f"/{identity}")).body == before.body
    assert told(before)["status"] == "completed"
    again = await ask(rig, f"/{identity}?stream=true&starting_after=7")
    assert again.body == events.body
    await get(rig.base_url, f"/v1/responses/{identity}", method="DELETE")
    assert rig.held_bytes == 0
    assert len(rig.gateway.registry.packing) == 0


async def test_a_packed_answer_goes_over_to_the_other_generation(rigs, raw_upstream) -> None:
    """As it came; there it is packed again."""
    draining, serving = await two_generations(rigs, await raw_upstream(bulk(300, *WHOLE_END)))
    answer, held = await answered(draining)
    relay = draining.relay()
    other = OtherGeneration(serving.peer_socket, draining.settings.limits)
    assert await other.hand_over(relay.run)
    draining.gateway.registry.handed_over(relay)
    other.close()
    assert draining.held_bytes == 0
    again = await replay(serving.base_url, answer.run_id)
    assert without_ids(bytes(again.body)) == answer.body
    await packed(serving)
    assert serving.held_bytes < held / 20


async def test_what_is_packed_is_evicted_and_swept_by_what_it_holds(rigs, raw_upstream) -> None:
    """What is promised is what is freed; nothing waits to be packed that is gone."""
    rig = await rigs(await raw_upstream(bulk(300, *WHOLE_END)))
    for number in range(4):
        await answered(rig) if number % 2 else await chat(rig.base_url, "m")
    await rig.idle()
    registry = rig.gateway.registry
    held = rig.held_bytes
    (report,) = await take(rig, "finished")
    assert (report.runs, report.freed_bytes) == (4, held)
    assert report.promised_bytes == held
    assert (rig.held_bytes, len(registry.packing)) == (0, 0)


@pytest.mark.long
async def test_packed_answers_are_there_where_others_had_to_go(rigs, raw_upstream) -> None:
    """In a ledger that holds three of them as they came."""
    rig = await rigs(await raw_upstream(bulk(300, *WHOLE_END)))
    rig.facts(ledger_limit_bytes=1_200_000)
    kept = [(await answered(rig))[0] for _ in range(20)]
    assert rig.gateway.registry.swept.runs == 0
    for answer in kept:
        assert without_ids(bytes((await replay(rig.base_url, answer.run_id)).body)) == answer.body


@pytest.mark.long
async def test_to_read_a_huge_answer_takes_no_more_than_a_segment(rigs, raw_upstream) -> None:
    """It is small when it is packed and large when it is read: at the limit it goes, as it is.

    Readers who read nothing hold what was written for them, in their account; the packed window
    does not grow, and the ledger keeps its limit.
    """
    rig = await rigs(await raw_upstream(bulk(8000, *WHOLE_END)), window_bytes=16 * MIB)
    answer, held = await answered(rig)
    registry = rig.gateway.registry
    assert held > 8_000_000
    small = rig.held_bytes
    assert small < held / 20
    limit_bytes = small + 2 * MIB
    rig.facts(ledger_limit_bytes=limit_bytes)
    path = f"/v1/runs/{answer.run_id}/stream"
    peaks, reclaim = [0], registry.ledger.reclaim

    def noting() -> None:
        peaks.append(registry.ledger.total_bytes)
        reclaim()

    registry.ledger.reclaim = noting
    readers = [await Stream.open(rig.base_url, path, receive_buffer=4096) for _ in range(60)]
    await until(lambda: registry.swept.runs, DEADLINE_S, "it went")
    assert limit_bytes * 7 / 8 < max(peaks) <= limit_bytes + 3 * SEGMENT_BYTES
    assert registry.swept.by_kind.keys() == {"lagging"}
    assert registry.swept.by_kind["lagging"] < 2 * small
    for reader in readers[:3]:
        read = await asyncio.wait_for(reader.read_all(), DEADLINE_S)
        assert DONE not in read.body
        assert not read.clean or "memory limit" in read.events[-1].error["message"]


@pytest.mark.long
async def test_a_reader_of_a_huge_answer_has_it_whole_at_any_limit(rigs, raw_upstream) -> None:
    """Inflated at once it would not fit."""
    rig = await rigs(await raw_upstream(bulk(8000, *WHOLE_END)), window_bytes=16 * MIB)
    answer, _ = await answered(rig)
    rig.facts(ledger_limit_bytes=rig.held_bytes + 1 * MIB)
    again = await replay(rig.base_url, answer.run_id)
    assert numbers(again.events) == list(range(8000))
    assert rig.gateway.registry.swept.runs == 0


async def test_a_batch_that_fails_costs_the_others_nothing(rigs, raw_upstream, monkeypatch) -> None:
    """It stays as it is, is read as it is, and the log says so."""
    rig = await rigs(await raw_upstream(bulk(300, *WHOLE_END)))

    def fail(data: bytes) -> bytes | None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(packing, "deflate", fail)
        first, held = await answered(rig)
    assert rig.held_bytes > held - SEGMENT_BYTES
    assert [record.getMessage() for record in rig.errors] == ["answers could not be packed"]
    rig.errors.clear()
    assert without_ids(bytes((await replay(rig.base_url, first.run_id)).body)) == first.body
    await answered(rig)
    assert rig.held_bytes < held / 10


@pytest.mark.long
async def test_a_thread_that_is_slow_keeps_nothing_waiting(rigs, raw_upstream, monkeypatch) -> None:
    """What is in its hands is read, released and swept meanwhile, and is not counted twice."""
    rig = await rigs(await raw_upstream(bulk(300, *WHOLE_END)))
    begun = []

    def slow(data: bytes) -> bytes | None:
        begun.append(data)
        time.sleep(0.3)
        return deflated.deflate(data)

    monkeypatch.setattr(packing, "deflate", slow)
    answer = await chat(rig.base_url, "m")
    await until(lambda: begun, DEADLINE_S, "it is in the thread")
    assert without_ids(bytes((await replay(rig.base_url, answer.run_id)).body)) == answer.body
    await take(rig, "finished")
    assert rig.held_bytes == 0
    await packed(rig)
    assert rig.held_bytes == 0


def left_alone(number: int, ledger: Ledger) -> Relay:
    """A finished run of 480 KB of noise, which takes long and saves half."""
    noise = random.Random(number)
    run = Run(
        run_id=f"run_{number}", owner="", request=RunRequest("m"), body=b"", limits=Limits(),
        account=ledger.open(), now_s=0.0, created=0.0,
    )  # fmt: skip
    run.begin_attempt("box", "m", 0.0)
    for _ in range(12):
        run.feed(b'data: {"x":"%s"}\n\n' % noise.randbytes(20_000).hex().encode(), 1.0)
    run.end(Trigger.COMPLETE, None, None, 2.0, 2.0)
    return Relay(Mock(), run, [], asyncio.get_running_loop())


@pytest.mark.parametrize(("runs", "share", "rest"), [(6, 0.2, 10), (1, 0.3, 100)])
async def test_it_takes_a_small_part_of_a_processor_however_much_waits(
    monkeypatch: pytest.MonkeyPatch, runs: int, share: float, rest: float
) -> None:
    """In bounded batches, off the loop, with rests between them; then nothing goes on.

    A rest is longer where a quarter of a processor goes into what is asked of the worker.
    """
    monkeypatch.setattr(packing.time, "process_time", lambda: share * time.monotonic())
    batches: list[tuple[float, float, int]] = []
    really = packing._deflate_all

    def noting(batch: packing._Batch) -> object:
        assert threading.current_thread() is not threading.main_thread()
        began_s, size = time.monotonic(), sum(len(data) for _, found in batch for data in found)
        done = really(batch)
        batches.append((began_s, done[1], size))
        return done

    monkeypatch.setattr(packing, "_deflate_all", noting)
    ledger = Ledger()
    relays = {
        relay.run.id: relay for relay in (left_alone(number, ledger) for number in range(runs))
    }
    before = ledger.total_bytes
    work = Packing(relays, LightAnswers(ledger), Mock(), asyncio.get_running_loop())
    for run_id in relays:
        work.touch(run_id)
    await until(lambda: not len(work) and not work._is_busy, DEADLINE_S, "all are packed")
    freed = before - ledger.total_bytes
    assert freed - runs * 1024 <= work.freed_bytes <= freed  # what the last segments had of slack
    assert freed > before / 4
    assert ledger.entries[Entry.WINDOW] == sum(r.run.window.held_bytes for r in relays.values())
    assert len(batches) >= 2 * runs - 1
    for (began_s, took_s, size), (next_s, _, _) in pairwise(batches):
        assert size <= BATCH_BYTES + SEGMENT_BYTES
        assert next_s - began_s >= max(REST_S, rest * took_s) - 0.001
    await until(lambda: work._timer is None, DEADLINE_S, "nothing is planned")
    work.close()


async def test_while_memory_is_short_a_packed_run_stays_one(rigs, raw_upstream) -> None:
    """To let go of it first and to find no room then would lose it."""
    rig = await rigs(await raw_upstream(bulk(300, *WHOLE_END)))
    await chat(rig.base_url, "m")
    await rig.idle()
    registry = rig.gateway.registry
    if len(registry.light):  # on its road it never was one
        return
    registry.packing.close()
    (relay,) = registry.finished()
    while found := relay.run.transcript.loose(MIB):
        relay.run.transcript.pack([(data, deflated.deflate(data)) for data in found])
    registry.ledger.limit_bytes = registry.ledger.total_bytes + 1
    assert registry.ledger.is_tight
    assert registry.packing._loose(relay.run.id, MIB) == []
    assert (registry.finished(), len(registry.light)) == ([relay], 0)
    registry.ledger.limit_bytes = 0
    assert registry.packing._loose(relay.run.id, MIB) == []
    assert (registry.finished(), len(registry.light)) == ([], 1)
