"""The worker's own heap: free pages go back, lost cycles are looked for, and what it holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tidegate.core.memory.report import Allocator
from tidegate.gateway.relay.registry import Registry
from tidegate.gateway.server.connection_table import ConnectionTable
from tidegate.machine.collector import Collector
from tidegate.machine.heap import allocator_meter, heap_trimmer

# Free pages go back after a burst was released; while memory is short the watchdog orders it. In
# a thread, and yet it is felt: what allocates meanwhile waits, 34 to 66 ms on a heap of 400 MB
# full of holes (`machine.heap`). So never when no run came, went or was packed since the last one.
TRIM_ABOVE_BYTES = 16 * 1024 * 1024
TRIM_AFTER_RELEASE_S = 2.0
TRIM_WHEN_QUIET_S = 5.0  # without a run; then once, so that what the last ones left goes too
ALLOCATOR_EVERY_S = 10.0  # its figures too cost a walk


class HeapUpkeep:
    """Looks after the heap once a second; what takes long is done off the loop."""

    def __init__(
        self, registry: Registry, table: ConnectionTable, resident_bytes: Callable[[], int]
    ) -> None:
        self.trim = heap_trimmer()
        self.allocator = Allocator()  # as it was last measured
        self._registry = registry
        self._table = table
        self._resident_bytes = resident_bytes
        self._measure = allocator_meter()
        self._measured_s = float("-inf")
        self._collector = Collector()
        self._base_bytes = 0  # resident when it became ready
        self._trimmed_s = float("-inf")
        self._trimmed_mark = (0, 0)  # runs and freed bytes at the last trim
        self._busy_s = time.monotonic()  # when a run was last active

    def start(self) -> None:
        """Take what is here now for what stays."""
        self._collector.start(time.monotonic())
        self.trim()  # half a megabyte of what the imports left behind
        self._base_bytes = self._resident_bytes()

    def free_bytes(self) -> int:
        """Count what a trim can give back: malloc calls free what is no longer resident, too."""
        beyond = self._resident_bytes() - self._base_bytes
        held = beyond - self._registry.ledger.total_bytes
        return max(0, min(self._measure().malloc_free_bytes, held))

    def look(self, now_s: float) -> None:
        """Trim, look for lost cycles and measure, each when it is due."""
        if self._registry.active_count:
            self._busy_s = now_s
        is_quiet = now_s - self._busy_s >= TRIM_WHEN_QUIET_S
        self._maybe_trim(now_s, is_quiet=is_quiet)
        self._look_for_garbage(now_s, is_quiet=is_quiet)
        if now_s - self._measured_s >= ALLOCATOR_EVERY_S:
            self._measured_s = now_s
            asyncio.get_running_loop().run_in_executor(None, self._measure_allocator)

    def _maybe_trim(self, now_s: float, *, is_quiet: bool) -> None:
        """Give memory back to the system: after a burst, and when all is quiet."""
        freed_bytes = self._registry.swept.bytes + self._registry.packing.freed_bytes
        mark = (self._registry.total, freed_bytes)
        much = mark[1] - self._trimmed_mark[1] >= TRIM_ABOVE_BYTES
        is_new = mark != self._trimmed_mark
        if (much and now_s - self._trimmed_s >= TRIM_AFTER_RELEASE_S) or (is_quiet and is_new):
            self._trimmed_mark, self._trimmed_s = mark, now_s
            self._collector.clear_free_lists()
            asyncio.get_running_loop().run_in_executor(None, self.trim)

    def _look_for_garbage(self, now_s: float, *, is_quiet: bool) -> None:
        """Find lost cycles, when that takes little time and, if possible, disturbs no stream."""
        runs = self._registry.active_count + self._registry.finished_count
        held = runs + self._table.open_connections
        self._collector.look(now_s, held=held, is_quiet=is_quiet)

    def _measure_allocator(self) -> None:
        self.allocator = self._measure()
