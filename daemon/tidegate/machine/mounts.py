"""Tells whether a directory lies in memory: what is written there costs no disk, and counts as RAM.

Asked by the device number and not by the path, so that links, bind mounts and what is mounted over
something else are no matter. Where nothing can be read the answer is no.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tidegate.machine import procfile

_IN_MEMORY = {b"tmpfs", b"ramfs"}
_MOUNTINFO = Path("/proc/self/mountinfo")


def is_in_memory(directory: Path, mountinfo: Path = _MOUNTINFO) -> bool:
    """Tell whether `directory`, or the folder that it would be made in, is in memory.

    False on anything but Linux, and where that cannot be found out. Memory may be swapped to a
    disk all the same.
    """
    if sys.platform != "linux":
        return False
    try:
        device = _device(directory)
        text = procfile.read_whole(mountinfo)
    except (OSError, ValueError):
        return False
    return any(
        line[0] == device and line[1] in _IN_MEMORY for line in map(_mount, text.split(b"\n"))
    )


def _device(directory: Path) -> bytes:
    """Return "major:minor" of the file system; raises OSError or ValueError."""
    for each in (directory, *directory.parents):
        try:
            number = each.stat().st_dev
        except FileNotFoundError:
            continue
        return b"%d:%d" % (os.major(number), os.minor(number))
    raise FileNotFoundError(directory)


def _mount(line: bytes) -> tuple[bytes, bytes]:
    """Read device and kind from "36 35 0:42 / /run rw shared:5 - tmpfs tmpfs rw,size=…"."""
    left, _, right = line.partition(b" - ")
    fields, kind = left.split(b" "), right.partition(b" ")[0]
    return (fields[2], kind) if len(fields) > 5 else (b"", b"")
