"""Where the watchdog keeps what it knows of memory between two samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from tidegate.core import watermark
from tidegate.core.settings import MIB, Memory
from tidegate.guard import budget, sample
from tidegate.service.process import Worker
from tidegate.service.status import MemoryState

_log = logging.getLogger(__name__)


class MemoryBook:
    """The budget, the last sample and the level it gave. `close` it when done."""

    def __init__(self) -> None:
        self.mark = watermark.Watermark()
        self.verdict: watermark.Verdict | None = None
        self.sample: sample.Sample | None = None
        self.budget = budget.Budget(bytes=0, source="")
        self.enforces = True
        self.base_bytes = 0
        self.ledger_bytes = 0
        self._mode = "enforce"
        self._sampler = sample.Sampler()
        self._said_error: str | None = None
        self._machine_bytes = sample.machine_bytes()

    def __repr__(self) -> str:
        return f"<MemoryBook level={self.mark.level} budget={self.budget.bytes}>"

    def apply(self, settings: Memory) -> None:
        """Follow the settings; a budget that is new is said."""
        self._mode = settings.mode
        self.enforces = settings.mode == "enforce"
        found = budget.find(settings.budget_bytes)
        if found != self.budget:
            _log.info("memory budget %d MiB: %s", found.bytes // MIB, found.source)
        self.budget = found
        self._sampler.cgroup = found.cgroup

    def read(self, workers: Sequence[Worker]) -> watermark.Reading | None:
        """Sample now; None when the machine won't say, which is logged once."""
        try:
            self.sample = self._sampler.read([os.getpid(), *(w.pid for w in workers)])
        except sample.SampleError as error:
            if str(error) != self._said_error:
                _log.error("%s; the memory level stays %d", error, self.mark.level)
            self._said_error = str(error)
            return None
        self._said_error = None
        self.base_bytes = max((w.base_bytes or 0 for w in workers), default=0)
        self.ledger_bytes = sum(w.beat.ledger_bytes for w in workers if w.beat)
        return watermark.Reading(
            used_bytes=self.sample.used_bytes,
            held_bytes=sum(
                max(0, self.sample.rss.get(w.pid, 0) - w.base_bytes)
                for w in workers
                if w.base_bytes is not None
            ),
            base_bytes=self.base_bytes,
            ledger_bytes=self.ledger_bytes,
            available_bytes=self.sample.available_bytes,
        )

    def judge(self, reading: watermark.Reading, now_s: float) -> watermark.Verdict:
        """The level after this reading; a change is logged."""
        former = self.mark.level
        limits = watermark.Limits(
            budget_bytes=self.budget.bytes,
            hard=self.budget.hard,
            machine_bytes=self._machine_bytes,
        )
        self.mark, self.verdict = watermark.judge(self.mark, reading, limits, now_s)
        if self.mark.level != former:
            self._say_level(former, self.verdict)
        return self.verdict

    def ledger_limit_bytes(self) -> int:
        """What the workers' ledgers may hold; 0 is no limit."""
        return self.verdict.ledger_limit_bytes if self.verdict and self.enforces else 0

    def rss_bytes(self, pid: int) -> int | None:
        """Of one of our processes, as last sampled."""
        return self.sample.rss.get(pid) if self.sample else None

    def state(self) -> MemoryState:
        """For the status."""
        return MemoryState(
            level=self.mark.level,
            budget_bytes=self.budget.bytes,
            budget_source=self.budget.source,
            used_bytes=self.sample.used_bytes if self.sample else 0,
            base_bytes=self.base_bytes,
            ledger_bytes=self.ledger_bytes,
            unexplained_bytes=self.verdict.unexplained_bytes if self.verdict else 0,
            mode=self._mode,
        )

    def close(self) -> None:
        """Give the sampler's descriptors back."""
        self._sampler.close()

    def _say_level(self, former: int, verdict: watermark.Verdict) -> None:
        level = self.mark.level
        would = "" if self.enforces or level < 2 else "; would sweep (memory.mode is observe)"
        _log.log(
            logging.WARNING if level > former and level >= 2 else logging.INFO,
            "memory level %d, was %d: %.0f %% of %d MiB for runs, ledger %d MiB%s",
            level,
            former,
            100 * verdict.ratio,
            verdict.spendable_bytes // MIB,
            self.ledger_bytes // MIB,
            would,
        )
