"""The service files are what systemd can read, and hold what they must."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tidegate.managers.systemd import unit as systemd_unit

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(ROOT.glob("systemd/*.service"))
SOCKETS = sorted(ROOT.glob("systemd/*.socket"))


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
    """`python -m tidegate.managers.systemd.unit systemd` writes them anew."""
    assert (ROOT / "systemd" / name).read_text() == systemd_unit.shipped()[name]


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


def test_there_is_something_to_check() -> None:
    """Both units are there, each with its socket."""
    assert [unit.name for unit in UNITS] == ["tidegate-user.service", "tidegate.service"]
    assert [unit.name for unit in SOCKETS] == ["tidegate-user.socket", "tidegate.socket"]
