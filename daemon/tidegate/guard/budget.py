"""How much memory we may use, and who says so.

The smallest of what the configuration, the cgroups above us and the resource limits allow.
At home there is usually no limit at all; then the budget is an explicit number, said aloud in
the log and in `tidegate status`: 1 GiB, or a quarter of a smaller machine.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tidegate.core.settings import MIB

FALLBACK_BYTES = 1024 * MIB
FALLBACK_SHARE = 0.25  # of a machine with less than 4 GiB: the models need the rest
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "none" as LONG_MAX rounded down to a page


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group that limits us."""

    path: Path
    version: int

    def limit_bytes(self) -> int | None:
        """Its limit, or None when it sets none."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        try:
            text = (self.path / name).read_text().strip()
        except OSError:
            return None  # the root group has no limit file, and v1's may be unreadable
        if text == "max" or int(text) >= _NO_LIMIT_BYTES:
            return None
        return int(text)

    def used_bytes(self) -> int:
        """What counts towards the limit and cannot simply be dropped. Raises OSError."""
        usage, cache = (
            ("memory.current", b"inactive_file")
            if self.version == 2
            else ("memory.usage_in_bytes", b"total_inactive_file")
        )
        used = int((self.path / usage).read_text())
        for line in (self.path / "memory.stat").read_bytes().splitlines():
            key, _, value = line.partition(b" ")
            if key == cache:
                return max(0, used - int(value))
        return used


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes, and where they come from.

    `hard`: a person set it or the kernel enforces it. Otherwise it is our guess, and no reason
    to kill anything.
    """

    bytes: int
    source: str
    hard: bool = False
    cgroup: Cgroup | None = None  # the one whose limit this is


def find(configured_bytes: int | None, root: Path = Path("/")) -> Budget:
    """The budget of this process and its children. `root` is where /proc and /sys are found."""
    limits: list[Budget] = []
    if configured_bytes is not None:
        limits.append(Budget(bytes=configured_bytes, source="setting memory.budget", hard=True))
    for cgroup in _cgroups(root):
        if (limit := cgroup.limit_bytes()) is not None:
            source = f"cgroup v{cgroup.version} limit ({cgroup.path})"
            limits.append(Budget(bytes=limit, source=source, hard=True, cgroup=cgroup))
    for name in ("RLIMIT_AS", "RLIMIT_RSS"):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            limits.append(Budget(bytes=soft, source=f"{name} of this process", hard=True))
    if limits:
        return min(limits, key=lambda budget: budget.bytes)
    total = psutil.virtual_memory().total
    share = int(FALLBACK_SHARE * total)
    if share < FALLBACK_BYTES:
        return Budget(bytes=share, source="no limit found: a quarter of this computer's memory")
    return Budget(bytes=FALLBACK_BYTES, source="no limit found: 1 GiB")


def _cgroups(root: Path) -> Iterator[Cgroup]:
    """Every memory cgroup from ours up to the root, of both versions."""
    try:
        ours = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return  # not Linux, or no /proc
    for version, controller in ((2, ""), (1, "memory")):
        mount = _mount(mounts, version)
        place = _place(ours, controller)
        if mount is None or place is None:
            continue
        point, mounted = mount
        below = place.removeprefix(mounted) if mounted != "/" else place
        top = root / point.lstrip("/")
        path = top / below.lstrip("/")
        while path != top:
            yield Cgroup(path, version)
            path = path.parent
        yield Cgroup(top, version)


def _mount(mountinfo: list[str], version: int) -> tuple[str, str] | None:
    """Mount point of the hierarchy and the group that is mounted there."""
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if (version == 2 and kind == "cgroup2") or (
            version == 1 and kind == "cgroup" and "memory" in options.split(",")
        ):
            fields = left.split(" ")
            return fields[4], fields[3]
    return None


def _place(cgroups: list[str], controller: str) -> str | None:
    """Our group in the hierarchy with that controller ("" is version 2)."""
    for line in cgroups:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path if ".." not in path else "/"  # above our namespace: its root is ours
    return None
