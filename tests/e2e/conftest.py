"""What every scenario needs."""

from collections.abc import AsyncIterator, Iterator

import pytest

from fakes.client import Stream
from fakes.gateway import Gateway, gateways
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream


@pytest.fixture(autouse=True)
async def no_open_streams() -> AsyncIterator[None]:
    """Close what a test left open, so that one failure is not two."""
    yield
    for stream in Stream.opened:
        await stream.vanish()
    Stream.opened.clear()


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    """A scripted upstream for the tests of a module, behind `running`."""
    started = ScriptedUpstream().start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def other_upstream() -> Iterator[ScriptedUpstream]:
    """One more, for failing over."""
    started = ScriptedUpstream().start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def running(upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """One gateway with default limits for all tests of a module that need no other."""
    with gateways() as start:
        yield start(toml(("box", upstream.url)))
