"""What a worker shows of its inside, and what it never shows."""

from __future__ import annotations

import asyncio
import gc
import threading

import msgspec

from fakes.client import open_chat
from tidegate.core.protocol.lines import MAX_LINE_BYTES
from tidegate.core.protocol.worker import encode
from tidegate.gateway import snapshot
from tidegate.gateway.snapshot import count_types, inspect, show_stacks

ON_BOTH_LOOPS = True
CANARY = "CANARY-a-value-in-a-local-variable"


class Planted:
    """Objects to be found by their type."""


async def innermost(text: str, event: asyncio.Event) -> None:
    await event.wait()


async def outermost(text: str, event: asyncio.Event) -> None:
    await innermost(text, event)


async def test_runs_are_shown_by_size_with_the_ledger_that_holds_them(
    rigs, scripted_upstream
) -> None:
    """The largest first, and the kinds of buffers add up to the ledger."""
    rig = await rigs(scripted_upstream)
    small = await open_chat(rig.base_url, "stuck:2")
    large = await open_chat(rig.base_url, "stuck:90")
    await small.read_events(3)
    await large.read_events(90)
    shown = inspect(rig.gateway.registry, 7)
    assert shown.request == 7
    assert [run.id for run in shown.runs] == [large.run_id, small.run_id]
    assert sum(shown.ledger.values()) == rig.gateway.registry.ledger.total_bytes > 90_000
    assert shown.runs_total == 2
    assert shown.descriptors > 5
    assert any("gateway/relay/relay.py" in stack or "asyncio" in stack for stack in shown.stacks)


async def test_a_task_shows_every_coroutine_that_it_waits_in() -> None:
    """Outermost first, by file, line and function; not by name or value."""
    event = asyncio.Event()
    task = asyncio.create_task(outermost(CANARY, event), name=CANARY)
    await asyncio.sleep(0)
    [stack] = show_stacks({task})[-1:]
    lines = stack.splitlines()
    assert lines[0] == "task"
    assert [line.split()[1] for line in lines[1:3]] == ["outermost", "innermost"]
    assert lines[1].startswith("gateway/test_snapshot.py:")
    assert CANARY not in stack
    event.set()
    await task


async def test_equal_stacks_are_counted() -> None:
    """A thousand tasks at one place are one line of evidence."""
    event = asyncio.Event()
    tasks = {asyncio.create_task(outermost(str(n), event)) for n in range(1000)}
    await asyncio.sleep(0)
    assert [s.splitlines()[0] for s in show_stacks(tasks) if "outermost" in s] == ["1000 tasks"]
    event.set()
    await asyncio.gather(*tasks)


async def test_stacks_are_bounded(monkeypatch) -> None:
    """However deep and however many: so many stacks, and so many frames of each."""
    event = asyncio.Event()

    async def deep(levels: int) -> None:
        await (deep(levels - 1) if levels else event.wait())

    monkeypatch.setattr(snapshot, "MOST_STACKS", 10)
    tasks = {asyncio.create_task(deep(n)) for n in range(60)}
    await asyncio.sleep(0)
    stacks = show_stacks(tasks)
    assert len(stacks) == 10
    assert {len(stack.splitlines()) for stack in stacks} <= set(range(snapshot.MOST_FRAMES + 2))
    event.set()
    await asyncio.gather(*tasks)


async def test_threads_show_where_they_stand() -> None:
    """Each with its name; a thread that hangs is seen to hang where it does."""
    begun, over = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        over.wait()

    thread = threading.Thread(target=hang, name="a-busy-thread")
    thread.start()
    begun.wait()
    shown = show_stacks(set())
    over.set()
    thread.join()
    [stack] = [s for s in shown if s.startswith("thread a-busy-thread")]
    assert " test_threads_show_where_they_stand.<locals>.hang" in stack


def test_types_are_counted_by_name() -> None:
    """The most frequent first, at most so many."""
    planted = [Planted() for _ in range(300_000)]
    counts = count_types()
    assert counts[f"{Planted.__module__}.Planted"] == len(planted)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert len(counts) <= snapshot.MOST_TYPES


def test_what_the_collector_froze_is_counted_and_stays_frozen() -> None:
    """A worker freezes what lives long, and that is where a leak is seen."""
    planted = [Planted() for _ in range(1_000)]
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        assert count_types()[f"{Planted.__module__}.Planted"] == len(planted)
        assert gc.get_freeze_count() >= frozen
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_too_many_objects_are_not_counted() -> None:
    """It would hold up the loop; what is known without counting is said instead."""
    [(words, blocks)] = count_types(most_blocks=1000).items()
    assert "too many" in words
    assert blocks > 1000


async def test_the_answer_fits_into_a_line(rigs, scripted_upstream) -> None:
    """Everything is bounded, so that the watchdog takes it."""
    rig = await rigs(scripted_upstream)
    line = encode(inspect(rig.gateway.registry, 1))
    assert len(line) < MAX_LINE_BYTES // 4
    assert msgspec.json.decode(line)["type"] == "inspected"
