"""Runs on a computer of its own: install.sh makes a service of the system, upgrades and removes it.

Usage: inside_install.py OLD.whl NEW.whl, beside install.sh, SHA256SUMS and the directory `wheels`.
Prints one JSON object; the test outside judges it.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

from inside_deb import Reader, get, show, status, wait_until

HERE = Path(__file__).parent
# There is no network here: what pip needs lies beside this file.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(HERE / "wheels")}


def install(*words: str) -> tuple[int, str]:
    """The exit code, and all that install.sh said."""
    done = subprocess.run(
        ["sh", str(HERE / "install.sh"), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **OFFLINE},
    )
    return done.returncode, done.stdout + done.stderr


def main() -> dict[str, Any]:
    old, new = sys.argv[1:]
    python = ("--python", sys.executable)
    seen: dict[str, Any] = {"first": install("--service", *python, old)}
    wait_until(lambda: get("/readyz"), "it answers")
    before = show("MainPID", "ActiveState", "UnitFileState")
    seen["unit"] = before
    seen["user"] = pwd.getpwuid(Path("/proc", before["MainPID"]).stat().st_uid).pw_name

    reader = Reader("demo")
    reader.start()
    wait_until(lambda: reader.events, "the stream has begun")
    seen["second"] = install("--no-service", *python, new)
    seen["version"] = status()["version"]
    seen["same_process"] = show("MainPID")["MainPID"] == before["MainPID"]
    reader.join(60)
    seen["stream"] = reader.ended

    seen["refused"] = install("--uninstall")
    subprocess.run(["tidegate", "service", "uninstall"], capture_output=True, check=True)
    seen["uninstalled"] = install("--uninstall")
    seen["left"] = [
        place for place in ("/opt/tidegate", "/usr/local/bin/tidegate") if exists(place)
    ]
    return seen


def exists(place: str) -> bool:
    return os.path.lexists(place)


if __name__ == "__main__":
    print(json.dumps(main()))
