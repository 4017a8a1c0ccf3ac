"""A round: one workload on one contender that has just started, and what is measured meanwhile.

Its figures are plain numbers in a dict, which goes into the report as it is. Bytes, seconds and
microseconds are in the names.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import machine
from contenders import STARTS
from peers import Peer
from tools import Load, run_load, run_stub

Round = dict[str, Any]

# A neighbour that takes this much of one core, or a host that steals this much of both, moves
# req/s by more than the differences we look for. /proc/stat counts whole ticks, so a window of
# 3 s knows its foreign time to some 3 %.
FOREIGN_LIMIT = 0.10
STEAL_LIMIT = 0.02


@dataclass(frozen=True, slots=True)
class Cores:
    """The gateway has one to itself; stub, load client and this program share the other."""

    gateway: int
    harness: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A contender that has started, between the stub and the load client."""

    peer: Peer
    cores: Cores
    stub_pid: int

    def labels(self, workload: str) -> Round:
        """Say what is measured here."""
        return {"workload": workload, "peer": self.peer.name, "ready_s": self.peer.ready_s}

    def warm(self) -> Round:
        """Have everything loaded that only a request needs."""
        return self.ask(Load(model="once-20", slots=8, requests=self.peer.size.warm))

    def ask(self, load: Load, **at: Any) -> Round:
        """Have the load client ask, and return its report."""
        peer = self.peer
        return run_load(
            load,
            port=peer.port,
            core=self.cores.harness,
            token=peer.token,
            headers=peer.headers,
            is_rewritten=peer.is_rewritten,
            **at,
        )

    def look(self, *load_pids: int) -> Look:
        """See what has been used so far. A load client that has ended counts as ours."""
        ours = (self.stub_pid, os.getpid(), *load_pids)
        return Look(
            cores=machine.core_time({self.cores.gateway, self.cores.harness}),
            gateway_cpu_s=self.peer.cpu_s(),
            harness_cpu_s=sum(map(machine.cpu_s, ours)),
            rss_bytes=self.peer.rss_bytes(),
        )

    def play(self, load: Load) -> Round:
        """Have the load client ask, and return pace, cost and noise of its window."""
        windows = self.peer.size.windows
        load = replace(load, warm_ms=load.warm_ms * windows, window_ms=load.window_ms * windows)
        looks: list[Look] = []

        def look(load_pid: int) -> None:
            looks.append(self.look(load_pid))

        report = self.ask(load, at_begin=look, at_end=look)
        if len(looks) < 2:  # The load client gave up before its window closed.
            return {"noisy": False, **errors_of(report)}
        begin, end = looks
        return {
            **_pace(report),
            **errors_of(report),
            **_cost(report, begin, end),
            **noise(begin, end),
            "rss_bytes": begin.rss_bytes,
        }


@dataclass(slots=True, kw_only=True)
class Look:
    """The state of things, as a window opens or closes."""

    at_s: float = field(default_factory=time.monotonic)
    cores: machine.CoreTime
    gateway_cpu_s: float
    harness_cpu_s: float
    rss_bytes: int


@contextmanager
def start(name: str, cores: Cores) -> Iterator[Stage]:
    """Start a stub and a contender for the length of a block."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        run_stub(cores.harness) as stub,
        STARTS[name](stub, cores.gateway, Path(folder)) as peer,
    ):
        yield Stage(peer, cores, stub.pid)


def errors_of(*reports: Round) -> Round:
    """Sum the errors that the load client counted, and tell the first."""
    return {
        "errors": sum(report["errors"] for report in reports),
        "first_error": next((r["first_error"] for r in reports if r["first_error"]), ""),
    }


def _pace(report: Round) -> Round:
    window_s = report["window_s"]
    return {
        "window_s": window_s,
        "answers_per_s": report["answers"] / window_s,
        "events_per_s": report["events"] / window_s,
        "delay_p50_us": report["delay_p50_us"],
        "delay_p99_us": report["delay_p99_us"],
    }


def _cost(report: Round, begin: Look, end: Look) -> Round:
    cpu_s = end.gateway_cpu_s - begin.gateway_cpu_s
    elapsed_s = end.at_s - begin.at_s
    return {
        "gateway_busy": cpu_s / elapsed_s,
        "harness_busy": (end.harness_cpu_s - begin.harness_cpu_s) / elapsed_s,
        "cpu_us_per_answer": _per(report["answers"], 1e6 * cpu_s),
        "cpu_s_per_million_events": _per(report["events"], 1e6 * cpu_s),
    }


def _per(count: int, amount: float) -> float | None:
    """Divide; None where there is no gateway, or nothing of the kind was counted."""
    return amount / count if count and amount else None


def noise(begin: Look, end: Look) -> Round:
    """Return what others did meanwhile, as parts of one core, and what the host took from us."""
    elapsed_s = end.at_s - begin.at_s
    ours_s = end.gateway_cpu_s - begin.gateway_cpu_s + end.harness_cpu_s - begin.harness_cpu_s
    idle_s = end.cores.idle_s - begin.cores.idle_s
    stolen_s = end.cores.steal_s - begin.cores.steal_s
    foreign = (2 * elapsed_s - idle_s - stolen_s - ours_s) / elapsed_s
    steal = stolen_s / elapsed_s
    noisy = foreign > FOREIGN_LIMIT or steal > STEAL_LIMIT
    return {"foreign": foreign, "steal": steal, "noisy": noisy}
