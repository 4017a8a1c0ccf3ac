"""What was swept: counted by kind since the start, and told in the log at a bearable pace."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.core.text import count
from tidegate.logs.pace import Pace

log = logging.getLogger("tidegate.registry")


@dataclass(slots=True)
class SweptRuns:
    """What a sweep released."""

    runs: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, freed_bytes: int) -> None:
        """Add one run."""
        self.runs += 1
        self.bytes += freed_bytes
        self.reasons[kind] += 1

    def __str__(self) -> str:
        why = ", ".join(f"{kind} {runs}" for kind, runs in sorted(self.reasons.items()))
        return f"{count(self.runs, 'run')}, {self.bytes} bytes ({why or 'nothing was due'})"


class SweepLog(SweptRuns):
    """What all sweeps released since the start, and what of it the log has not been told yet."""

    __slots__ = ("_loop", "_pace", "_tick_by", "_unreported", "by_kind", "last")

    def __init__(self, loop: asyncio.AbstractEventLoop, tick_by: Callable[[float], None]) -> None:
        """Have `report` called at the time that `tick_by` is given, or earlier."""
        super().__init__()
        self.by_kind: Counter[str] = Counter()  # bytes
        self.last: str | None = None  # the last one, in words
        self._loop = loop
        self._tick_by = tick_by
        self._unreported = SweptRuns()
        self._pace = Pace()

    def add(self, kind: str, freed_bytes: int) -> None:
        """Add one run."""
        super().add(kind, freed_bytes)
        self._unreported.add(kind, freed_bytes)
        self.by_kind[kind] += freed_bytes
        self._pace.grew(self._loop.time())

    def report(self) -> None:
        """Log what was swept, each time for the first few times and then once a minute."""
        if not self._unreported.runs:
            return
        now_s = self._loop.time()
        if now_s >= self._pace.due_s:
            self.tell()
            self._pace.logged(now_s)
        else:
            self._tick_by(self._pace.due_s)

    def tell(self) -> None:
        """Log what is not told yet."""
        if self._unreported.runs:
            # As text: of a type that it has not seen yet, logging leaves 28 KiB in caches.
            log.info("swept %s", str(self._unreported))
            self._unreported = SweptRuns()
