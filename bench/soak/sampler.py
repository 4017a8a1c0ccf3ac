"""Looks at everything once a second, from outside, and keeps what it saw."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fakes.gateway import Gateway
from fakes.machine import descriptors
from soak.judge import Rest, Sample

PERIOD_S = 1.0
ANSWER_LIMIT_S = 0.8  # a worker that we stopped does not answer; the next look is soon
QUIET_LIMIT_S = 30.0  # above every limit of the config: what is held then is held for ever
SETTLE_S = 4.0  # a trim follows a sweep after 2 s, and heartbeats come once a second
_FIGURE = re.compile(rb'^(tidegate_\w+)(?:\{\w+="(\w+)"\})? ([0-9.e+-]+)$', re.MULTILINE)


@dataclass(eq=False)
class Sampler:
    """`watch` is a task; `quarter` is set from outside."""

    gateway: Gateway
    token: str
    on_sample: Callable[[Sample], None]
    quarter: int | None = None
    began_s: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def now_s(self) -> float:
        """Return the seconds since the soak began."""
        return time.monotonic() - self.began_s

    async def watch(self) -> None:
        """Take a sample at every full period, until cancelled; none while it does not answer."""
        while True:
            await asyncio.sleep(PERIOD_S - self.now_s % PERIOD_S)
            try:
                self.samples.append(await asyncio.to_thread(self.look))
            except Exception as error:  # whatever it is, it is a finding
                self.failures.append(f"{self.now_s:.0f} s: {error!r}")
                continue
            self.on_sample(self.samples[-1])

    def look(self) -> Sample:
        """Take one sample. Blocks for as long as the watchdog and the worker take."""
        status = self.gateway.status()
        worker = status["worker"]
        metrics = self._metrics()
        watchdog = self.gateway.pid
        return Sample(
            at_s=round(self.now_s, 2),
            quarter=self.quarter,
            generation=status["generation"],
            worker_rss_bytes=metrics.get("tidegate_resident_bytes worker"),
            ledger_bytes=metrics.get("tidegate_ledger_bytes"),
            worker_descriptors=_of(worker, descriptors),
            worker_threads=_of(worker, lambda pid: psutil.Process(pid).num_threads()),
            connections=sum(n for name, n in metrics.items() if "_connections " in name),
            watchdog_rss_bytes=psutil.Process(watchdog).memory_info().rss,
            watchdog_descriptors=descriptors(watchdog),
            workers=len(status["workers"]),
            active=status["runs"]["active"],
            finished=status["runs"]["finished"],
            level=status["memory"]["level"],
            recycles=status["recycles"],
            restarts=len(status["restarts"]),
            tick_delay_s=status.get("guard", {}).get("tick_delay_s", 0.0),
        )

    def _metrics(self) -> dict[str, int]:
        """Read the worker's metrics, name and label in one key; {} if it says nothing."""
        asked = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=ANSWER_LIMIT_S)
        try:
            asked.request("GET", "/metrics", headers={"Authorization": f"Bearer {self.token}"})
            answer = asked.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            asked.close()
        if answer.status != 200:
            return {}
        return {
            (name + b" " + label).decode().strip(): int(float(value))
            for name, label, value in _FIGURE.findall(text)
        }

    async def rest(self, what: str) -> Rest:
        """Wait until nothing is held any more, and look at what is left of it."""
        started_s = time.monotonic()
        held = await self._wait_quiet(started_s)
        quiet_after_s = time.monotonic() - started_s
        await asyncio.sleep(SETTLE_S)
        sample = await asyncio.to_thread(self.look)
        tasks = await asyncio.to_thread(self._tasks, sample.generation)
        assert sample.generation is not None
        assert sample.worker_rss_bytes is not None
        assert sample.ledger_bytes is not None
        assert sample.worker_descriptors is not None
        assert sample.worker_threads is not None
        assert sample.watchdog_rss_bytes is not None
        assert sample.watchdog_descriptors is not None
        return Rest(
            at_s=sample.at_s,
            what=what,
            generation=sample.generation,
            worker_rss_bytes=sample.worker_rss_bytes,
            ledger_bytes=sample.ledger_bytes,
            active=sample.active,
            finished=sample.finished,
            descriptors=sample.worker_descriptors,
            threads=sample.worker_threads,
            tasks=tasks,
            watchdog_rss_bytes=sample.watchdog_rss_bytes,
            watchdog_descriptors=sample.watchdog_descriptors,
            quiet_after_s=round(quiet_after_s, 1),
            oddity=f"still held after {QUIET_LIMIT_S:g} s: {held}" if held else None,
        )

    async def _wait_quiet(self, started_s: float) -> dict[str, int]:
        """Poll until a heartbeat from after the start says that all is gone; what is not."""
        while True:
            status = await asyncio.to_thread(self.gateway.status)
            held = _held(status)
            worker = status["worker"]
            age_s = time.monotonic() - started_s
            is_fresh = worker is not None and worker["heartbeat_age_s"] < age_s
            if (is_fresh and not held) or age_s > QUIET_LIMIT_S:
                return held
            await asyncio.sleep(0.3)

    def _tasks(self, generation: int | None) -> int | None:
        """Read how many tasks the worker has, from a bundle of evidence."""
        try:
            path = Path(self.gateway.ask("bundle")["path"])
            inside = json.loads(path.read_bytes())["workers"][f"worker {generation}"]
            return int(inside["tasks"])
        except (AssertionError, OSError, KeyError, TypeError, ValueError) as error:
            self.failures.append(f"{self.now_s:.0f} s: no bundle: {error!r:.200}")
            return None


def _held(status: dict[str, Any]) -> dict[str, int]:
    upstreams = status["upstreams"]
    held = {
        "ledger bytes": status["memory"]["ledger_bytes"],
        "active runs": status["runs"]["active"],
        "finished runs": status["runs"]["finished"],
        "upstream requests": sum(each["active"] for each in upstreams),
        "queued requests": sum(each["queued"] for each in upstreams),
        "workers too many": len(status["workers"]) - 1,
    }
    return {name: count for name, count in held.items() if count}


def _of(worker: dict[str, Any] | None, ask: Callable[[int], int]) -> int | None:
    """Read what /proc says of the worker; None when it has just gone."""
    try:
        return ask(worker["pid"]) if worker else None
    except (OSError, psutil.Error):
        return None
