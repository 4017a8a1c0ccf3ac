"""The workloads of each contender, and what is measured while it answers.

A round is one workload on one fresh contender. Its figures are plain numbers in a dict, which
goes into the report as it is. Bytes, seconds and microseconds are in the names.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
from peers import STARTS, Peer
from tools import Load, run_load, run_stub

Round = dict[str, Any]

# A neighbour that takes this much of one core, or a host that steals this much of both, moves
# req/s by more than the differences we look for. /proc/stat counts whole ticks, so a window of
# 3 s knows its foreign time to some 3 %.
FOREIGN_LIMIT = 0.10
STEAL_LIMIT = 0.02
QUIET_LIMIT_S = 20.0  # how long a round waits for its neighbours

PACE_MS = 50
STREAMS_HELD = 1000
HOLD_MS = 8000
BURST = 2000
SETTLED_S = 5.0  # memory that has not moved for so long stays where it is
SETTLE_LIMIT_S = 45.0  # free memory may be given back only every 30 s


@dataclass(frozen=True, slots=True)
class Cores:
    """The gateway has one to itself; stub, load client and this program share the other."""

    gateway: int
    harness: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A row of README's table."""

    name: str
    what: str
    load: Load


def workloads(window_s: float) -> dict[str, Workload]:
    """Return every workload but M, with a window of `window_s` (three times that if paced)."""
    window_ms = int(window_s * 1000)
    paced_ms = 3 * window_ms
    # A stream begins in the first second and goes on until the window has closed.
    paced = Load(
        model=f"paced-{(2000 + paced_ms) // PACE_MS + 2}-{PACE_MS}",
        slots=500,
        requests=500,
        ramp_ms=1000,
        warm_ms=2000,
        window_ms=paced_ms,
        limit_ms=paced_ms + 30_000,
    )

    def busy(model: str, slots: int) -> Load:
        return Load(model=model, slots=slots, warm_ms=500, window_ms=window_ms)

    rows = [
        Workload("W1", "32 at a time, 20 chunks, a write for each", busy("each-20", 32)),
        Workload("W1b", "32 at a time, 20 chunks in one write", busy("once-20", 32)),
        Workload("W2", "8 at a time, 2,000 chunks", busy("each-2000", 8)),
        Workload("W3", "500 streams, 20 chunks a second each", paced),
        Workload("W4", "32 at a time, a small answer in one piece", busy("json", 32)),
    ]
    return {row.name: row for row in rows}


@dataclass(slots=True, kw_only=True)
class Look:
    """The state of things as the window opens or closes."""

    at_s: float = field(default_factory=time.monotonic)
    cores: machine.CoreTime
    gateway_cpu_s: float
    harness_cpu_s: float
    rss_bytes: int


def measure(workload: Workload, name: str, cores: Cores) -> Round:
    """Measure one round of a workload on a fresh contender."""
    looks: list[Look] = []
    with _start(name, cores) as (stub_pid, peer):
        idle_rss_bytes = peer.rss_bytes()

        def look(load_pid: int) -> None:
            ours = (stub_pid, load_pid, os.getpid())
            looks.append(
                Look(
                    cores=machine.core_time({cores.gateway, cores.harness}),
                    gateway_cpu_s=peer.cpu_s(),
                    harness_cpu_s=sum(map(machine.cpu_s, ours)),
                    rss_bytes=peer.rss_bytes(),
                )
            )

        report = run_load(
            workload.load,
            port=peer.port,
            core=cores.harness,
            token=peer.token,
            at_begin=look,
            at_end=look,
        )
        if len(looks) < 2:
            return {**_labels(workload.name, peer), **_no_window(report)}
        begin, end = looks
        return {
            **_labels(workload.name, peer),
            **_pace(report),
            **_cost(report, begin, end),
            **_noise(begin, end),
            "idle_rss_bytes": idle_rss_bytes,
            "rss_bytes": begin.rss_bytes,
            "bytes_per_slot": (begin.rss_bytes - idle_rss_bytes) / workload.load.slots,
        }


def measure_memory(name: str, cores: Cores) -> Round:
    """Measure M: idle, 1,000 streams that wait, a burst of 2,000 streams, and what comes back."""
    with _start(name, cores) as (_, peer):
        time.sleep(1.0)  # What a start leaves to be done has been done.
        assert peer.pid is not None
        parent, workers = machine.memory(peer.pid), [machine.memory(p) for p in peer.workers()]
        idle_rss_bytes = peer.rss_bytes()

        def load(**options: Any) -> Round:
            return run_load(
                Load(**options),
                port=peer.port,
                core=cores.harness,
                token=peer.token,
                at_begin=lambda _: seen.append(peer.rss_bytes()),
            )

        seen: list[int] = []
        warm = load(model="once-20", slots=8, requests=200)
        held = load(
            model=f"idle-4-{HOLD_MS}",
            slots=STREAMS_HELD,
            requests=STREAMS_HELD,
            ramp_ms=1000,
            warm_ms=3000,
        )
        warm_rss_bytes, held_rss_bytes = peer.rss_bytes(), seen[-1]
        burst = load(model="once-1250", slots=BURST, requests=BURST, limit_ms=120_000)
        after = {
            "peak_bytes": sum(machine.memory(pid).peak_bytes for pid in peer.workers()),
            "after_burst_bytes": peer.rss_bytes(),
            "sweep": _sweep(peer),
        }
        settled_bytes, settled_after_s = _settle(peer)
        return {
            **_labels("M", peer),
            "noisy": False,
            "errors": warm["errors"] + held["errors"] + burst["errors"],
            "first_error": warm["first_error"] or held["first_error"] or burst["first_error"],
            "parent_rss_bytes": parent.rss_bytes,
            "parent_private_bytes": parent.private_bytes,
            "worker_rss_bytes": sum(worker.rss_bytes for worker in workers),
            "worker_private_bytes": sum(worker.private_bytes for worker in workers),
            "bytes_per_idle_stream": (held_rss_bytes - idle_rss_bytes) / STREAMS_HELD,
            "warm_rss_bytes": warm_rss_bytes,
            "burst_s": burst["all_s"],
            **after,
            "settled_bytes": settled_bytes,
            "settled_after_s": settled_after_s,
            "settled_over_idle": settled_bytes / idle_rss_bytes,
        }


@contextmanager
def _start(name: str, cores: Cores) -> Iterator[tuple[int, Peer]]:
    _wait_quiet(cores)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        run_stub(cores.harness) as stub,
        STARTS[name](stub, cores.gateway, Path(folder)) as peer,
    ):
        yield stub.pid, peer


def _wait_quiet(cores: Cores) -> None:
    """Wait until the cores are idle, or no longer than the limit: then the round is noisy."""
    give_up_s = time.monotonic() + QUIET_LIMIT_S
    foreign = 1.0
    while foreign > FOREIGN_LIMIT and time.monotonic() < give_up_s:
        started_s, before = time.monotonic(), machine.core_time({cores.gateway, cores.harness})
        time.sleep(0.5)
        after = machine.core_time({cores.gateway, cores.harness})
        foreign = 2 - (after.idle_s - before.idle_s) / (time.monotonic() - started_s)


def _labels(workload: str, peer: Peer) -> Round:
    return {"workload": workload, "peer": peer.name, "ready_s": peer.ready_s}


def _no_window(report: Round) -> Round:
    """Report that the load client gave up before its window closed."""
    return {"noisy": False, "errors": report["errors"], "first_error": report["first_error"]}


def _pace(report: Round) -> Round:
    window_s = report["window_s"]
    return {
        "window_s": window_s,
        "answers_per_s": report["answers"] / window_s,
        "events_per_s": report["events"] / window_s,
        "delay_p50_us": report["delay_p50_us"],
        "delay_p99_us": report["delay_p99_us"],
        "errors": report["errors"],
        "first_error": report["first_error"],
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


def _noise(begin: Look, end: Look) -> Round:
    """Return what others did meanwhile, as parts of one core, and what the host took from us."""
    elapsed_s = end.at_s - begin.at_s
    ours_s = end.gateway_cpu_s - begin.gateway_cpu_s + end.harness_cpu_s - begin.harness_cpu_s
    idle_s = end.cores.idle_s - begin.cores.idle_s
    stolen_s = end.cores.steal_s - begin.cores.steal_s
    foreign = (2 * elapsed_s - idle_s - stolen_s - ours_s) / elapsed_s
    steal = stolen_s / elapsed_s
    noisy = foreign > FOREIGN_LIMIT or steal > STEAL_LIMIT
    return {"foreign": foreign, "steal": steal, "noisy": noisy}


def _sweep(peer: Peer) -> str | None:
    """Have finished answers released, where the gateway keeps them. Returns what it said."""
    if peer.sweep is None:
        return None
    done = subprocess.run(
        peer.sweep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False
    )
    return done.stdout.decode(errors="replace").strip()


def _settle(peer: Peer) -> tuple[int, float]:
    """Wait until the resident memory no longer moves: where it then is, and after how long."""
    started_s = moved_s = time.monotonic()
    level = peer.rss_bytes()
    while (now_s := time.monotonic()) - moved_s < SETTLED_S and now_s - started_s < SETTLE_LIMIT_S:
        rss_bytes = peer.rss_bytes()
        if abs(rss_bytes - level) > level / 100:
            level, moved_s = rss_bytes, now_s
        time.sleep(0.25)
    return peer.rss_bytes(), moved_s - started_s
