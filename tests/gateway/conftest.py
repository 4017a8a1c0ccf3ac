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

from gateway.gateway_rig import ROADS, Play, RawUpstream, Rigs

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Long tests go every road by which a request is answered, others the one that most go.

    The one without a run needs an idle connection to the upstream, which changes what some tests
    count: a module that can do with it says `ON_EVERY_ROAD = True`. One that is about a road says
    which by itself.
    """
    marks = metafunc.definition.iter_markers("parametrize")
    if "rigs" in metafunc.fixturenames and not any(mark.args[0] == "rigs" for mark in marks):
        every = getattr(metafunc.module, "ON_EVERY_ROAD", False)
        roads = [ROADS[0], *([ROADS[1]] if every else []), ROADS[2]] if RUN_LONG else [ROADS[0]]
        metafunc.parametrize("rigs", roads, indirect=True)


@pytest.fixture
async def rigs(request: pytest.FixtureRequest) -> AsyncIterator[Rigs]:
    """Starts gateways: `rig = await rigs(upstream, …, **limits)`."""
    folder = Path(tempfile.mkdtemp(prefix="tg-"))  # short enough for a Unix socket's path
    started: list[str] = []

    def peer_socket() -> str:
        started.append(str(folder / f"{len(started)}.sock"))
        return started[-1]

    rigs = Rigs(peer_socket, road=getattr(request, "param", ROADS[0]))
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
