"""Runs beside a private systemd: installs a user's service, bends its limits, asks the doctor.

Usage: inside_doctor.py PROGRAM, the command to call. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = sys.argv[1:]
HOME = Path("/run/home")
CONFIG = HOME / "tidegate.toml"
PLACES = [
    *("--config", str(CONFIG), "--state-dir", str(HOME / "state")),
    *("--runtime-dir", str(HOME / "rt")),
]
BENT = "[Service]\nTimeoutStopSec=7\nWatchdogSec=0\nOOMPolicy=stop\nLimitNOFILE=512\n"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words], capture_output=True, text=True, timeout=90, check=False
    )


def doctor() -> list[str]:
    done = command("doctor", "--json", "--no-tokens", *PLACES)
    assert done.returncode in {0, 1, 2}, done.stderr
    return sorted(problem["id"] for problem in json.loads(done.stdout)["problems"])


def main() -> None:
    CONFIG.write_text('listen = "127.0.0.1:0"\n')
    installed = command("service", "install", "--user", *PLACES)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    seen = {"good": doctor()}
    folder = next(Path("/run").glob("**/tidegate.service")).parent / "tidegate.service.d"
    folder.mkdir(exist_ok=True)
    (folder / "bent.conf").write_text(BENT)
    seen["not yet read"] = doctor()
    subprocess.run(["systemctl", "--user", "daemon-reload"], check=True, env=os.environ)
    seen["bent"] = doctor()
    command("service", "stop", "--user", *PLACES)
    seen["stopped"] = doctor()
    print(json.dumps(seen))


main()
