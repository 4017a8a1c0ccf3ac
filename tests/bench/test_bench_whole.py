"""The bench from end to end, for a moment: its tools, its bare relays and tidegate itself."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"
TWO_CORES = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt install gcc"),
    pytest.mark.skipif(not TWO_CORES, reason="needs Linux and two cores"),
]


def run(*options: str) -> str:
    """Run the bench, which must end well: no answer was wrong."""
    done = subprocess.run(
        [sys.executable, RUN, *options], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_short_run_has_tables_and_verdicts_and_becomes_a_page() -> None:
    """Every contender answers without an error, targets are judged, the file becomes a page."""
    peers = ["direct", "aiohttp", "ceiling", "tidegate"]
    short = ["--rounds", "1", "--seconds", "0.2", "--minutes", "0"]
    said = run("--only", "W4,K", "--peers", ",".join(peers), *short)
    for workload in ("W4", "K"):
        lines = said.split(f"{workload}: ")[1].splitlines()[2:]
        assert [line.split()[0] for line in lines[: len(peers)]] == peers
    assert re.search(r"^K .* ≤ 160 .* (met|missed)", said, re.MULTILINE)
    assert re.search(r"^\d of 2 targets met$", said, re.MULTILINE)
    written = re.search(r"^written: (\S+\.json)", said, re.MULTILINE)
    assert written is not None
    page = run("--table", written[1])
    assert re.search(r"^\| tidegate \d", page, re.MULTILINE)
