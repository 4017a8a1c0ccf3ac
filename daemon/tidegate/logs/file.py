"""The targets of log lines: a file that is kept small, or a stream that is not ours.

Only the watchdog rotates; the others see that the file has another inode and open it again. A
writer that finds the file full waits for that, so that a flood between two rotations cannot make
it larger: three files, each of at most `ROTATE_BYTES` and a tenth, and a batch of each writer.

All of this may block, on a disk as well as on a pipe: it is called by `logs.writer`'s thread.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tidegate.core.settings import MIB
from tidegate.machine.private_file import open_own

ROTATE_BYTES = 10 * MIB  # three of them: a month of a busy home, and no disk fills up
ROTATIONS = 2  # beside the file itself
_STDOUT = 1
_POLL_MS = 1000


def family(file: Path) -> list[Path]:
    """Return the file and its rotated ones, the newest first, whether or not they are there."""
    return [file, *(file.with_name(f"{file.name}.{n + 1}") for n in range(ROTATIONS))]


class LogTarget(Protocol):
    """What lines are written to."""

    batch_bytes: int  # so much may be written at once

    def maintain(self) -> str | None:
        """Rotate or reopen it where that is due; a line about what went wrong. Raises OSError."""

    def has_room(self) -> bool:
        """Tell whether lines may be written now."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Write as many whole lines as possible, and return their number. Raises OSError."""


class LogStream:
    """Standard error, whatever it is: a terminal, a pipe, the journal."""

    batch_bytes = 0  # a line at a time, below PIPE_BUF: processes that share it tear none

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def maintain(self) -> str | None:
        """Do nothing: a stream is neither rotated nor reopened."""
        return None

    def has_room(self) -> bool:
        """Wait a little for a reader that is slow, at most a second."""
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        return bool(poller.poll(_POLL_MS))

    def write(self, lines: Sequence[bytes]) -> int:
        """Write one line. Raises OSError."""
        try:
            os.write(self._fd, lines[0])
        except BlockingIOError:  # another process made the stream so, and it filled up again
            return 0
        return 1


class LogFile:
    """A file of lines. Its descriptor takes the place of `fd`, which tracebacks go to as well."""

    batch_bytes = 64 * 1024

    def __init__(
        self, path: Path, *, rotates: bool, fd: int = 2, rotate_bytes: int = ROTATE_BYTES
    ) -> None:
        """Open the file. Raises OSError when it cannot be opened."""
        self._path = Path(os.path.realpath(path))  # a link is not what is to be renamed
        refuse_strange_link(path)
        self._rotates = rotates
        self._rotate_bytes = rotate_bytes
        self._full_bytes = rotate_bytes + rotate_bytes // 10
        self._fd = fd
        self._is_torn = False  # a full disk took half a line
        self._open()

    def __repr__(self) -> str:
        return f"<LogFile {self._path}>"

    def maintain(self) -> str | None:
        """Rotate it when it is ours to rotate; open it again when it has been. Raises OSError."""
        said = None
        if not self._is_in_place():
            self._open()
        elif self._rotates and os.fstat(self._fd).st_size >= self._rotate_bytes:
            said = self._rotate()
            self._open()
        return said

    def has_room(self) -> bool:
        """Tell whether the file may grow: a full one waits for its rotation."""
        return os.fstat(self._fd).st_size < self._full_bytes

    def write(self, lines: Sequence[bytes]) -> int:
        """Write all lines, or as many as a full disk takes. Raises OSError."""
        data = b"".join(lines)
        if self._is_torn:
            data = b"\n" + data
        written = os.write(self._fd, data) - self._is_torn
        if written == len(data) - self._is_torn:
            self._is_torn = False
            return len(lines)
        whole = 0
        while written >= len(lines[whole]):
            written -= len(lines[whole])
            whole += 1
        self._is_torn = written != 0
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except FileNotFoundError:
            return False

    def _rotate(self) -> str | None:
        """Rename file.1 to file.2 and file to file.1; the oldest is overwritten.

        In a directory that is not ours to write in the only way to keep it small is to begin
        again, and to say so.
        """
        older, *newer = reversed(family(self._path))
        try:
            for path in newer:
                if path.exists():
                    path.replace(older)
                older = path
        except OSError as error:
            dropped = os.fstat(self._fd).st_size
            os.ftruncate(self._fd, 0)
            return f"the log cannot be rotated ({error}); {dropped} bytes of it were dropped"
        return None

    def _open(self) -> None:
        fd = open_own(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            shared = _is_same(_STDOUT, self._fd)
            os.dup2(fd, self._fd)  # inheritable, as a worker's stderr has to be
            if shared:  # `start` sends both here; the old file must not be kept alive by the other
                os.dup2(fd, _STDOUT)
        finally:
            os.close(fd)


def refuse_strange_link(path: Path) -> None:
    """Raise OSError when `path` is a link that neither we nor root made.

    Their own link keeps the log on another disk; that of another user may lead anywhere.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), 0):
        raise OSError(errno.ELOOP, f"{path} is a symbolic link of another user; remove it")


def _is_same(one: int, other: int) -> bool:
    """Tell whether both descriptors are of one regular file."""
    try:
        found = os.fstat(one), os.fstat(other)
    except OSError:  # closed
        return False
    return stat.S_ISREG(found[0].st_mode) and os.path.samestat(*found)
