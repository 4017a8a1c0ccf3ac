"""Other processes, as far as they stand in our way: who holds a port, and who else is a tidegate.

Read for a person who asks what is wrong, never while serving. What another user's process does is
often not ours to see; then it is left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import dropwhile

from msgspec import Struct

OURS = "tidegate"


class Neighbour(Struct, frozen=True):
    """A process. `name` is what the system calls it, and for one of ours "tidegate"."""

    pid: int
    name: str


def is_ours(words: Sequence[str]) -> bool:
    """Whether these are the words of a tidegate: a watchdog, a worker, or a command."""
    names = [word.rpartition("/")[2] for word in words[:6]]
    return any(name == OURS or name.startswith(f"{OURS}.") for name in names)


def who_listens(port: int) -> Neighbour | None:
    """Who listens on this TCP port; None when nobody does, or it may not be seen."""
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
    """Whether these words are those of a tidegate that serves, and not of what started it."""
    names = [word.rpartition("/")[2] for word in words]
    if names and names[0].startswith("python"):
        names = list(dropwhile(lambda name: name.startswith("-"), names[1:]))
    return names[:2] == ["tidegate", "run"]


def watchdogs() -> list[Neighbour]:
    """Every tidegate of this computer that serves, but for ourselves."""
    import psutil  # noqa: PLC0415

    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        info = process.info
        if info["pid"] != os.getpid() and is_watchdog(info["cmdline"] or []):
            found.append(Neighbour(info["pid"], info["name"] or "tidegate"))
    return found
