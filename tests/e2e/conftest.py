"""What every scenario needs."""

from collections.abc import AsyncIterator, Iterator

import pytest

from fakes.browser import Browser, browsers, missing_for_browser
from fakes.client import Stream
from fakes.gateway import Gateway, gateways
from fakes.scaled_gateway import StartScaled, scaled_gateways
from fakes.scenario import toml
from fakes.scene import flood_upstream
from fakes.upstream import ScriptedUpstream


@pytest.fixture(autouse=True)
async def no_open_streams() -> AsyncIterator[None]:
    """Close what a test left open, so that one failure is not two."""
    yield
    for stream in Stream.opened:
        await stream.vanish()
    Stream.opened.clear()


def _scripted() -> Iterator[ScriptedUpstream]:
    started = ScriptedUpstream().start()
    try:
        yield started
    finally:
        started.stop()


upstream = pytest.fixture(_scripted, scope="module", name="upstream")  # behind `running`
other_upstream = pytest.fixture(_scripted, scope="module", name="other_upstream")  # to fail over to


@pytest.fixture
def scaled() -> Iterator[StartScaled]:
    """Start gateways with other workers, whose periods are scaled to seconds."""
    with scaled_gateways() as start:
        yield start


@pytest.fixture
def url() -> Iterator[str]:
    """An upstream that floods, in a process of its own."""
    with flood_upstream() as started:
        yield started


@pytest.fixture(scope="module")
def running(upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """One gateway with default limits for all tests of a module that need no other."""
    with gateways() as start:
        yield start(toml(("box", upstream.url)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a module; each opens pages of its own."""
    if absent := missing_for_browser():
        pytest.skip(absent)
    with browsers() as started:
        yield started
