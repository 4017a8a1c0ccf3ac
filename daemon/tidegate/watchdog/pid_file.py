"""The pid file: one watchdog for one runtime directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tidegate.machine import private_file

PID_FILE_NAME = "tidegate.pid"


class AlreadyRunning(Exception):
    """Another watchdog holds the pid file."""


@dataclass(slots=True)
class PidFile:
    """A locked file that names us. The lock, not the file's being there, is what counts."""

    path: Path
    fd: int = -1  # while it is held; one that an upgrade left is held already

    def hold(self) -> None:
        """Lock it for life. Raises AlreadyRunning, which names the holder, or OSError."""
        if self.fd >= 0:
            return
        fd = self._lock()
        while not self._is_ours(fd):  # its former holder removed it in this very moment
            os.close(fd)
            fd = self._lock()
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self.fd = fd

    @property
    def is_in_place(self) -> bool:
        """Tell whether others find it there."""
        return self._is_ours(self.fd)

    def renew(self, path: Path) -> None:
        """Hold it there from now on. Raises AlreadyRunning or OSError; then all is as it was."""
        if path == self.path and self.is_in_place:
            return
        new = PidFile(path)
        new.hold()
        self.release()
        self.path, self.fd = new.path, new.fd

    def release(self) -> None:
        """Remove it and let go, in that order: what stands at the path is always locked."""
        if self._is_ours(self.fd):
            with suppress(OSError):  # the lock is what counts
                self.path.unlink()
        os.close(self.fd)

    def _lock(self) -> int:
        fd = private_file.open_own(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise AlreadyRunning(
                f"tidegate is already running with process id {holder} ({self.path}); "
                "stop it first (`tidegate stop`) or give this one its own --runtime-dir"
            ) from None
        return fd

    def _is_ours(self, fd: int) -> bool:
        """Tell whether what was locked is still what others find at the path."""
        try:
            return os.path.samestat(os.fstat(fd), self.path.lstat())
        except OSError:  # it is not there, or its directory is not
            return False
