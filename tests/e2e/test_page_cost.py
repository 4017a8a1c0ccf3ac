"""What the page costs: nothing until it is opened, and little then."""

from __future__ import annotations

import asyncio
import gc

import psutil
import pytest

from fakes.client import Stream
from fakes.gateway import StartGateway
from fakes.machine import until

MIB = 1024 * 1024
WATCHERS = 50
MOST_BYTES = 2 * MIB
pytestmark = [pytest.mark.alone, pytest.mark.timeout(120)]


def mapped(pid: int) -> set[str]:
    """The files that a process has in its memory."""
    return {each.path for each in psutil.Process(pid).memory_maps()}


async def test_fifty_pages_cost_two_mebibytes(gateway: StartGateway) -> None:
    """Of the worker's resident memory, all of them told each second; and they give it back."""
    running = gateway()
    await asyncio.sleep(3)
    pids = (running.worker_pid(), running.pid)
    worker = psutil.Process(pids[0])
    files = [mapped(pid) for pid in pids]
    before = worker.memory_info().rss
    streams = [await Stream.open(running.base_url, "/v1/live") for _ in range(WATCHERS)]
    readers = [asyncio.create_task(stream.read_rest()) for stream in streams]
    try:
        await until(lambda: all(each.body.count(b"event: overview") > 5 for each in streams), 30)
        gc.collect()
        grown = worker.memory_info().rss - before
        print(f"{WATCHERS} watchers: {grown / MIB:.2f} MiB")
        assert grown <= MOST_BYTES
        assert [mapped(pid) for pid in pids] == files
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    for stream in streams:
        await stream.vanish()
    await until(
        lambda: (
            worker.memory_info().rss - before <= MOST_BYTES
            and running.status()["memory"]["ledger_bytes"] == 0
        ),
        30,
        "nothing is charged any more",
    )
