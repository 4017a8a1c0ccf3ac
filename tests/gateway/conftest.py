"""What the gateway's tests are played with; afterwards nothing of it may be left."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.gateway_rig import Play, RawUpstream, Rigs

RUN_LONG = "1" in map(os.environ.get, ("TIDEGATE_TEST_LONG", "TIDEGATE_TEST_REQUIRE_ALL"))
RawUpstreams = Callable[[Play], Awaitable[RawUpstream]]


LIMIT_S = 100.0  # of a test; the signal that ends all others does not wake a waiting uvloop


def pytest_itemcollected(item: pytest.Item) -> None:
    """Gives each test a limit of its loop's own."""
    if not (isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj)):
        return
    test = item.obj

    @functools.wraps(test)
    async def limited(*arguments: Any, **named: Any) -> None:
        async with asyncio.timeout(LIMIT_S):
            await test(*arguments, **named)

    item.obj = limited


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop serves on Linux, plain asyncio on a Mac: a module says `ON_BOTH_LOOPS = True`.

    That costs minutes, so without long tests there is only the loop that serves here.
    """
    plain, fast = {"asyncio": asyncio.new_event_loop}, {"uvloop": uvloop.new_event_loop}
    if not getattr(item.getparent(pytest.Module).obj, "ON_BOTH_LOOPS", False):  # type: ignore[union-attr]
        return plain
    if RUN_LONG:
        return plain | fast
    return fast if sys.platform == "linux" else plain


@pytest.fixture(
    params=[True, False] if RUN_LONG else [True], ids=["fast", "ordinary"][: 1 + RUN_LONG]
)
async def rigs(request: pytest.FixtureRequest) -> AsyncIterator[Rigs]:
    """Starts gateways: `rig = await rigs(upstream, …, **limits)`; on both roads in long tests."""
    folder = Path(tempfile.mkdtemp(prefix="tg-"))  # short enough for a Unix socket's path
    started: list[str] = []

    def peer_socket() -> str:
        started.append(str(folder / f"{len(started)}.sock"))
        return started[-1]

    rigs = Rigs(peer_socket, fast_lane=request.param)
    try:
        yield rigs
        await rigs.finish()
        await rigs.no_task_is_left()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def raw_upstream() -> AsyncIterator[RawUpstreams]:
    """Starts upstreams that send exact bytes: `upstream = await raw_upstream(play)`."""
    started: list[RawUpstream] = []

    async def start(play: Play) -> RawUpstream:
        started.append(await RawUpstream(play).start())
        return started[-1]

    yield start
    for upstream in started:
        await upstream.stop()
