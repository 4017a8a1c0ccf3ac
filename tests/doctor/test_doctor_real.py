"""The doctor under a real systemd: what is in force is found, not what a file says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from system.test_service_verb_real import missing

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent


@pytest.mark.long
def test_limits_in_force_are_found_under_a_real_systemd() -> None:
    """A service as installed has none; a drop-in counts once systemd has read it."""
    if reason := missing():
        pytest.skip(reason)
    manager = HERE.parent / "system" / "private_systemd.sh"
    done = subprocess.run(
        [manager, sys.executable, HERE / "inside_doctor.py", sys.executable, "-m", "tidegate"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    seen = {name: set(ids) for name, ids in json.loads(done.stdout).items()}
    ours = {
        name: {each for each in ids if each.startswith("service-")} for name, ids in seen.items()
    }
    bent = {
        "service-drop-ins",
        "service-oom-policy",
        "service-open-files",
        "service-stop-limit",
    }
    linger = {"service-linger"}  # which needs a logind that is not there
    assert ours["good"] <= linger
    assert not ours["not yet read"] & (bent - {"service-drop-ins"})
    assert ours["bent"] - linger == bent
    assert ours["stopped"] - linger == bent
    assert "daemon-not-running" not in seen["good"]
    assert "daemon-not-running" in seen["stopped"]
