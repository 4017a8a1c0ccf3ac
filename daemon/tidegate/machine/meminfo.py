"""Reads the machine's own memory: how much there is, and how much is left.

On Linux both are read from /proc/meminfo, what is left through a kept descriptor. psutil reads
elsewhere, and is not even loaded on Linux: it would be a quarter of the watchdog.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tidegate.machine import procfile

_MEMINFO = Path("/proc/meminfo")


class AvailableMeter:
    """Reads what new programs could still take. `close` it when done."""

    def __init__(self, meminfo: Path = _MEMINFO) -> None:
        self._file = procfile.KeptFile(meminfo)

    def read(self) -> int:
        """Read the available bytes. Raises UnreadableFigure."""
        if sys.platform == "linux":
            return self._file.parse(lambda text: _field(text, b"MemAvailable:"))
        import psutil  # noqa: PLC0415

        try:
            return int(psutil.virtual_memory().available)
        except (OSError, RuntimeError, psutil.Error) as error:
            raise procfile.UnreadableFigure(f"available memory: {error}") from error

    def close(self) -> None:
        """Close the descriptor."""
        self._file.close()


def total_bytes(meminfo: Path = _MEMINFO) -> int:
    """Read the machine's memory in bytes. Raises UnreadableFigure."""
    if sys.platform == "linux":
        file = procfile.KeptFile(meminfo)
        try:
            return file.parse(lambda text: _field(text, b"MemTotal:"))
        finally:
            file.close()
    import psutil  # noqa: PLC0415

    try:
        return int(psutil.virtual_memory().total)
    except (OSError, RuntimeError, psutil.Error) as error:
        raise procfile.UnreadableFigure(f"total memory: {error}") from error


def _field(text: bytes, key: bytes) -> int:
    """Read a field of /proc/meminfo, in bytes. Raises ValueError."""
    kib = procfile.value_of(text, key)
    if kib is None:
        raise ValueError(f"no {key.decode()}")
    return kib * 1024
