"""Runs inside the private namespaces: starts the unit that ships, and prints what it saw.

Usage: inside.py CASE UNIT. Prints one JSON object; the test outside judges it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidegate.managers.job import Job, Scope
from tidegate.managers.systemd.unit import service_unit

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0
CONFIG = Path("/run/home/tidegate.toml")
GOOD = 'listen = "127.0.0.1:0"\n[drain]\nstop_limit_s = 2.0\n'


def systemctl(*arguments: str) -> str:
    done = subprocess.run(
        ["systemctl", "--user", *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def show() -> dict[str, str]:
    names = "MainPID,ActiveState,SubState,Result,NRestarts,StatusText,ExecMainStatus,WatchdogUSec"
    names += ",NFileDescriptorStore"
    lines = systemctl("show", "tidegate.service", "-p", names).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + LIMIT_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            manager = Path("/run/manager.log").read_text()[-3000:]
            log = Path("/run/home/log")
            ours = log.read_text()[-3000:] if log.exists() else ""
            sys.exit(f"not within {LIMIT_S:g} s: {what}\n{show()}\n{manager}\n{ours}")
        time.sleep(0.05)
    return value


def start() -> dict[str, str]:
    """Start the unit; what systemd shows then. Exits with the reason when it did not start."""
    said = systemctl("start", "tidegate.service")
    shown = show()
    if shown["MainPID"] == "0":
        log = Path("/run/home/log")
        ours = log.read_text() if log.exists() else ""
        sys.exit(f"not started: {said}{shown}\n{Path('/run/manager.log').read_text()}\n{ours}")
    return shown


def install(unit: str, watchdog_s: float) -> None:
    """The unit as it ships; only the program, the places and the watchdog's period differ."""
    text = (ROOT / "systemd" / unit).read_text()
    kept = [
        line
        for line in text.splitlines()
        # A user's manager cannot change users, its directories are its user's, and with credentials
        # its version 252 cannot run ExecReload (226/NAMESPACE).
        if not line.startswith(("ExecStart=", "User=", "Group=", "WantedBy=", "LoadCredential="))
    ]
    Path("/run/units/tidegate.service").write_text("\n".join(kept) + "\n")
    Path("/run/home/state").mkdir(mode=0o700)
    Path("/run/home/rt").mkdir(mode=0o700)
    folder = Path("/run/units/tidegate.service.d")
    folder.mkdir()
    (folder / "test.conf").write_text(
        "[Service]\n"
        f"ExecStart={sys.executable} -m tidegate run --config {CONFIG} "
        "--state-dir /run/home/state --runtime-dir /run/home/rt --log-file /run/home/log\n"
        f"WatchdogSec={watchdog_s}\nRestartSec=0.5\n"
        # The checkout and the interpreter may lie in a home, or in /tmp.
        "ProtectHome=no\nPrivateTmp=no\nReadWritePaths=/run/home\n"
        # These two mount over what a container's /proc may not have.
        "ProtectKernelTunables=no\nProtectKernelLogs=no\n"
    )
    systemctl("daemon-reload")


def case_life() -> dict[str, Any]:
    """Start, truth in STATUS, pings, reload, stop."""
    install(sys.argv[2], 2.0)
    CONFIG.write_text(GOOD)
    after_start = start()
    wait_until(lambda: show().get("StatusText", "").startswith("level 0, "), "a status")
    truthful = show()["StatusText"]
    # Three of its periods pass: without pings systemd would have killed it.
    later_s = time.monotonic() + 6.0
    wait_until(lambda: time.monotonic() > later_s, "time passes")
    after_pings = show()
    systemctl("reload", "tidegate.service")
    log = Path("/run/home/log")
    wait_until(lambda: "config reloaded" in log.read_text(), "the reload is done")
    wait_until(lambda: show()["SubState"] == "running", "it runs again")
    systemctl("stop", "tidegate.service")
    return {
        "start": after_start,
        "status": truthful,
        "pings": after_pings,
        "stop": show(),
        "log": log.read_text(),
    }


def case_hung() -> dict[str, Any]:
    """The watchdog process itself stops turning."""
    install(sys.argv[2], 2.0)
    CONFIG.write_text(GOOD)
    former = start()
    os.kill(int(former["MainPID"]), signal.SIGSTOP)
    wait_until(lambda: show()["Result"] == "watchdog", "systemd ended it for its silence")
    wait_until(lambda: show()["NRestarts"] == "1", "systemd restarted it")
    wait_until(lambda: show()["SubState"] == "running", "it serves again")
    again = show()
    systemctl("stop", "tidegate.service")
    return {"former": former, "again": again}


def case_worker() -> dict[str, Any]:
    """A worker that hangs is no affair of systemd's."""
    install(sys.argv[2], 4.0)
    CONFIG.write_text(GOOD)
    pid = start()["MainPID"]
    children = Path(f"/proc/{pid}/task/{pid}/children")
    former = int(children.read_text().split()[0])
    os.kill(former, signal.SIGSTOP)
    log = Path("/run/home/log")
    wait_until(lambda: "worker 2 is ready" in log.read_text(), "the replacement serves")
    after = show()
    systemctl("stop", "tidegate.service")
    return {"after": after, "log": log.read_text()}


def case_bad_config() -> dict[str, Any]:
    """A configuration that is wrong."""
    install(sys.argv[2], 2.0)
    CONFIG.write_text("nonsense = 1\n")
    systemctl("start", "tidegate.service")
    wait_until(lambda: show()["ActiveState"] == "failed", "it failed")
    # Four of its restart delays later it is still as it was.
    later_s = time.monotonic() + 2.0
    wait_until(lambda: time.monotonic() > later_s, "time passes")
    return {"end": show()}


def case_restart() -> dict[str, Any]:
    """A restart and a crash while a client connects without a pause."""
    install(sys.argv[2], 4.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    CONFIG.write_text(GOOD.replace(":0", f":{address[1]}"))
    start()
    refused: list[str] = []
    connected, over = [0], threading.Event()

    def connect() -> None:
        while not over.wait(0.002):
            try:
                socket.create_connection(address, timeout=LIMIT_S).close()
                connected[0] += 1
            except OSError as error:
                refused.append(str(error))

    thread = threading.Thread(target=connect)
    thread.start()
    systemctl("restart", "tidegate.service")
    restarted = show()
    os.kill(int(restarted["MainPID"]), signal.SIGKILL)
    wait_until(lambda: show()["NRestarts"] == "1", "systemd restarted it")
    wait_until(lambda: show()["SubState"] == "running", "it serves again")
    over.set()
    thread.join()
    systemctl("stop", "tidegate.service")
    seen = {"restarted": restarted, "connected": connected[0], "refused": refused}
    return {**seen, "stopped": show()}


def case_words() -> dict[str, Any]:
    """A program that writes down how it was called, with names that look like syntax."""
    place = Path("/run/home/my $HOME 100% \"x\" 'y' a\\b ${z};")
    program = Path("/run/home/my $HOME 100% ${z};/tidegate")
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@" >/run/home/words\n')
    program.chmod(0o755)
    job = Job(scope=Scope.USER, program=(str(program),), config_file=place, state_dir=place)
    Path("/run/units/tidegate.service").write_text(service_unit(job, 252))
    systemctl("daemon-reload")
    systemctl("start", "tidegate.service")  # it says nothing to systemd, so this fails
    words = Path("/run/home/words").read_text().splitlines()
    return {"meant": job.command, "words": words}


CASES = {
    "life": case_life,
    "hung": case_hung,
    "worker": case_worker,
    "bad": case_bad_config,
    "restart": case_restart,
    "words": case_words,
}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]]()))
