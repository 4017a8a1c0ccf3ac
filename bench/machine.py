"""What Linux says about processes and about the computer, read from /proc.

Processor time is in seconds, memory in bytes. A process that has gone has used nothing and holds
nothing: it may end between two looks at it.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a process holds: resident, resident at its highest, and shared with no other."""

    rss_bytes: int = 0
    peak_bytes: int = 0
    private_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreTime:
    """Time of some cores together since the computer started."""

    idle_s: float
    steal_s: float


def memory(pid: int) -> Memory:
    """Read the memory of one process. Costs it milliseconds: its page tables are walked."""
    try:
        status = _fields(PROC / str(pid) / "status")
        rollup = _fields(PROC / str(pid) / "smaps_rollup")
    except (FileNotFoundError, ProcessLookupError):
        return Memory()
    return Memory(
        rss_bytes=status.get("VmRSS", 0),
        peak_bytes=status.get("VmHWM", 0),
        private_bytes=rollup.get("Private_Clean", 0) + rollup.get("Private_Dirty", 0),
    )


def rss_bytes(pid: int) -> int:
    """Read the resident memory of one process; cheap."""
    try:
        pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """Read user and system time of one process and of the children it has waited for."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # The name in the second field may hold blanks and brackets; what follows the last is plain.
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S


def descendants(pid: int) -> list[int]:
    """List the children of a process and theirs, parents first."""
    found: list[int] = []
    for children in (PROC / str(pid) / "task").glob("*/children"):
        try:
            text = children.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in map(int, text.split()):
            found += [child, *descendants(child)]
    return found


def core_time(cores: set[int]) -> CoreTime:
    """Read for how long these cores were idle, and how long the host took them away.

    Idle time is used, and not the sum of what was done: the kernel measures it by the clock, while
    it guesses who was busy from who is found running at each tick, which misses work that is woken
    by a timer and done before the next tick.
    """
    idle = steal = 0
    for line in (PROC / "stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            idle += int(ticks[3]) + int(ticks[4])
            steal += int(ticks[7])
    return CoreTime(idle_s=idle / TICKS_PER_S, steal_s=steal / TICKS_PER_S)


def processor() -> str:
    """Name the processor, as far as the kernel knows it."""
    found = re.search(r"^model name\s*: (.*)", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _fields(path: Path) -> dict[str, int]:
    """Read the lines "Name:   123 kB" of a file in /proc, in bytes."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * 1024
    return found
