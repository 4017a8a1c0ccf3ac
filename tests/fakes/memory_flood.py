"""The scene that a memory budget has to survive, played once, and what was measured in it.

Runs that go on without their clients fill their windows and are left unread, clients that never
read hold what they can, and a few that read get their answers at a person's pace. Upstream and
clients are processes of their own; what the daemon holds is read from outside.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fakes.gateway import Gateway
from fakes.scaled_gateway import StartScaled
from fakes.scene import Meter, crowd, flood_upstream
from tidegate.logs.pace import QUIET_S
from tidegate.watchdog.workers.process import WORKER_COMMAND

MIB = 1024 * 1024
BUDGET_MIB = 200
FLOOD_KILOBYTES = 4400  # more than a window of 4 MiB
# The age at which something is stale under pressure goes from 6 s down to 0.3 s instead of from ten
# minutes to half of one; finished answers are kept for 12 s. Nothing else is scaled.
STALE = {"tidegate.core.memory.policy": {"STALE_MOST_S": 6.0, "STALE_LEAST_S": 0.3}}
CONFIG = """
[limits]
keep_finished_s = 12.0
disconnect_grace_s = 0.2
close_flush_s = 0.5
[memory]
budget = "{budget_mib}MiB"
mode = "{mode}"
[[upstream]]
name = "box"
url = "{url}"
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the scene is."""

    left: int  # answers without a reader
    blind: int  # clients that never read
    live: int = 20  # clients that read
    load_limit_s: float = 12.0  # then no client that was refused comes again
    settle_limit_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Played:
    """What was seen of it."""

    mode: str
    peak_bytes: int
    peak_at_s: float
    end_bytes: int
    readings: int
    load_s: float
    levels: list[int]  # each that was seen, in order
    settled_s: float | None  # until level and ledger were 0 by themselves
    live: dict[str, Any]
    left: dict[str, Any]
    steps: dict[str, dict[str, Any]]  # of the status
    would: list[str]  # what observing said
    status: dict[str, Any]  # the last one
    log: str


def config(url: str, mode: str) -> str:
    """The gateway's."""
    return CONFIG.format(url=url, mode=mode, budget_mib=BUDGET_MIB)


def play(start: StartScaled, mode: str, size: Size) -> Played:
    """Play the scene in one mode of the guard."""
    with flood_upstream() as url:
        gateway = start(config(url, mode), timing={}, constants=STALE, worker=WORKER_COMMAND)
        with Meter(gateway.pid) as meter:
            return _play(gateway, meter, url, mode, size)


def _play(gateway: Gateway, meter: Meter, url: str, mode: str, size: Size) -> Played:
    levels: list[int] = []
    would: list[str] = []

    def look() -> dict[str, Any]:
        status = gateway.status()
        memory = status["memory"]
        if not levels or levels[-1] != memory["level"]:
            levels.append(memory["level"])
        if memory["would"] and memory["would"] not in would:
            would.append(memory["would"])
        return status

    def look_for(seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            look()
            time.sleep(0.2)

    plan = {
        "base_url": gateway.base_url,
        "upstream": url,
        "flood": f"flood:{FLOOD_KILOBYTES}",
        "live": size.live,
        "blind": size.blind,
        "left": size.left,
        "left_limit_s": size.load_limit_s,
    }
    with crowd(**plan) as clients:
        clients.wait("begun")
        started_s = time.monotonic()
        while not clients.has_said("loaded"):
            look_for(0.2)
        load_s = time.monotonic() - started_s
        look_for(3.0)  # what is on its way arrives, and is judged
        found = clients.finish()
    ended_s = time.monotonic()
    settled_s = None
    while settled_s is None and time.monotonic() < ended_s + size.settle_limit_s:
        look_for(0.4)
        if levels[-1] == 0 and not look()["memory"]["ledger_bytes"]:
            settled_s = time.monotonic() - ended_s
    look_for(QUIET_S + 2.0)  # the last sum is logged once nothing is added to it any more
    status = look()
    return Played(
        mode=mode,
        peak_bytes=meter.peak_bytes,
        peak_at_s=meter.peak_at_s,
        end_bytes=meter.last_bytes,
        readings=meter.readings,
        load_s=load_s,
        levels=levels,
        settled_s=settled_s,
        live=found["live"],
        left=found["left"],
        steps={step["step"]: step for step in status["memory"]["steps"]},
        would=would,
        status=status,
        log=gateway.log.read_text(),
    )
