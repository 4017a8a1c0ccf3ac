"""What the kernel shows of processes, control groups and pressure: its own small text files.

They are taken as they are, for the owner to see what went wrong. Only files whose content is
figures and names of states are read: never `cmdline`, `environ`, memory or maps. What is not
there (a Mac, a container without pressure figures) is left out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MAX_FILE_BYTES = 8 * 1024  # `memory.stat` has 2 KiB
# These take no lock of the process that they tell of, so that they can be asked of one that
# hangs in the kernel. `smaps_rollup` does, and costs 11 to 74 ms: `memory_map` asks it apart.
PROCESS_FILES = ("status", "wchan", "limits", "oom_score", "oom_score_adj", "cgroup")
PRESSURE_FILES = ("memory", "cpu", "io")
CGROUP_FILES = (
    *("memory.current", "memory.max", "memory.high", "memory.peak", "memory.swap.current"),
    *("memory.events", "memory.pressure", "memory.stat", "cpu.pressure", "pids.max"),
    *("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.failcnt"),  # version 1
)
_ROOT = Path("/")

Text = str | list[str]  # one line, or several


def of_process(pid: int, root: Path = _ROOT) -> dict[str, Text]:
    """Read how a process is doing; empty when it is gone."""
    return _read_all(root / f"proc/{pid}", PROCESS_FILES)


def memory_map(pid: int) -> dict[str, Text]:
    """Read its memory by kind, summed up. May wait for a process that hangs in the kernel."""
    return _read_all(Path(f"/proc/{pid}"), ("smaps_rollup",))


def pressure(root: Path = _ROOT) -> dict[str, Text]:
    """Read how long the whole machine waited for memory, processors and disks."""
    return _read_all(root / "proc/pressure", PRESSURE_FILES)


def control_group(root: Path = _ROOT) -> dict[str, Text]:
    """Read the limits and figures of our control group, under its path."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, Text] = {}
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if ".." in path:
            path = "/"  # above our namespace: its root is ours
        if number == "0" and path:
            place = root / "sys/fs/cgroup" / path.lstrip("/")
        elif "memory" in controllers.split(","):
            place = root / "sys/fs/cgroup/memory" / path.lstrip("/")
        else:
            continue
        if texts := _read_all(place, CGROUP_FILES):
            found |= {"path": str(place), **texts}
    return found


def _read_all(directory: Path, names: tuple[str, ...]) -> dict[str, Text]:
    found: dict[str, Text] = {}
    for name in names:
        with suppress(OSError, ValueError):  # a path with a NUL is not a path
            found[name] = _read(directory / name)
    return found


def _read(path: Path) -> Text:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, MAX_FILE_BYTES).decode("utf-8", "replace")
    finally:
        os.close(fd)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return lines if len(lines) > 1 else "".join(lines)
