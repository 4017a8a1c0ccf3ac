"""Reads the small files that the owner or a service manager puts in place.

Such a file may be anything: a directory, a named pipe that would be waited for without end, the
wrong gigabyte. One careful way of reading serves the config, the tokens and the upstreams' keys.
What tidegate writes itself (pid file, decisions, logs) is opened by `open_own`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class UnreadableFile(Exception):
    """The file cannot be read or must not be trusted. The text names it and says why.

    `command` puts it right, where one does; the text ends with it.
    """

    def __init__(self, text: str, command: str | None = None) -> None:
        super().__init__(text if command is None else f"{text}; run: {command}")
        self.command = command


def read(path: Path, *, max_bytes: int, private: bool) -> bytes:
    """Read the content of a regular file of at most `max_bytes`.

    `private` refuses a file that another user than its owner may touch, or that is neither ours nor
    read by root. Raises FileNotFoundError when there is none, else UnreadableFile.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from error
    except ValueError as error:  # a zero byte is in its name
        raise UnreadableFile(f"{str(path)!r}: {error}") from error
    try:
        # Asked of the open file, for the path may lead elsewhere a moment later.
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableFile(f"{path}: not a regular file")
        if private:
            _check_private(path, found)
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(fd)
    if len(content) > max_bytes:
        raise UnreadableFile(f"{path}: larger than {max_bytes} bytes")
    return content


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file of ours to write it or to read it back; its descriptor. Raises OSError.

    No link is followed that another user may have put in its place, to have us overwrite or show
    what it leads to; and nothing but a regular file is taken, for a pipe could be waited for
    without end.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{path} is a symbolic link; remove it") from error
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, f"{path} is not a regular file; remove it")


def check_own_directory(path: Path) -> None:
    """Raise OSError when `path` is a link or anything else but a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTDIR, f"{path} is not a directory; remove it")
    finally:
        os.close(fd)


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_mode & 0o077:
        raise UnreadableFile(f"{path}: others can read or write it", f"chmod 600 '{path}'")
    if os.geteuid() not in (found.st_uid, 0):
        raise UnreadableFile(f"{path}: belongs to another user")
