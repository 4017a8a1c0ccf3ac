"""Tells one process from every other there ever was, so that a later one knows whether it lives.

A process id is given out again. Together with the time at which the process started, counted from
the computer's start, and the name of that start, it is not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tidegate.machine import procfile

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT_DIGITS = 16  # of its 32, all of them chance: it is written with each run
_STATE, _STARTED = 0, 19  # in `stat`, counted behind the name, which may hold anything


def own_lifetime() -> str:
    """Return what names this process; raises OSError where the system does not tell."""
    pid = os.getpid()
    if sys.platform == "linux":
        started = _started(pid)
        if started is None:
            raise ProcessLookupError(f"/proc shows no process {pid}")
        return f"{_boot_id()}/{pid}/{started}"
    import psutil  # noqa: PLC0415 - not needed on Linux, where it would cost 3 MiB

    return f"/{pid}/{psutil.Process(pid).create_time():.6f}"


def is_alive(lifetime: str) -> bool:
    """Tell whether the process that `own_lifetime` named so still runs.

    What cannot be found out counts as alive: a run that is still written must not be ended. What
    no `own_lifetime` has made names no process, and is not.
    """
    boot, _, rest = lifetime.partition("/")
    pid_text, _, started = rest.partition("/")
    if not (pid_text.isascii() and pid_text.isdigit() and len(pid_text) < 12 and started):
        return False
    pid = int(pid_text)
    try:
        if sys.platform == "linux":
            return boot == _boot_id() and _started(pid) == started
        import psutil  # noqa: PLC0415

        try:
            return f"{psutil.Process(pid).create_time():.6f}" == started
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True
    except OSError:
        return True


def _boot_id() -> str:
    """Name this start of the computer; "" where the kernel does not."""
    try:
        text = procfile.read_whole(_BOOT_ID).decode("ascii", "replace")
        return text.strip().replace("-", "")[:_BOOT_DIGITS]
    except FileNotFoundError:
        return ""


def _started(pid: int) -> str | None:
    """Read when it started; None when it is gone, or only yet to be reaped. Raises OSError."""
    try:
        words = procfile.read_whole(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if len(words) <= _STARTED or words[_STATE] in {b"Z", b"X"}:
        return None
    return words[_STARTED].decode("ascii", "replace")
