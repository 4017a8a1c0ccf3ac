"""How one round of each workload is measured on a contender that has just started."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from statistics import median

import machine
from peers import Peer
from rounds import Cores, Round, Stage, errors_of, noise, start
from tools import Load

PACE_MS = 50
CROWD = 1000  # connections at once
SETTLED_S = 4.0  # memory that has not moved for so long stays where it is
SETTLE_LIMIT_S = 45.0  # free memory may be given back only every 30 s


def measure_pace(workload: str, load: Load, name: str, cores: Cores) -> Round:
    """Measure as many requests as the contender can answer."""
    with start(name, cores) as stage:
        warm, played = stage.warm(), stage.play(load)
        return {**stage.labels(workload), **played, **errors_of(warm, played)}


def measure_paced(window_ms: int, name: str, cores: Cores) -> Round:
    """Measure W3: streams at the pace of a model, of which the cost is told."""
    with start(name, cores) as stage:
        warm = stage.warm()
        warm_rss_bytes = stage.peer.rss_bytes()
        size = stage.peer.size
        streams, ends_ms = size.paced, (1500 + window_ms) * size.windows
        # A stream begins in the first second and goes on until the window has closed.
        load = Load(
            model=f"paced-{ends_ms // PACE_MS + 2}-{PACE_MS}",
            slots=streams,
            requests=streams,
            ramp_ms=1000,
            warm_ms=1500,
            window_ms=window_ms,
            limit_ms=ends_ms + 30_000,
        )
        played = stage.play(load)
        found = {**stage.labels("W3"), **played, **errors_of(warm, played), "streams": streams}
        if "rss_bytes" in found:
            found["bytes_per_stream"] = (found["rss_bytes"] - warm_rss_bytes) / streams
        return found


def measure_connections(window_ms: int, name: str, cores: Cores) -> Round:
    """Measure C: what a request costs on a connection of its own, and on one that is kept."""
    with start(name, cores) as stage:
        load = Load(model="json", slots=32, warm_ms=300, window_ms=window_ms)
        warm, kept, fresh = stage.warm(), stage.play(load), stage.play(replace(load, fresh=1))
        kept_us, fresh_us = kept.get("cpu_us_per_answer"), fresh.get("cpu_us_per_answer")
        return {
            **stage.labels("C"),
            **fresh,
            **errors_of(warm, kept, fresh),
            "noisy": kept["noisy"] or fresh["noisy"],
            "kept_cpu_us_per_answer": kept_us,
            "us_per_connection": fresh_us - kept_us if fresh_us and kept_us else None,
        }


def measure_crowd(name: str, cores: Cores) -> Round:
    """Measure K: how long 1,000 clients wait who connect and ask at the same moment."""
    with start(name, cores) as stage:
        warm = stage.warm()
        load = Load(model="json", slots=CROWD, requests=CROWD)
        reports = []
        begin = stage.look()
        for _ in range(stage.peer.size.crowds):
            time.sleep(0.1)  # The connections of the crowd before are closed, and forgotten.
            reports.append(stage.ask(load))
        return {
            **stage.labels("K"),
            **errors_of(warm, *reports),
            **noise(begin, stage.look()),
            "answer_p50_us": median(report["answer_p50_us"] for report in reports),
            "answer_p99_us": median(report["answer_p99_us"] for report in reports),
            "answer_max_us": max(report["answer_max_us"] for report in reports),
        }


def measure_memory(name: str, cores: Cores) -> Round:
    """Measure M: idle, 1,000 streams that wait, a burst of 2,000 streams, and what comes back."""
    with start(name, cores) as stage:
        time.sleep(1.0)  # What a start leaves to be done has been done.
        idle = _idle(stage.peer)
        warm = stage.warm()
        warm_rss_bytes = stage.peer.rss_bytes()
        held = _hold(stage)
        found = {
            **stage.labels("M"),
            **errors_of(warm, held),
            **idle,
            "noisy": False,
            "warm_rss_bytes": warm_rss_bytes,
        }
        if held["rss_bytes"] is not None:
            for since, rss_bytes in (("idle", idle["worker_rss_bytes"]), ("warm", warm_rss_bytes)):
                grown_bytes = held["rss_bytes"] - rss_bytes
                found[f"bytes_per_stream_since_{since}"] = grown_bytes / stage.peer.size.held
        if stage.peer.size.burst:
            burst = _burst(stage, idle["worker_rss_bytes"])
            found |= {**burst, **errors_of(found, burst)}
        return found


def _idle(peer: Peer) -> Round:
    """Read what each process holds: the parent, if it is not what relays, and the workers."""
    workers = [machine.memory(pid) for pid in peer.workers()]
    found: Round = {
        "worker_rss_bytes": sum(worker.rss_bytes for worker in workers),
        "worker_private_bytes": sum(worker.private_bytes for worker in workers),
    }
    if peer.pid is not None and peer.pid not in peer.workers():
        parent = machine.memory(peer.pid)
        found["parent_rss_bytes"] = parent.rss_bytes
        found["parent_private_bytes"] = parent.private_bytes
    return found


def _hold(stage: Stage) -> Round:
    """Have streams wait in the middle of their answers, and see what the workers hold then."""
    size = stage.peer.size
    seen: list[int] = []
    report = stage.ask(
        Load(
            model=f"idle-4-{size.hold_ms}",
            slots=size.held,
            requests=size.held,
            ramp_ms=size.hold_ms // 4,
            warm_ms=size.hold_ms * 5 // 8,
            window_ms=size.hold_ms * 3 // 4,
            limit_ms=3 * size.hold_ms + 30_000,
        ),
        at_begin=lambda _: seen.append(stage.peer.rss_bytes()),
    )
    # Two of four events come at once. If more than two of each come after the look, some streams
    # had not begun when their memory was read.
    are_all_there = seen and report["events"] <= 2 * size.held
    return {**report, "rss_bytes": seen[0] if are_all_there else None}


def _burst(stage: Stage, idle_rss_bytes: int) -> Round:
    """Ask for many long answers at once, have them released, and see what memory comes back."""
    peer, streams = stage.peer, stage.peer.size.burst
    begin = stage.look()
    report = stage.ask(Load(model="once-1250", slots=streams, requests=streams, limit_ms=120_000))
    end = stage.look()
    found = {
        **errors_of(report),
        "burst_s": report["all_s"],
        "burst_cpu_s": end.gateway_cpu_s - begin.gateway_cpu_s,
        "foreign": noise(begin, end)["foreign"],
        "peak_bytes": sum(machine.memory(pid).peak_bytes for pid in peer.workers()),
        "after_burst_bytes": peer.rss_bytes(),
        "sweep": _sweep(peer),
    }
    settled_bytes, settled_after_s = _settle(peer)
    return {
        **found,
        "settled_bytes": settled_bytes,
        "settled_after_s": settled_after_s,
        "settled_over_idle": settled_bytes / idle_rss_bytes,
    }


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
