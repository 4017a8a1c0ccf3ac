"""What systemd hears from us: ready, status, alive, reloading, stopping.

A thin class over sdnotify's connection. The package's own `notify` waits once systemd has left
eleven messages unread and loses text beyond Latin-1; so the socket is made non-blocking and is
written to here. Without NOTIFY_SOCKET every call does nothing. A message that must arrive
(READY, RELOADING, STOPPING) and found no room is sent again at the next `flush`.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import MutableMapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_MAX_KEPT = 8  # READY, RELOADING and STOPPING, each more than once, never reach it


class Notifier:
    """Speaks to the service manager, or to nobody."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Connect to NOTIFY_SOCKET, if there is one; the variables are used up."""
        self._sock = _connect(environ)
        self._kept: deque[str] = deque(maxlen=_MAX_KEPT)
        self._status = ""
        self.ping_every_s = _ping_every_s(environ) if self._sock else None
        self.ping_at_s = None if self.ping_every_s is None else 0.0  # monotonic; None: never
        self._environment = {name: environ.pop(name) for name in _VARIABLES if name in environ}

    def environment(self) -> dict[str, str]:
        """The variables as they were, for the program that this process becomes."""
        return dict(self._environment)

    def ready(self) -> None:
        """It serves; also ends a reload."""
        self._insist("READY=1")

    def reloading(self, monotonic_s: float) -> None:
        """A reload has begun. The time has to be in the same message."""
        self._insist(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic_s * 1e6)}")

    def stopping(self) -> None:
        """The service ends. There is no way back from this, so it is never sent for a recycle."""
        self._insist("STOPPING=1")

    def alive(self) -> None:
        """Put off systemd's watchdog by another interval."""
        self._send("WATCHDOG=1")

    def keep_alive(self, now_s: float, *, is_well: bool) -> None:
        """Once an interval: put it off if all is well."""
        if self.ping_at_s is None or self.ping_every_s is None or now_s < self.ping_at_s:
            return
        self.ping_at_s = now_s + self.ping_every_s
        if is_well:
            self.alive()

    def extend_timeout(self, by_s: float) -> None:
        """Ask for that much more time for what is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(by_s * 1e6)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it has changed."""
        line = text.replace("\n", " ")
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def flush(self) -> None:
        """Try again what found no room."""
        while self._kept and self._send(self._kept[0]):
            self._kept.popleft()

    def close(self) -> None:
        """Give the descriptor back."""
        if self._sock is not None:
            self._sock.close()

    def _insist(self, text: str) -> None:
        if self._sock is not None:
            self._kept.append(text)
            self.flush()

    def _send(self, text: str) -> bool:
        if self._sock is None:
            return True
        try:
            self._sock.send(text.encode("utf-8", "replace"))
        except OSError:  # no room, or systemd restarts itself: both pass
            return False
        return True


def _connect(environ: MutableMapping[str, str]) -> socket.socket | None:
    if not environ.get("NOTIFY_SOCKET"):
        return None
    import sdnotify  # noqa: PLC0415  (only where there is a manager to speak to)

    sock: socket.socket | None = sdnotify.SystemdNotifier().socket
    if sock is not None:
        sock.setblocking(False)
    return sock


def _ping_every_s(environ: MutableMapping[str, str]) -> float | None:
    """Half of systemd's limit, as sd_watchdog_enabled(3) advises; None when it watches not us."""
    meant_for = environ.get("WATCHDOG_PID", str(os.getpid()))
    usec = environ.get("WATCHDOG_USEC", "")
    if meant_for != str(os.getpid()) or not usec.isdigit() or int(usec) == 0:
        return None
    return int(usec) / 1e6 / 2
