"""Finds how much memory we may use, and what sets the limit.

The smallest of what the configuration, the control groups above us and the resource limits allow.
At home there is usually no limit at all; then the budget is an explicit number, shown in
the log and in `tidegate status`: 1 GiB, or a quarter of a smaller machine.

Nothing that a file says can make this fail: what is not understood is left out, with the reason.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from pathlib import Path

from tidegate.core.memory.levels import LEAST_BUDGET_BYTES
from tidegate.core.settings import MIB
from tidegate.machine import cgroup, meminfo, procfile
from tidegate.machine.cgroup import Cgroup

FALLBACK_BYTES = 1024 * MIB
FALLBACK_SHARE = 0.25  # of a machine with less than 4 GiB: the models need the rest
# Linux has ignored RLIMIT_RSS since 2.4.30 and enforces the other two; an owner who sets it means
# it, and launchd's ResidentSetSize arrives as RLIMIT_RSS.
_RLIMITS = ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_RSS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A memory budget in bytes, and what sets it.

    `hard`: the owner set it or the kernel enforces it. Otherwise it is our guess, and no reason
    to kill anything. `ignored` says in words which limits were left out, and why.
    """

    bytes: int
    source: str
    hard: bool = False
    cgroup: Cgroup | None = None  # the one whose limit this is
    ignored: tuple[str, ...] = ()


def find(configured_bytes: int | None, root: Path = Path("/")) -> Budget:
    """Find the budget of this process and its children. `root` is where /proc and /sys are."""
    groups, ignored = cgroup.find(root)
    limits: list[Budget] = []
    for group in groups:
        figures, unread = group.limits()
        ignored += unread
        for name, limit_bytes in figures.items():
            source = f"cgroup v{group.version} limit ({name} of {group.path})"
            limits.append(Budget(bytes=limit_bytes, source=source, hard=True, cgroup=group))
    for name in _RLIMITS:
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY and soft > 0:
            limits.append(Budget(bytes=soft, source=f"{name} of this process", hard=True))
    total_bytes, unread = _machine(root)
    if total_bytes is not None:
        # Some hosts write a huge number where others write that there is no limit. Equal is none of
        # those: LXC shows a container its limit as the memory of the computer.
        idle = [each.source for each in limits if each.bytes > total_bytes]
        limits = [each for each in limits if each.bytes <= total_bytes]
        ignored += tuple(f"{source}: more than this computer has" for source in idle)
    if configured_bytes is not None:
        source = "setting memory.budget"
        if configured_bytes < LEAST_BUDGET_BYTES:
            source += f", which counts as the least, {LEAST_BUDGET_BYTES // MIB} MiB"
        budget_bytes = max(configured_bytes, LEAST_BUDGET_BYTES)
        limits.append(Budget(bytes=budget_bytes, source=source, hard=True))
    found = min(limits, key=lambda each: each.bytes) if limits else _guess(total_bytes)
    return replace(found, ignored=ignored + unread)


def _guess(total_bytes: int | None) -> Budget:
    share = FALLBACK_BYTES if total_bytes is None else int(FALLBACK_SHARE * total_bytes)
    if share < LEAST_BUDGET_BYTES:
        return Budget(bytes=LEAST_BUDGET_BYTES, source="no limit found: the least that will do")
    if share < FALLBACK_BYTES:
        return Budget(bytes=share, source="no limit found: a quarter of this computer's memory")
    return Budget(bytes=FALLBACK_BYTES, source="no limit found, so the default")


def _machine(root: Path) -> tuple[int | None, tuple[str, ...]]:
    try:
        return meminfo.total_bytes(root / "proc/meminfo"), ()
    except procfile.UnreadableFigure as error:
        return None, (str(error),)
