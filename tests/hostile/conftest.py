"""The gateway on the loop that ships, and how many hostile inputs were tried, by kind."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import uvloop

from gateway.conftest import pytest_generate_tests, raw_upstream, rigs

__all__ = ["pytest_generate_tests", "raw_upstream", "rigs"]

TRIED: Counter[str] = Counter()
Tried = Callable[[int], None]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop serves on Linux, plain asyncio on a Mac."""
    if sys.platform == "linux":
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Tried:
    """Say that so many inputs were tried; the file's name is their kind."""
    kind = request.path.stem.removeprefix("test_hostile_").replace("_", " ")

    def note(count: int) -> None:
        TRIED[kind] += count

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for all kinds."""
    if TRIED:
        said = ", ".join(f"{kind} {count:,}" for kind, count in sorted(TRIED.items()))
        terminalreporter.section("hostile inputs")
        terminalreporter.line(f"{said}; {TRIED.total():,} in all")
