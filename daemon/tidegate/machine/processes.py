"""Finds other processes that stand in our way: the one that holds a port, and other tidegates.

For the doctor, never while serving. What another user's process does is often not ours to see;
then it is left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import dropwhile

from msgspec import Struct

OURS = "tidegate"


class Neighbour(Struct, frozen=True):
    """Another process. `name` is what the system calls it, and for one of ours "tidegate"."""

    pid: int
    name: str


def is_ours(words: Sequence[str]) -> bool:
    """Tell whether these are the words of a tidegate: a watchdog, a worker, or a command."""
    names = [word.rpartition("/")[2] for word in words[:6]]
    return any(name == OURS or name.startswith(f"{OURS}.") for name in names)


def find_listener(port: int) -> Neighbour | None:
    """Return the process that listens on this TCP port; None without one that may be seen."""
    import psutil  # noqa: PLC0415

    try:
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
                process = psutil.Process(each.pid)
                return Neighbour(each.pid, OURS if is_ours(process.cmdline()) else process.name())
    except (psutil.Error, OSError, RuntimeError):
        return None
    return None


def is_watchdog(words: Sequence[str]) -> bool:
    """Tell whether these are the words of a tidegate that serves, and not of what started it."""
    names = [word.rpartition("/")[2] for word in words]
    if names and names[0].startswith("python"):
        names = list(dropwhile(lambda name: name.startswith("-"), names[1:]))
    return names[:2] == ["tidegate", "run"]


def watchdogs() -> list[Neighbour]:
    """Return every tidegate of this computer that serves, but for ourselves."""
    import psutil  # noqa: PLC0415

    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        info = process.info
        if info["pid"] != os.getpid() and is_watchdog(info["cmdline"] or []):
            found.append(Neighbour(info["pid"], info["name"] or "tidegate"))
    return found
