"""What Python's collector does in a real worker, whose collections are kept short."""

from __future__ import annotations

import sys
from pathlib import Path

from fakes.scaled_gateway import StartScaled
from fakes.scene import TESTS


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
