"""Notifies systemd (ready, status, alive, reloading, stopping) and has it store our sockets.

A thin class over sdnotify's connection. The package's own `notify` waits once systemd has left
eleven messages unread and loses text beyond Latin-1; so the socket is made non-blocking and is
written to here. Without NOTIFY_SOCKET every call does nothing. A message that must arrive
(READY, RELOADING, STOPPING) and found no room is sent again at the next `flush`.

A socket that we bound goes into systemd's descriptor store under a name. It comes back with the
next start, be that after a crash or a `systemctl restart`, so its port never closes between them.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Mapping, MutableMapping

from tidegate.core import decoding
from tidegate.core.text import visible

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
STORED_PREFIX = "listen-"
_MAX_NAME = 255  # FDNAME, see sd_notify(3)
_MOST_USEC = 2**53  # centuries
_MAX_KEPT = 8  # READY, RELOADING and STOPPING, each more than once, never reach it


def is_service(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether systemd started this very process; its children inherit the variable."""
    return environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


class Notifier:
    """Sends messages to the service manager; without one every call does nothing."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Connect to NOTIFY_SOCKET, if there is one; the variables are used up."""
        self._sock = _connect(environ)
        self._kept: deque[str] = deque(maxlen=_MAX_KEPT)
        self._status = ""
        self.ping_every_s = _ping_every_s(environ) if self._sock else None
        self.ping_at_s = None if self.ping_every_s is None else 0.0  # monotonic; None: never
        self._environment = {name: environ.pop(name) for name in _VARIABLES if name in environ}

    def environment(self) -> dict[str, str]:
        """Return the variables as they were, for the program that this process becomes."""
        return dict(self._environment)

    @property
    def is_connected(self) -> bool:
        """Tell whether there is a manager to speak to."""
        return self._sock is not None

    @property
    def is_watched(self) -> bool:
        """Tell whether the manager would notice if we hung; True without a manager."""
        return self._sock is None or self.ping_every_s is not None

    def ready(self) -> None:
        """Tell that the service is ready; also ends a reload."""
        self._insist("READY=1")

    def reloading(self, monotonic_s: float) -> None:
        """Tell that a reload has begun. The time has to be in the same message."""
        self._insist(f"RELOADING=1\nMONOTONIC_USEC={int(monotonic_s * 1e6)}")

    def stopping(self) -> None:
        """Tell that the service ends. It cannot be taken back, so a recycle never sends it."""
        self._insist("STOPPING=1")

    def alive(self) -> None:
        """Put off systemd's watchdog by another interval."""
        self._send("WATCHDOG=1")

    def keep_alive(self, now_s: float, *, is_well: bool) -> None:
        """Put off systemd's watchdog once an interval, if all is well."""
        if self.ping_at_s is None or self.ping_every_s is None or now_s < self.ping_at_s:
            return
        self.ping_at_s = now_s + self.ping_every_s
        if is_well:
            self.alive()

    def extend_timeout(self, by_s: float) -> None:
        """Ask for that much more time for what is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(by_s * 1e6)}")

    def store(self, name: str, sock: socket.socket) -> None:
        """Have systemd keep a listening socket, and give it back under this name.

        Storing the same one again does nothing, so no record of it is needed.
        """
        # FDPOLL=0: it is not to be dropped for what happens on it.
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", sock.fileno())

    def drop(self, name: str) -> None:
        """Have systemd close what it stores under that name."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def trigger(self) -> None:
        """Have systemd act as if its watchdog had run out: we cannot be repaired from inside."""
        self._send("WATCHDOG=trigger")

    def barrier(self, limit_s: float) -> None:
        """Wait until systemd has read everything, for at most `limit_s`.

        What comes from a process that is gone may not be believed, so the last words need it.
        """
        if self._sock is None:
            return
        reading, writing = os.pipe()
        try:
            sent = self._send("BARRIER=1", writing)
            os.close(writing)
            writing = -1
            if sent:
                poller = select.poll()
                poller.register(reading, 0)  # its hang-up is what we wait for
                poller.poll(limit_s * 1000)
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)

    def status(self, text: str) -> None:
        """Set the line in `systemctl status`; sent when it has changed."""
        line = visible(text.replace("\n", " "))
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def flush(self) -> None:
        """Send again what found no room."""
        while self._kept and self._send(self._kept[0]):
            self._kept.popleft()

    def close(self) -> None:
        """Close the connection."""
        if self._sock is not None:
            self._sock.close()

    def _insist(self, text: str) -> None:
        if self._sock is not None:
            self._kept.append(text)
            self.flush()

    def _send(self, text: str, *fds: int) -> bool:
        if self._sock is None:
            return True
        try:
            message = [text.encode("utf-8", "replace")]
            if fds:
                socket.send_fds(self._sock, message, list(fds))
            else:
                self._sock.send(message[0])
        except OSError:  # no room, or systemd restarts itself: both pass
            return False
        return True


def stored_name(address: str) -> str:
    """Return the name in systemd's store of a socket for this address of the setting `listen`.

    A colon would end the name in LISTEN_FDNAMES; and what systemd does not take for a name, it
    would replace by one that we do not know again, see sd_notify(3).
    """
    name = f"{STORED_PREFIX}{address.replace(':', '=')}"
    if len(name) <= _MAX_NAME and name.isascii() and name.isprintable():
        return name
    from hashlib import sha256  # noqa: PLC0415  (a megabyte, for names that are very rare)

    return STORED_PREFIX + sha256(os.fsencode(address)).hexdigest()


def _connect(environ: MutableMapping[str, str]) -> socket.socket | None:
    if not environ.get("NOTIFY_SOCKET"):
        return None
    import sdnotify  # noqa: PLC0415  (only where there is a manager to speak to)

    sock: socket.socket | None = sdnotify.SystemdNotifier().socket
    if sock is not None:
        sock.setblocking(False)
    return sock


def _ping_every_s(environ: MutableMapping[str, str]) -> float | None:
    """Return half of systemd's limit, as sd_watchdog_enabled(3) advises; None if unwatched."""
    meant_for = environ.get("WATCHDOG_PID", str(os.getpid()))
    usec = decoding.count(environ.get("WATCHDOG_USEC", ""), _MOST_USEC)
    if meant_for != str(os.getpid()) or not usec:
        return None
    return usec / 1e6 / 2
