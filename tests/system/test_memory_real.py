"""A limit that the kernel enforces: guarded no process is killed under it, observing one is.

The unit that ships runs under a real systemd with MemoryMax, and gets the flood that fills every
window. Without root, a systemd binary or a memory controller this cannot be tried and is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.scene import with_tests

HERE = Path(__file__).parent
FULL = int(os.environ.get("TIDEGATE_TEST_SCALE", "100")) >= 1000
SIZE = {"left": 500, "blind": 200} if FULL else {"left": 80, "blind": 30}
MIB = 1024 * 1024


def missing() -> str | None:
    """Why it cannot be tried here."""
    if sys.platform != "linux" or not Path("/lib/systemd/systemd").exists():
        return "a systemd binary is needed"
    if os.geteuid() != 0:
        return "namespaces and control groups need root"
    if not shutil.which("unshare"):
        return "unshare is needed"
    hierarchies = Path("/proc/self/mounts").read_text()
    v2 = Path("/sys/fs/cgroup/cgroup.controllers")
    if " /sys/fs/cgroup/memory " not in hierarchies and not (
        v2.exists() and "memory" in v2.read_text().split()
    ):
        return "no control group limits memory on this machine"
    return None


pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.long,
]


def play(mode: str) -> Any:
    done = subprocess.run(
        [
            str(HERE / "private_systemd.sh"),
            sys.executable,
            str(HERE / "inside_memory.py"),
            mode,
            "tidegate.service",
            json.dumps(SIZE),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=with_tests(dict(os.environ)),
        start_new_session=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    if "cannot" in seen:
        pytest.skip(seen["cannot"])
    return seen


@pytest.mark.timeout(300)
def test_guarded_the_kernel_kills_no_process() -> None:
    """The limit is found and is the budget; the flood is survived, and readers lose nothing."""
    seen = play("enforce")
    assert seen["budget_bytes"] == 200 * MIB
    assert "cgroup" in seen["budget_source"]
    assert seen["kills"] == 0
    assert seen["restarts"] == []
    assert seen["clients"]["live"]["troubles"] == []
    assert seen["clients"]["live"]["exact"] == 20
    assert seen["after"]["NRestarts"] == "0"
    assert seen["after"]["MainPID"] == seen["pid"]


@pytest.mark.timeout(300)
def test_observing_the_kernel_kills_a_worker() -> None:
    """The same flood with a guard that only says what it would do."""
    seen = play("observe")
    assert seen["kills"] >= 1
    assert "observing only; it would" in seen["log"]
    assert "killed by SIGKILL" in {each["reason"] for each in seen["restarts"]}
    assert seen["after"]["ActiveState"] == "active"
