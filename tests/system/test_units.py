"""The service files are what systemd and launchd can read, and hold what they must."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tidegate.install import launchd_plist, systemd_unit

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(ROOT.glob("systemd/*.service"))
SOCKETS = sorted(ROOT.glob("systemd/*.socket"))
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


def analyze(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (apt install systemd)")
    return subprocess.run(
        ["systemd-analyze", *arguments],
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def installed(unit: Path, folder: Path) -> Path:
    """The unit under the name it is installed by, with its socket or service beside it."""
    for each in UNITS + SOCKETS:
        if ("user" in each.name) == ("user" in unit.name):
            # Where the package is not installed there is no such program; nothing else changes.
            text = each.read_text().replace("/usr/bin/tidegate", shutil.which("true") or "")
            (folder / f"tidegate{each.suffix}").write_text(text)
    return folder / f"tidegate{unit.suffix}"


@pytest.mark.parametrize("unit", UNITS + SOCKETS, ids=lambda path: path.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no unknown key and no bad value."""
    manager = "--user" if "user" in unit.name else "--system"
    strict = ["--man=no", "--recursive-errors=yes"]
    done = analyze("verify", manager, *strict, str(installed(unit, tmp_path)), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_system_unit_is_exposed_to_little(tmp_path: Path) -> None:
    """`systemd-analyze security` rates it 1.5 or better, of 10."""
    unit = installed(ROOT / "systemd" / "tidegate.service", tmp_path)
    done = analyze("security", "--offline=true", "--threshold=15", str(unit), folder=tmp_path)
    assert done.returncode == 0, done.stdout[-300:]
    assert "Overall exposure level" in done.stdout


@pytest.mark.parametrize("name", systemd_unit.shipped())
def test_shipped_units_are_what_is_rendered(name: str) -> None:
    """`python -m tidegate.install.systemd_unit systemd` writes them anew."""
    assert (ROOT / "systemd" / name).read_text() == systemd_unit.shipped()[name]


@pytest.mark.parametrize("name", launchd_plist.shipped())
def test_shipped_plists_are_what_is_rendered(name: str) -> None:
    """`python -m tidegate.install.launchd_plist launchd` writes them anew."""
    assert (ROOT / "launchd" / name).read_bytes() == launchd_plist.shipped()[name]


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
    assert [unit.name for unit in SOCKETS] == ["tidegate-user.socket", "tidegate.socket"]
    assert len(PLISTS) == 1
