"""Runs scripts beside a real systemd that lives in namespaces of its own; see tests/system/*.sh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ROOT / "tests" / "system"
SHARE = Path("/mnt")  # where the private root shows this checkout
LIMIT_S = 110


def missing() -> str | None:
    """Why a real systemd cannot run here."""
    if sys.platform != "linux" or not Path("/lib/systemd/systemd").exists():
        return "needs systemd (apt install systemd)"
    if os.geteuid() != 0:
        return "needs root, for namespaces and cgroups of its own"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "needs unshare and nsenter (util-linux)"
    probe = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "needs the right to make namespaces"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "needs writable cgroups"
    return None


def beside_user_manager(script: str, *arguments: str) -> dict[str, Any]:
    """What the script saw, beside a `systemd --user` on the files of this machine."""
    manager = str(SYSTEM / "private_systemd.sh")
    return _seen([manager, sys.executable, str(SYSTEM / script), *arguments])


def on_private_computer(script: str, *arguments: str) -> dict[str, Any]:
    """What the script saw on a computer of its own, whose system manager is a real systemd."""
    libraries = [path for path in sys.path if path.endswith("-packages")]
    shown = [
        str(SHARE / Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path
        for path in [str(ROOT / "daemon"), *libraries]
    ]
    python = str(Path(sys.executable).resolve())
    place = SHARE / SYSTEM.relative_to(ROOT) / script
    command = [str(SYSTEM / "private_root.sh"), "env", f"PYTHONPATH={':'.join(shown)}"]
    return _seen([*command, python, str(place), *arguments])


def _seen(command: list[str]) -> dict[str, Any]:
    if reason := missing():
        pytest.skip(reason)
    done = subprocess.run(
        command,
        env={**os.environ, "PRIVATE_SHARE": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen
