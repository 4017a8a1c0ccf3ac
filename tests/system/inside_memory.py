"""Runs inside the private namespaces: a flood against a unit that the kernel limits.

Usage: inside_memory.py MODE UNIT SIZE. MODE is the guard's, SIZE (left, blind) in JSON. Prints one
JSON object; the test outside judges it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from inside import CONFIG, install, show, start, systemctl, wait_until

from fakes.memory_flood import FLOOD_KILOBYTES
from fakes.scene import crowd, flood_upstream
from tidegate.core.protocol.control import ControlRequest
from tidegate.watchdog.control.client import ask

LIMIT = "200M"
TEXT = """
listen = "127.0.0.1:{port}"
[limits]
keep_finished_s = 12.0
disconnect_grace_s = 0.2
[memory]
mode = "{mode}"
[[upstream]]
name = "box"
url = "{url}"
"""


def memory_group() -> Path:
    """The unit's control group, in whichever hierarchy limits memory."""
    place = systemctl("show", "tidegate.service", "-p", "ControlGroup").strip().partition("=")[2]
    for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        folder = Path(root + place)
        if (folder / "memory.oom_control").exists() or (folder / "memory.events").exists():
            return folder
    return cannot_be_tried(f"systemd made no memory group at {place}")


def cannot_be_tried(why: str) -> NoReturn:
    """Leave; the test outside is skipped, and says so."""
    systemctl("stop", "tidegate.service")
    print(json.dumps({"cannot": why}))
    sys.exit(0)


def kills(group: Path) -> int:
    """How often the kernel killed in it."""
    for name in ("memory.oom_control", "memory.events"):
        if (group / name).exists():
            fields = dict(line.split() for line in (group / name).read_text().splitlines())
            return int(fields["oom_kill"])
    return 0


def status() -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        bytes(ask(Path("/run/home/rt"), ControlRequest(verb="status"), 30.0).result)
    )
    return answer


def main() -> None:
    mode, size = sys.argv[1], json.loads(sys.argv[3])
    install(sys.argv[2], 30.0)
    Path("/run/units/tidegate.service.d/memory.conf").write_text(
        f"[Service]\nMemoryMax={LIMIT}\nMemoryHigh=infinity\nMemorySwapMax=0\n"
    )
    systemctl("daemon-reload")
    with flood_upstream() as url:
        CONFIG.write_text(TEXT.format(port=8433, mode=mode, url=url))
        pid = start()["MainPID"]
        wait_until(lambda: status()["worker"], "a worker serves")
        group = memory_group()
        budget = status()["memory"]
        if "cgroup" not in budget["budget_source"]:
            cannot_be_tried(f"MemoryMax has no effect here: {budget['budget_source']}")
        with crowd(
            base_url="http://127.0.0.1:8433",
            upstream=url,
            flood=f"flood:{FLOOD_KILOBYTES}",
            live=20 if mode == "enforce" else 0,
            left=size["left"],
            blind=size["blind"],
            left_limit_s=60.0 if size["left"] >= 500 else 10.0,
        ) as clients:
            wait_until(
                lambda: clients.has_said("loaded") or kills(group),
                "the flood is over, or a process was killed",
            )
            killed = kills(group)
            over_s = time.monotonic() + 3.0
            wait_until(lambda: time.monotonic() > over_s, "what is on its way arrives")
            found = clients.finish() if not killed else None
        wait_until(lambda: status()["worker"], "a worker serves again")
        after = status()
        shown = show()
        killed = kills(group)
    systemctl("stop", "tidegate.service")
    print(
        json.dumps(
            {
                "pid": pid,
                "budget_bytes": budget["budget_bytes"],
                "budget_source": budget["budget_source"],
                "kills": killed,
                "restarts": after["restarts"],
                "steps": after["memory"]["steps"],
                "after": shown,
                "clients": found,
                "log": Path("/run/home/log").read_text(),
            }
        )
    )


if __name__ == "__main__":
    main()
