"""The guard when things around it fail: a hung worker, a suspend, kill -9, a disk that is full."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.client import chat
from fakes.gateway import Gateway
from fakes.machine import is_alive, wait_until
from fakes.memory_flood import FLOOD_KILOBYTES
from fakes.scaled_gateway import CONSTANTS, TIMING, StartScaled, leak_of
from fakes.scene import crowd

MIB = 1024 * 1024
LIMIT_S = 60.0
CONFIG = """
[limits]
keep_finished_s = 5.0
disconnect_grace_s = 0.2
[memory]
budget = "{budget_mib}MiB"
[[upstream]]
name = "box"
url = "{url}"
"""
# What no client reads is stale after a second or two, not after minutes.
STALE = {
    "tidegate.core.memory.policy": CONSTANTS["tidegate.core.memory.policy"]
    | {"STALE_MOST_S": 2.0, "STALE_LEAST_S": 0.3}
}
STEP_BYTES = 118 * MIB  # three quarters of what two bases leave of 256 MiB

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
    pytest.mark.long,
]


def config(url: str, budget_mib: int = 256) -> str:
    return CONFIG.format(url=url, budget_mib=budget_mib)


def bundles(gateway: Gateway) -> list[dict[str, Any]]:
    folder = gateway.state_dir / "bundles"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def stop(process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, LIMIT_S, "it is stopped")


@pytest.mark.timeout(180)
async def test_a_worker_that_hangs_is_ended_with_evidence(scaled: StartScaled, url: str) -> None:
    """SIGSTOP: its beats are missed, a bundle is written, and the next worker serves."""
    running = scaled(config(url), timing=TIMING | {"beat_limit_s": 2.0, "kill_wait_s": 0.5})
    former = psutil.Process(running.worker_pid())
    stop(former)
    wait_until(lambda: not is_alive(former), LIMIT_S, "it was ended")
    wait_until(lambda: running.status()["worker"], LIMIT_S, "the next one serves")
    wait_until(lambda: bundles(running), LIMIT_S, "a bundle is there")
    assert bundles(running)[0]["why"][0]["kind"] == "kill"
    assert (await chat(running.base_url, "paced:3:1")).clean
    assert [each["reason"] for each in running.status()["restarts"]] == ["no heartbeat for 2 s"]


@pytest.mark.timeout(180)
async def test_a_suspend_ends_no_worker(scaled: StartScaled, url: str) -> None:
    """Both stopped for longer than any beat may be missed, as by a lid that is shut."""
    timing = TIMING | {"beat_limit_s": 2.0, "gap_s": 1.0}
    running = scaled(config(url), timing=timing)
    watchdog, worker = psutil.Process(running.pid), psutil.Process(running.worker_pid())
    for _ in range(2):
        stop(watchdog)
        stop(worker)
        awake_s = time.monotonic() + 3 * timing["beat_limit_s"]
        wait_until(lambda awake_s=awake_s: time.monotonic() > awake_s, LIMIT_S, "it sleeps")
        worker.send_signal(signal.SIGCONT)
        watchdog.send_signal(signal.SIGCONT)
        ticks = running.status()["guard"]["ticks"]
        wait_until(lambda t=ticks: running.status()["guard"]["ticks"] > t + 4, LIMIT_S, "it ticks")
    status = running.status()
    assert status["worker"]["pid"] == worker.pid
    assert status["restarts"] == []
    assert bundles(running) == []
    running.wait_logged("the clock stood still")
    assert (await chat(running.base_url, "paced:3:1")).clean


@pytest.fixture
def flooded(scaled: StartScaled, url: str) -> Iterator[Gateway]:
    """A gateway with relief under way."""
    running = scaled(config(url, budget_mib=200), constants=CONSTANTS | STALE)
    plan: dict[str, Any] = {"base_url": running.base_url, "upstream": url}
    with crowd(**plan, flood=f"flood:{FLOOD_KILOBYTES}", left=2000, left_limit_s=300.0):

        def relieving() -> bool:
            return any(step["runs"] for step in running.status()["memory"]["steps"])

        wait_until(relieving, LIMIT_S, "steps of relief are taken")
        yield running


@pytest.mark.timeout(180)
def test_a_worker_killed_during_relief_is_replaced(flooded: Gateway) -> None:
    """kill -9: the next worker serves, no request waits for the dead one, the guard goes on."""
    former = psutil.Process(flooded.worker_pid())
    former.kill()
    wait_until(lambda: not is_alive(former), LIMIT_S, "it is dead")

    def replaced() -> bool:
        status = flooded.status()
        return status["worker"] is not None and status["worker"]["pid"] != former.pid

    wait_until(replaced, LIMIT_S, "the next one serves")
    before = flooded.status()["memory"]["steps"]

    def went_on() -> bool:
        now = flooded.status()["memory"]["steps"]
        return sum(step["runs"] for step in now) > sum(step["runs"] for step in before)

    wait_until(went_on, LIMIT_S, "relief goes on in the next one")


@pytest.mark.timeout(180)
def test_a_watchdog_killed_during_reclaim_leaves_no_worker(flooded: Gateway) -> None:
    """kill -9: its workers end too."""
    flooded.remember()
    flooded.expected_exit = -signal.SIGKILL
    flooded.process.kill()
    wait_until(lambda: not any(map(is_alive, flooded.ever)), LIMIT_S, "all are gone")


@pytest.mark.timeout(180)
async def test_a_full_disk_costs_the_evidence_and_not_the_guard(
    scaled: StartScaled, url: str
) -> None:
    """No file may grow beyond 2 KiB: the bundle's loss is said, and the recycle takes place."""
    running = scaled(config(url), file_bytes=2048)
    former = running.worker_pid()
    leak_of(running).hold(STEP_BYTES, pid=former)
    wait_until(lambda: running.status()["recycles"] == 1, LIMIT_S, "it was recycled all the same")
    wait_until(lambda: running.status()["memory"]["level"] == 0, LIMIT_S, "it is calm again")
    running.wait_logged("no evidence (")
    running.wait_logged("decisions cannot be written")
    assert bundles(running) == []
    left = [path.name for path in (running.state_dir / "bundles").glob("*")]
    assert left == [], "half a bundle is left"
    assert running.status()["restarts"] == []
    assert (await chat(running.base_url, "paced:3:1")).clean


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pressure"
    os.mkfifo(path)
    return path


@pytest.mark.timeout(180)
async def test_a_signal_of_pressure_squeezes_and_no_more(
    scaled: StartScaled, url: str, fifo: Path
) -> None:
    """systemd's protocol with a FIFO: level 2 at most, seen in the status, over by itself."""
    running = scaled(config(url), env={"MEMORY_PRESSURE_WATCH": str(fifo)})
    wait_until(lambda: running.status()["memory"]["level"] == 0, LIMIT_S, "it is calm")
    levels = []
    with fifo.open("wb", buffering=0) as manager:
        deadline_s = time.monotonic() + LIMIT_S
        while levels.count(2) < 10:
            assert time.monotonic() < deadline_s, f"the level did not rise: {levels}"
            manager.write(b"x")
            levels.append(running.status()["memory"]["level"])
            await asyncio.sleep(0.1)
        assert set(levels) <= {0, 2}
        assert running.status()["memory"]["pressure"] is True
        assert (await chat(running.base_url, "paced:3:1")).status == 200
    wait_until(lambda: not running.status()["memory"]["pressure"], LIMIT_S, "it is over")
    wait_until(lambda: running.status()["memory"]["level"] == 0, LIMIT_S, "the level falls")
    running.wait_logged("memory is short, says ")
    assert running.log.read_text().count("memory is short, says ") == 1
    assert running.status()["recycles"] == 0
