"""Runs inside the private namespaces: becomes a service there by the verb itself, and leaves.

Usage: inside_service.py SCOPE PROGRAM, where PROGRAM is the command to call and SCOPE is "user"
or "system". Prints one JSON object: for each step what was said and what the manager showed.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

SCOPE = sys.argv[1]
PROGRAM = sys.argv[2:]
MANAGER = ["systemctl", "--user"] if SCOPE == "user" else ["systemctl"]
HOME = Path("/run/home" if SCOPE == "user" else "/srv")
UNITS = HOME / ".config/systemd/user" if SCOPE == "user" else Path("/etc/systemd/system")
CONFIG = HOME / "tidegate.toml" if SCOPE == "user" else Path("/etc/tidegate/config.toml")
STATE = HOME / "state" if SCOPE == "user" else Path("/var/lib/tidegate")
DROP_IN = UNITS / "tidegate.service.d" / "own.conf"
GOOD = 'listen = "127.0.0.1:{port}"\n[drain]\nstop_limit_s = {limit}\n'
PLACES = (
    ["--config", str(CONFIG), "--state-dir", str(STATE), "--runtime-dir", str(HOME / "rt")]
    if SCOPE == "user"
    else []
)


def verb(*words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """`tidegate service …`, to its end."""
    return command("service", *words, f"--{SCOPE}", env=env)


def command(*words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = subprocess.run(
        [*PROGRAM, *words],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr, **show()}


def show() -> dict[str, Any]:
    names = "MainPID,ActiveState,UnitFileState,DropInPaths,TimeoutStopUSec,NRestarts,Result"
    done = subprocess.run(
        [*MANAGER, "show", "tidegate.service", "-p", names],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def names(folder: Path) -> list[str]:
    """Everything of ours below it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*tidegate*"))


def health(address: str) -> int:
    host, _, port = address.rpartition(":")
    conn = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        conn.request("GET", "/healthz")
        return conn.getresponse().status
    finally:
        conn.close()


def write_config(limit: float, more: str = "", port: int = 0) -> None:
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(GOOD.format(limit=limit, port=port) + more)
    CONFIG.chmod(0o644)


def life() -> dict[str, Any]:
    """From nothing to a service and back to nothing."""
    seen: dict[str, Any] = {}
    write_config(2.0)
    seen["dry"] = verb("install", "--dry-run", *PLACES)
    seen["dry_files"] = names(UNITS)
    seen["install"] = verb("install", *PLACES)
    if SCOPE == "system" and seen["install"]["code"] == 0:
        seen["user"] = pwd.getpwuid(Path(f"/proc/{show()['MainPID']}").stat().st_uid).pw_name
    seen["status"] = verb("status", "--json")
    own = json.loads(seen["status"]["out"])["tidegate"] or {"listen": ["127.0.0.1:1"]}
    seen["healthz"] = health(own["listen"][0]) if "state" in own else None
    seen["logs"] = verb("logs", "-n", "50")
    seen["again"] = verb("install", *PLACES)
    seen["restart"] = verb("restart")
    for background in ("stop", "start", "restart"):
        seen[f"bare_{background}"] = command(background, *OWN_PLACES)
    write_config(3.0)
    seen["changed"] = verb("install", *PLACES)
    unit = UNITS / "tidegate.service"
    unit.write_text(unit.read_text().replace("RestartSec=5", "RestartSec=7"))
    DROP_IN.write_text(DROP_IN.read_text() + "# mine\n")
    seen["edited"] = verb("install", *PLACES)
    seen["kept"] = [path.read_text() for path in UNITS.glob("tidegate.service.bak-*")]
    for path in UNITS.glob("tidegate.service.bak-*"):
        path.unlink()
    seen["stop"] = verb("stop")
    seen["stopped"] = verb("status")
    seen["start"] = verb("start")
    seen["uninstall"] = verb("uninstall")
    seen["left"] = names(UNITS)
    seen["drop_in"] = DROP_IN.read_text()
    seen["after"] = verb("status")
    seen["config_stays"] = CONFIG.exists()
    return seen


def trouble() -> dict[str, Any]:
    """What does not start says why; what is stopped stays so; sockets wait for a connection."""
    seen: dict[str, Any] = {}
    upstream = '[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:9"\n'
    write_config(2.0, upstream + 'api_key_env = "BOX_KEY"\n')
    seen["no_key"] = verb("install", *PLACES, env={"BOX_KEY": "sk-canary"})
    seen["unit"] = (UNITS / "tidegate.service").read_text()
    write_config(2.0, "nonsense = 1\n")
    seen["mistake"] = verb("install", *PLACES)
    write_config(2.0, port=18433)
    seen["socket"] = verb("install", "--socket", *PLACES)
    seen["healthz"] = health("127.0.0.1:18433")
    seen["socket_again"] = verb("install")
    seen["uninstall"] = verb("uninstall")
    seen["left"] = names(UNITS)
    (UNITS / "tidegate.service").symlink_to("/dev/null")
    subprocess.run([*MANAGER, "daemon-reload"], check=True)
    seen["masked"] = verb("install", *PLACES)
    (UNITS / "tidegate.service").unlink()
    subprocess.run([*MANAGER, "daemon-reload"], check=True)
    return seen


OWN_PLACES = PLACES or [
    *("--config", str(CONFIG), "--state-dir", str(STATE), "--runtime-dir", "/run/tidegate")
]


def prepare() -> None:
    """What lets this checkout run there, as its owner's drop-in: it is kept all the while."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PYTHONPATH", "")
    DROP_IN.write_text(
        f"[Service]\nEnvironment=PYTHONPATH={path}\nProtectHome=no\nPrivateTmp=no\n"
        # These two mount over what a container's /proc may not have.
        "ProtectKernelTunables=no\nProtectKernelLogs=no\n"
    )
    for program in (Path(sys.executable).resolve(), Path(PROGRAM[0]).resolve()):
        for parent in program.parents if SCOPE == "system" else ():
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    HOME.mkdir(exist_ok=True)
    subprocess.run([*MANAGER, "daemon-reload"], check=True)


if __name__ == "__main__":
    prepare()
    case = os.environ.get("CASE", "life")
    print(json.dumps({"life": life, "trouble": trouble}[case]()))
