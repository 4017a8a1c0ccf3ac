"""Reads small text files of the kernel again and again, through a descriptor that stays open.

A kept descriptor saves the look-up of the path (a reading takes microseconds) and still works
when the process has no descriptor left. It goes stale when what it shows is gone, a control group
that was removed for example; then the path is opened anew, for the group may have come back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

MOST_BYTES = 16 * 1024  # `memory.stat` has 2 KiB; the kernel makes none longer than a page
_MOST_PIECES = 256  # of at least a line each: `mountinfo` of a host with many containers is long
_STALE = {errno.ENODEV, errno.ESTALE, errno.ENOENT}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EOPNOTSUPP}
_T = TypeVar("_T")


class UnreadableFigure(Exception):
    """A file of the kernel cannot be read, or says what no kernel writes. The text names it."""


class KeptFile:
    """A file of the kernel that stays open. `close` it when done; reading opens it again."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def __repr__(self) -> str:
        return f"<KeptFile {self.path} fd={self._fd}>"

    def read(self) -> bytes:
        """Read what the file says now. Raises OSError; the next reading starts afresh."""
        if self._fd is not None:
            try:
                return os.pread(self._fd, MOST_BYTES, 0)
            except OSError as error:
                self.close()
                if error.errno not in _STALE:
                    raise
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(self._fd, MOST_BYTES, 0)
        except OSError:
            self.close()
            raise

    def parse(self, read: Callable[[bytes], _T]) -> _T:
        """Parse the file by `read`. Raises UnreadableFigure, also for a ValueError of `read`."""
        try:
            return read(self.read())
        except (OSError, ValueError) as error:
            raise UnreadableFigure(describe(self.path, error)) from error

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # it is gone all the same
                os.close(fd)


def read_whole(path: Path) -> bytes:
    """Read all of a text file of the kernel, up to a megabyte. Raises OSError."""
    pieces: list[bytes] = []
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while len(pieces) < _MOST_PIECES and (piece := os.read(fd, MOST_BYTES)):
            pieces.append(piece)  # it gives out one page at a time
    finally:
        with suppress(OSError):
            os.close(fd)
    return b"".join(pieces)


def is_absent(error: Exception) -> bool:
    """Tell whether the error means that there is no such thing here, which is no fault."""
    return isinstance(error, OSError) and error.errno in _ABSENT


def number(text: bytes) -> int:
    """Read a whole number as the kernel writes it: digits and white space. Raises ValueError."""
    digits = text.strip()
    if not digits.isdigit():  # int() would take "1_0", "+1" and other things too
        raise ValueError(f"not a number: {digits[:40].decode('ascii', 'backslashreplace')!r}")
    return int(digits[:30])


def value_of(text: bytes, key: bytes) -> int | None:
    """Return the figure behind a key, in a file of lines "key figure" or "Key:  figure kB"."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == key:
            return number(words[1])
    return None


def describe(path: Path, error: Exception) -> str:
    """Say which file cannot be read, and why."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    return f"{path.name} of {path.parent}: {why or error}"
