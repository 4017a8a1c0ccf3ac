"""What every scenario needs."""

from collections.abc import AsyncIterator

import pytest

from fakes.client import Stream


@pytest.fixture(autouse=True)
async def no_open_streams() -> AsyncIterator[None]:
    """Closes what a test left open, so that one failure is not two."""
    yield
    for stream in Stream.opened:
        await stream.vanish()
    Stream.opened.clear()
