"""What the watchdog's tests are played with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from watchdog.daemon_rig import Daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A watchdog that the test configures and starts; ended whatever happens."""
    made = Daemon(tmp_path)
    yield made
    made.end()
