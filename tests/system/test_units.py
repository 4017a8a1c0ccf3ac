"""The service files are what systemd and launchd can read, and hold what they must."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(ROOT.glob("systemd/*.service"))
PLISTS = sorted(ROOT.glob("launchd/*.plist"))

# launchd.plist(5): the keys we use and the types they have.
PLIST_TYPES: dict[str, type] = {
    "Label": str,
    "ProgramArguments": list,
    "UserName": str,
    "GroupName": str,
    "RunAtLoad": bool,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "Umask": int,
    "SoftResourceLimits": dict,
    "HardResourceLimits": dict,
    "StandardErrorPath": str,
}


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no unknown key and no bad value."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (apt install systemd)")
    copy = tmp_path / unit.name
    # Where the package is not installed there is no such program, and nothing else is changed.
    copy.write_text(unit.read_text().replace("/usr/bin/tidegate", shutil.which("true") or ""))
    manager = ["--user"] if "user" in unit.name else ["--system"]
    done = subprocess.run(
        ["systemd-analyze", "verify", *manager, "--man=no", "--recursive-errors=yes", str(copy)],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "NotifyAccess=main",
        "Restart=on-failure",
        "RestartPreventExitStatus=78",
        "WatchdogSec=60",
        "KillMode=mixed",
        "OOMPolicy=continue",
        "LimitCORE=0",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ],
)
def test_unit_promises(unit: Path, line: str) -> None:
    """Each unit holds what the watchdog relies on."""
    assert line in unit.read_text().splitlines()


@pytest.mark.parametrize("plist", PLISTS, ids=lambda path: path.name)
def test_plist_has_only_known_keys_of_the_right_type(plist: Path) -> None:
    """launchd ignores a key of the wrong type in silence; here it is an error."""
    job: dict[str, Any] = plistlib.loads(plist.read_bytes())
    assert {key: type(value) for key, value in job.items()} == {
        key: PLIST_TYPES[key] for key in job
    }
    assert job["Label"] == plist.stem


@pytest.mark.parametrize("plist", PLISTS, ids=lambda path: path.name)
def test_plist_promises(plist: Path) -> None:
    """It restarts after failures only, outlasts a drain, is not throttled and keeps to itself."""
    job: dict[str, Any] = plistlib.loads(plist.read_bytes())
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert 30 < job["ExitTimeOut"] <= 60
    assert job["ProcessType"] == "Interactive"
    assert job["Umask"] == 0o077
    assert job["HardResourceLimits"]["Core"] == 0
    assert "--park" in job["ProgramArguments"]
    assert not any("key" in word.lower() for word in job.get("EnvironmentVariables", {}))


def test_there_is_something_to_check() -> None:
    """Both units and the plist are there."""
    assert [unit.name for unit in UNITS] == ["tidegate-user.service", "tidegate.service"]
    assert len(PLISTS) == 1
