"""What Python's collector does in a real worker, whose collections are kept short."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.scaled_gateway import StartScaled, scaled_gateways
from fakes.scene import TESTS


@pytest.fixture
def scaled() -> Iterator[StartScaled]:
    """Start gateways with other workers."""
    with scaled_gateways() as start:
        yield start


def test_cycles_that_are_lost_late_are_found_while_no_answer_is_under_way(
    scaled: StartScaled, tmp_path: Path
) -> None:
    """A worker that was left alone has let go of what only a look at everything can find."""
    when = tmp_path / "lose"
    worker = [sys.executable, str(TESTS / "fakes" / "cyclic_worker.py"), "--lose", str(when)]
    running = scaled("", worker=worker)
    when.touch()
    running.wait_logged("they are lost")
    running.wait_logged("the last of the lost objects has gone")
