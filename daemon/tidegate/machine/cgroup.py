"""Reads the control groups that we are in: their limits, and what counts against those.

Both versions, and hosts that have both at once: systemd's hybrid layout keeps memory on version 1
while version 2 is mounted beside it, without limits. What cannot be read is no reason to fail; it
is returned in words. A limit that is simply not there is normal and no word is lost about it:
the root group has none, and a kernel may be started without the memory controller.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tidegate.machine import procfile

_NO_LIMIT_BYTES = 1 << 60  # version 1 writes "none" as LONG_MAX rounded down to a page


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group that we are in."""

    path: Path
    version: int

    def limits(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Read the limits in bytes, by their files' names, and in words what had to be ignored.

        `memory.high` counts like `memory.max`: above it no process is killed, but every allocation
        waits while the kernel reclaims, so that all streams stall. It is a limit to stay below.
        Version 1's soft limit does neither and is left out.
        """
        names = ("memory.max", "memory.high") if self.version == 2 else ("memory.limit_in_bytes",)
        limits: dict[str, int] = {}
        ignored: list[str] = []
        for name in names:
            try:
                limit = _limit(procfile.read_whole(self.path / name))
            except (OSError, ValueError) as error:
                if not procfile.is_absent(error):
                    ignored.append(procfile.describe(self.path / name, error))
                continue
            if limit is not None:
                limits[name] = limit
        return limits, tuple(ignored)

    def used_bytes(self) -> int:
        """Read what counts towards the limit and cannot simply be dropped, in bytes.

        Raises UnreadableFigure.
        """
        meter = CgroupMeter(self)
        try:
            return meter.read()
        finally:
            meter.close()


class CgroupMeter:
    """Reads what a group uses, through descriptors that are kept. `close` gives them back."""

    def __init__(self, cgroup: Cgroup) -> None:
        name, key = (
            ("memory.current", b"inactive_file")
            if cgroup.version == 2
            else ("memory.usage_in_bytes", b"total_inactive_file")
        )
        self.cgroup = cgroup
        self._usage = procfile.KeptFile(cgroup.path / name)
        self._stat = procfile.KeptFile(cgroup.path / "memory.stat")
        self._cache_key = key

    def read(self) -> int:
        """Read the bytes in use, less the page cache that goes first. Raises UnreadableFigure."""
        used = self._usage.parse(procfile.number)
        cache = self._stat.parse(lambda text: procfile.value_of(text, self._cache_key))
        return max(0, used - (cache or 0))

    def close(self) -> None:
        """Close the descriptors."""
        self._usage.close()
        self._stat.close()


def find(root: Path = Path("/")) -> tuple[list[Cgroup], tuple[str, ...]]:
    """Find every control group from ours up to the topmost that we can see, version 2 before 1.

    And in words what could not be read. `root` is where /proc and /sys are.
    """
    texts: list[list[str]] = []
    for name in ("cgroup", "mountinfo"):
        path = root / "proc/self" / name
        try:
            texts.append(os.fsdecode(procfile.read_whole(path)).splitlines())
        except OSError as error:  # absent where it is not Linux, or there is no /proc
            return [], () if procfile.is_absent(error) else (procfile.describe(path, error),)
    ours, mounts = texts
    groups: list[Cgroup] = []
    for version, controller in ((2, ""), (1, "memory")):
        place = _place(ours, controller)
        if place is None or (mount := _mount(mounts, version, place)) is None:
            continue
        point, mounted = mount
        top = root / point.lstrip("/")
        groups += (Cgroup(path, version) for path in _upwards(top, _below(place, mounted)))
    return groups, ()


def _upwards(top: Path, below: PurePosixPath | None) -> Iterator[Path]:
    path = top / below if below is not None else top
    while path != top:
        yield path
        path = path.parent
    yield top


def _below(place: str, mounted: str) -> PurePosixPath | None:
    """Return where our group lies below the mount's; None when it does not, or that is unknown.

    Then the mount's own group is all that we see of our limits: a container may be shown only the
    top of its own groups, and ".." stands for what lies outside our namespace.
    """
    if ".." in place.split("/") or ".." in mounted.split("/"):
        return None
    try:
        return PurePosixPath(place).relative_to(mounted)
    except ValueError:
        return None


def _place(cgroups: list[str], controller: str) -> str | None:
    """Return our group in the hierarchy with that controller ("" is version 2)."""
    for line in cgroups:
        fields = line.split(":", 2)
        if len(fields) == 3 and controller in fields[1].split(",") and fields[2].startswith("/"):
            return fields[2]
    return None


def _mount(mountinfo: list[str], version: int, place: str) -> tuple[str, str] | None:
    """Return the hierarchy's mount point and the group mounted there, best one with our place."""
    found: list[tuple[str, str]] = []
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        fields, ends = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(ends) < 3:
            continue
        if (version == 2 and ends[0] == "cgroup2") or (
            version == 1 and ends[0] == "cgroup" and "memory" in ends[-1].split(",")
        ):
            found.append((_unescaped(fields[4]), _unescaped(fields[3])))
    within = [mount for mount in found if _below(place, mount[1]) is not None]
    return next(iter(within or found), None)


def _unescaped(field: str) -> str:
    """Read a path of the kernel's, which writes blanks and backslashes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _limit(text: bytes) -> int | None:
    """Read a limit in bytes, None for none. Raises ValueError for what no kernel writes."""
    if text.strip() == b"max":
        return None
    limit = procfile.number(text)
    if limit == 0:
        raise ValueError("a limit of nothing")
    return limit if limit < _NO_LIMIT_BYTES else None
