"""Free pages go back after a burst and when all is quiet, once each, and never in between."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tidegate.core.memory.report import Allocator
from tidegate.gateway import heap_upkeep
from tidegate.gateway.heap_upkeep import (
    ALLOCATOR_EVERY_S,
    TRIM_ABOVE_BYTES,
    TRIM_AFTER_RELEASE_S,
    TRIM_WHEN_QUIET_S,
    HeapUpkeep,
)

MIB = 1024 * 1024


class Rig:
    """An upkeep whose heap only counts what is done to it. Needs a running loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trims = self.measured = 0
        self.resident_bytes = self.free_bytes = 0
        monkeypatch.setattr(heap_upkeep, "heap_trimmer", lambda: self.trim)
        monkeypatch.setattr(heap_upkeep, "allocator_meter", lambda: self.measure)
        monkeypatch.setattr(heap_upkeep, "Collector", Mock)  # the real one would freeze our heap
        self.registry = SimpleNamespace(
            active_count=0,
            finished_count=0,
            total=0,
            swept=SimpleNamespace(bytes=0),
            packing=SimpleNamespace(freed_bytes=0),
            ledger=SimpleNamespace(total_bytes=0),
        )
        table = SimpleNamespace(open_connections=0)
        self.upkeep = HeapUpkeep(self.registry, table, lambda: self.resident_bytes)
        self.began_s = time.monotonic()

    def trim(self) -> None:
        self.trims += 1

    def measure(self) -> Allocator:
        self.measured += 1
        return Allocator(malloc_free_bytes=self.free_bytes)

    def look(self, after_s: float) -> None:
        """So long after the start."""
        self.upkeep.look(self.began_s + after_s)

    def run(self, *, swept: int) -> None:
        """One more run has ended, and so many bytes of it were swept."""
        self.registry.total += 1
        self.registry.swept.bytes += swept


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "run_in_executor", lambda _, call: call())
    return Rig(monkeypatch)


async def test_a_burst_goes_back_soon_and_not_twice_at_once(rig: Rig) -> None:
    """Also while runs are active; the next one waits TRIM_AFTER_RELEASE_S."""
    rig.registry.active_count = 1
    rig.run(swept=TRIM_ABOVE_BYTES - 1)
    rig.look(1)
    assert rig.trims == 0
    rig.run(swept=1)
    rig.look(2)
    assert rig.trims == 1
    rig.run(swept=TRIM_ABOVE_BYTES)
    rig.look(2 + TRIM_AFTER_RELEASE_S / 2)
    assert rig.trims == 1
    rig.look(2 + TRIM_AFTER_RELEASE_S)
    assert rig.trims == 2
    assert rig.upkeep._collector.clear_free_lists.call_count == 2


async def test_what_the_last_runs_left_goes_once_when_all_is_quiet(rig: Rig) -> None:
    """Never when no run has come or gone since the last trim."""
    rig.registry.active_count = 1
    rig.run(swept=1)
    rig.look(10)
    rig.registry.active_count = 0
    rig.look(10 + TRIM_WHEN_QUIET_S / 2)
    assert rig.trims == 0
    for after_s in range(3):
        rig.look(10 + TRIM_WHEN_QUIET_S + after_s)
    assert rig.trims == 1


async def test_what_was_packed_goes_back_like_what_was_swept(rig: Rig) -> None:
    """A burst of it soon, and the last of it once, when all is quiet."""
    rig.registry.active_count = 1
    rig.registry.packing.freed_bytes = TRIM_ABOVE_BYTES
    rig.look(1)
    assert rig.trims == 1
    rig.registry.active_count = 0
    rig.look(2)
    rig.registry.packing.freed_bytes += 1
    rig.look(2 + TRIM_WHEN_QUIET_S)
    rig.look(3 + TRIM_WHEN_QUIET_S)
    assert rig.trims == 2


async def test_the_allocator_is_measured_now_and_then(rig: Rig) -> None:
    """Its figures cost a walk."""
    rig.free_bytes = 3 * MIB
    rig.look(0)
    assert rig.upkeep.allocator.malloc_free_bytes == 3 * MIB
    rig.look(ALLOCATOR_EVERY_S / 2)
    assert rig.measured == 1
    rig.look(ALLOCATOR_EVERY_S)
    assert rig.measured == 2


async def test_what_the_start_left_goes_back_before_it_is_measured(rig: Rig) -> None:
    """Else what is resident then would count as what stays."""
    rig.resident_bytes = 50 * MIB

    def trim() -> None:
        rig.resident_bytes = 46 * MIB

    rig.upkeep.trim = trim
    rig.upkeep.start()
    rig.resident_bytes, rig.free_bytes = 50 * MIB, 10 * MIB
    assert rig.upkeep.free_bytes() == 4 * MIB


@pytest.mark.parametrize(
    ("resident", "ledger", "free", "promised"),
    [(50, 10, 5, 5), (50, 10, 100, 30), (50, 45, 100, 0), (5, 0, 100, 0)],
    ids=["all", "what is resident", "what runs hold", "less than at first"],
)
async def test_a_trim_promises_no_more_than_is_resident_beyond_start_and_ledger(
    rig: Rig, resident: int, ledger: int, free: int, promised: int
) -> None:
    """malloc calls free what was given back already, too."""
    rig.resident_bytes = 10 * MIB
    rig.upkeep.start()
    rig.resident_bytes, rig.free_bytes = resident * MIB, free * MIB
    rig.registry.ledger.total_bytes = ledger * MIB
    assert rig.upkeep.free_bytes() == promised * MIB
