"""A service manager for tests, on a socket of its own."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path


class Manager:
    """A service manager that writes down what it hears."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self.heard: list[str] = []

    def states(self) -> list[str]:
        """READY, RELOADING and STOPPING in the order in which they came."""
        with suppress(BlockingIOError):
            while True:
                self.heard.append(self._sock.recv(65536).decode())
        names = [text.partition("=")[0] for text in self.heard]
        return [name for name in names if name in ("READY", "RELOADING", "STOPPING")]

    def close(self) -> None:
        self._sock.close()
