"""`tidegate service` under a real systemd: a user's, and the system's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.private_systemd import missing

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARE = Path("/mnt")  # where the private root shows this checkout


def inside(scope: str, case: str) -> dict[str, Any]:
    """What the case saw."""
    if reason := missing():
        pytest.skip(reason)
    program = shared(case) if scope == "system" else beside(case)
    done = subprocess.run(
        [*program, "-m", "tidegate"],
        env={**os.environ, "PRIVATE_SHARE": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def beside(case: str) -> list[str]:
    """For a user's manager, which runs beside us on the same files."""
    script = str(HERE / "inside_service.py")
    manager = str(HERE / "private_systemd.sh")
    return [manager, "env", f"CASE={case}", sys.executable, script, "user", sys.executable]


def shared(case: str) -> list[str]:
    """For the private root: the interpreter itself, and this checkout where it is shown there."""
    python = str(Path(sys.executable).resolve())
    libraries = [path for path in sys.path if path.endswith("-packages")]
    shown = [
        str(SHARE / Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path
        for path in [str(ROOT / "daemon"), *libraries]
    ]
    script = SHARE / HERE.relative_to(ROOT) / "inside_service.py"
    env = [f"CASE={case}", f"PYTHONPATH={':'.join(shown)}"]
    return [str(HERE / "private_root.sh"), "env", *env, python, str(script), "system", python]


@pytest.mark.parametrize("scope", ["user", pytest.param("system", marks=pytest.mark.long)])
def test_it_becomes_a_service_and_leaves_nothing(scope: str) -> None:
    """Installed, seen, restarted, changed, stopped, started and removed, as each verb says."""
    seen = inside(scope, "life")
    assert (seen["dry"]["code"], seen["dry_files"]) == (0, ["tidegate.service.d"])
    first = seen["install"]
    assert (first["code"], first["err"]) == (0, "")
    assert (first["ActiveState"], first["UnitFileState"]) == ("active", "enabled")
    assert "Base URL  http://127.0.0.1:" in first["out"]
    assert seen["healthz"] == 200

    whole = json.loads(seen["status"]["out"])
    assert seen["status"]["code"] == 0
    assert (whole["manager"], whole["scope"]) == ("systemd", scope)
    assert whole["service"]["limits"]["stop_s"] == 17.0
    assert (whole["tidegate"]["state"], whole["tidegate"]["manager"]) == ("serving", "systemd")

    assert (seen["again"]["code"], seen["again"]["MainPID"]) == (0, first["MainPID"])
    assert "is as it should be" in seen["again"]["out"]
    assert seen["restart"]["code"] == 0
    assert seen["restart"]["MainPID"] not in ("0", first["MainPID"])

    for verb in ("stop", "restart"):
        assert seen[f"bare_{verb}"]["code"] == 1
        assert f"a service of systemd; run: tidegate service {verb}" in seen[f"bare_{verb}"]["err"]
    assert "as a service of systemd" in seen["bare_start"]["out"]
    assert seen["bare_restart"]["MainPID"] == seen["restart"]["MainPID"]

    assert seen["changed"]["code"] == 0
    assert "-TimeoutStopSec=17\n" in seen["changed"]["out"]
    assert "+TimeoutStopSec=18\n" in seen["changed"]["out"]
    assert seen["changed"]["TimeoutStopUSec"] == "18s"
    assert "had been changed by hand; it is kept as" in seen["edited"]["out"]
    assert "drop-in" in seen["edited"]["out"]
    assert ["RestartSec=7" in text for text in seen["kept"]] == [True]

    assert (seen["stop"]["code"], seen["stop"]["ActiveState"]) == (0, "inactive")
    assert seen["stopped"]["code"] == 69
    assert (seen["start"]["code"], seen["start"]["ActiveState"]) == (0, "active")
    assert (seen["uninstall"]["code"], seen["uninstall"]["err"]) == (0, "")
    assert seen["left"] == ["tidegate.service.d"]
    assert seen["drop_in"].endswith("# mine\n")
    assert "holds changes of yours and stays" in seen["uninstall"]["out"]
    assert (seen["after"]["code"], seen["config_stays"]) == (69, True)
    if scope == "system":
        assert seen["user"] == "tidegate"
        assert seen["logs"]["code"] == 0
        assert "worker 1 is ready" in seen["logs"]["out"]


@pytest.mark.long
@pytest.mark.parametrize("scope", ["user", "system"])
def test_what_stands_in_the_way_is_said(scope: str) -> None:
    """A missing key, a mistake, a mask: each is named; no key ever gets into a unit."""
    seen = inside(scope, "trouble")
    assert seen["no_key"]["code"] == 78
    assert "expected in the environment, and the service's has none" in seen["no_key"]["out"]
    assert "the environment has no such variable" in seen["no_key"]["err"]
    assert "exit code 78 (bad configuration)" in seen["no_key"]["err"]
    assert "sk-canary" not in seen["unit"] + seen["no_key"]["out"] + seen["no_key"]["err"]
    assert seen["mistake"]["code"] == 78
    assert "nonsense: unknown key" in seen["mistake"]["err"]
    assert (seen["socket"]["code"], seen["socket"]["err"]) == (0, "")
    assert "tidegate.socket (new):" in seen["socket"]["out"]
    assert seen["healthz"] == 200
    assert seen["socket_again"]["code"] == 0
    assert "tidegate.socket is as it should be" in seen["socket_again"]["out"]
    assert seen["socket_again"]["MainPID"] == seen["socket"]["MainPID"]
    assert seen["left"] == ["tidegate.service.d"]
    assert seen["masked"]["code"] == 69
    assert "is masked; run: systemctl" in seen["masked"]["err"]
