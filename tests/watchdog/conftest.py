"""What the watchdog's tests are played with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from watchdog.daemon_rig import Daemon
from watchdog.world import World, made


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A watchdog that the test configures and starts; ended whatever happens."""
    made = Daemon(tmp_path)
    yield made
    made.end()


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """A watchdog in virtual time that the test configures and starts; it starts no process."""
    caplog.set_level(logging.INFO, logger="tidegate")
    with tempfile.TemporaryDirectory(prefix="tg-") as name, made(Path(name)) as world:
        yield world
