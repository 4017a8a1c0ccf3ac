"""What `make` does around the tools that it calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
MADE = (".venv/installed", ".venv/installed-dev", ".venv/bin/python")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Make, with the tools of this environment; nothing is installed."""
    old = [part for made in MADE for part in ("-o", made)]
    command = ["make", *old, f"BIN={Path(sys.executable).parent}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_too_slow_is_told_and_is_no_failure() -> None:
    """Tests that all pass but take longer than TEST_LIMIT_S pass, with a warning at the end."""
    done = make("test", "TEST_LIMIT_S=0.001", "ARGS=tests/logs/test_pace.py -q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "expected: 0.001 s" in done.stdout


def test_quick_enough_is_not_mentioned() -> None:
    """Within TEST_LIMIT_S nothing is said of time."""
    done = make("test", "TEST_LIMIT_S=3600", "ARGS=tests/logs/test_pace.py -q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "expected: " not in done.stdout
