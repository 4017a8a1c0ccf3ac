"""What a bundle of evidence shows of a worker's inside: figures, names, and places in the code.

Everything here is bounded, for it is asked when things are bad already, and it takes the loop's
time: 40 ms with 2,000 tasks and 650,000 objects, 60 ms with a million (measured). There are no
arguments, no local variables and no values in it: a stack is its files, lines and functions.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType

import tidegate
from tidegate.core.protocol.worker import Inspected
from tidegate.gateway.relay.registry import Registry
from tidegate.gateway.relay.summaries import summarise

PACKAGE = f"{Path(tidegate.__file__).parent}/"
MOST_RUNS = 200
MOST_TYPES = 100
MOST_STACKS = 200
MOST_FRAMES = 20
MOST_TASKS = 2000  # looked at; equal stacks become one, and few differ
# Counting the types of a million objects takes 55 ms. How many there are is only known by listing
# them; Python's blocks are counted in 40 us, and there were 2.6 of them an object: 2 million.
MOST_BLOCKS = 5_000_000


def inspect(registry: Registry, request: int) -> Inspected:
    """Look around, from the loop's own thread."""
    relays = registry.active() + registry.finished()
    largest = heapq.nlargest(MOST_RUNS, relays, key=lambda relay: relay.run.account.total_bytes)
    tasks = asyncio.all_tasks()
    return Inspected(
        request=request,
        ledger=registry.ledger.statistics(),
        runs=[summarise(relay, registry.token_names) for relay in largest],
        runs_total=registry.active_count + registry.finished_count,
        types=count_types(),
        stacks=show_stacks(tasks),
        tasks=len(tasks),
        descriptors=_descriptors(),
    )


def count_types(most_blocks: int = MOST_BLOCKS) -> dict[str, int]:
    """Count objects by type, the most frequent first; those that the collector froze too."""
    blocks = sys.getallocatedblocks()
    if blocks > most_blocks:
        return {"(too many to count; blocks of memory)": blocks}
    counts = Counter(map(type, _objects()))
    return {
        f"{kind.__module__}.{kind.__qualname__}": count
        for kind, count in counts.most_common(MOST_TYPES)
    }


def _objects() -> list[object]:
    """List every object that the collector knows; what was frozen is so again afterwards."""
    if not gc.get_freeze_count():
        return gc.get_objects()
    was_enabled = gc.isenabled()
    gc.disable()  # a collection would look at all that is not frozen for once
    try:
        gc.unfreeze()
        return gc.get_objects()
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def show_stacks(tasks: set[asyncio.Task[object]]) -> list[str]:
    """Show where every thread and task stands, outermost first; equal stacks are counted."""
    stacks: Counter[str] = Counter()
    for task in islice(tasks, MOST_TASKS):
        stacks["\n".join(["task", *_task_frames(task)])] += 1
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads = [
        "\n".join([f"thread {names.get(ident, 'without a name')}", *_thread_frames(frame)])
        for ident, frame in sys._current_frames().items()  # noqa: SLF001  (documented)
    ]
    shown = [
        text if count == 1 else text.replace("task", f"{count} tasks", 1)
        for text, count in stacks.most_common()
    ]
    return (threads + shown)[:MOST_STACKS]


def _task_frames(task: asyncio.Task[object]) -> list[str]:
    """A task waits in a coroutine that waits in a coroutine; the innermost waits for an event."""
    frames: list[str] = []
    inner: object = task.get_coro()
    while inner is not None and len(frames) < MOST_FRAMES:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if not isinstance(frame, FrameType):
            break
        frames.append(_place(frame.f_code, frame.f_lineno))
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
    return frames


def _thread_frames(innermost: FrameType) -> list[str]:
    def outwards() -> Iterator[FrameType]:
        frame: FrameType | None = innermost
        while frame is not None:
            yield frame
            frame = frame.f_back

    nearest = islice(outwards(), MOST_FRAMES)
    return [_place(frame.f_code, frame.f_lineno) for frame in nearest][::-1]


def _place(code: CodeType, line: int | None) -> str:
    """Shorten to "gateway/relay/relay.py:120 Relay.serve": the end of the path is enough."""
    file = code.co_filename.removeprefix(PACKAGE)
    if file == code.co_filename:  # of Python or a library
        file = "/".join(file.rsplit("/", 2)[-2:])
    return f"{file}:{line} {code.co_qualname}"


def _descriptors() -> int:
    """Count how many are open; 0 where the system does not say."""
    for place in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(os.listdir(place)) - 1  # noqa: PTH208  (thousands of Path objects)
    return 0
