"""The listening sockets: the watchdog owns them, so that no worker's end ever closes a port.

An address is what the setting `listen` says: "127.0.0.1:8433", "[::1]:8433" or "unix:/path".
Names other than localhost are refused, for looking one up could take as long as it likes.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tidegate.core import decoding
from tidegate.managers.systemd.notify import STORED_PREFIX

BACKLOG = 1024  # clients that connect while a worker is being replaced wait here
FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START
MOST_PASSED = 4096  # systemd's own bound on what it stores for a unit is 128 by default
_WHAT_TO_DO = {
    errno.EADDRINUSE: "another program listens there; stop it or change the setting `listen`",
    errno.EADDRNOTAVAIL: "this computer does not have that address (yet)",
    errno.EACCES: "this user may not listen there; ports below 1024 need a privilege",
    errno.ENOENT: "its directory does not exist",
}


class ListenError(Exception):
    """An address cannot be listened on. The text names it and what to do."""


class BadAddress(ListenError):
    """The text is not an address at all; trying again will not help."""


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A listening socket, the setting it came from, and where it really is."""

    sock: socket.socket
    configured: str
    address: str  # with port 0 resolved
    stored: str | None = None  # its name, when the service manager only kept it for us
    name: str = ""  # what the service manager calls one that it opened

    def close(self, *, keep_file: bool = False) -> None:
        """Stop listening; a Unix socket's file goes too. Once only: the path may be another's.

        With `keep_file` it stays, for another process holds the socket as well.
        """
        if self.sock.fileno() < 0:
            return
        self.sock.close()
        if self.address.startswith("unix:") and self.configured != ADOPTED and not keep_file:
            with suppress(OSError):  # `bind` gets past one that stays
                Path(self.address.removeprefix("unix:")).unlink()

    def is_there(self) -> bool:
        """Tell whether clients can still find it: a Unix socket may have lost its file."""
        path = self.address.removeprefix("unix:")
        return path == self.address or Path(path).is_socket()

    def configured_as(self, address: str) -> BoundSocket:
        """Return the same socket, under what the setting calls it."""
        return replace(self, configured=address, stored=None)


ADOPTED = "(from the service manager)"


def parse(address: str) -> tuple[socket.AddressFamily, str, int]:
    """Read an address into family, host or path, and port. Raises BadAddress."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/"):
            raise BadAddress(f'listen "{address}": the path must be absolute, "unix:/path"')
        return socket.AF_UNIX, path, 0
    host, colon, port = address.rpartition(":")
    number = decoding.count(port, 65535)
    if not colon or not host or number is None:
        raise BadAddress(f'listen "{address}": write it as "127.0.0.1:8433" or "[::1]:8433"')
    if host.startswith("[") and host.endswith("]"):
        return socket.AF_INET6, _numeric(host[1:-1], socket.AF_INET6, address), number
    if host == "localhost":
        host = "127.0.0.1"
    return socket.AF_INET, _numeric(host, socket.AF_INET, address), number


def bind(address: str, beside: Iterable[BoundSocket] = ()) -> BoundSocket:
    """Listen at an address. Raises ListenError.

    Sockets of ours `beside` it may have the same port, as 127.0.0.1 has when the setting becomes
    0.0.0.0. The new one is then only bound: the worker that accepts from it listens, so that no
    client connects to it before that worker is there.
    """
    family, host, port = parse(address)
    neighbours = [each.sock for each in beside if _is_neighbour(each, family, port)]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _bind_unix(sock, host)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # So that "[::]:8433" and "0.0.0.0:8433" can stand side by side.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if neighbours:
                _share_port([sock, *neighbours])
            sock.bind(_find_numeric(host, port, family))
        if not neighbours:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        hint = _WHAT_TO_DO.get(error.errno or 0, error.strerror or str(error))
        raise ListenError(f"cannot listen on {address}: {hint}") from error
    return BoundSocket(sock, address, describe(sock))


def covers(wide: BoundSocket, narrow: BoundSocket) -> bool:
    """Tell whether `wide` listens on all addresses of the port of which `narrow` has one."""
    host, _, port = wide.address.rpartition(":")
    narrow_host, _, narrow_port = narrow.address.rpartition(":")
    return (
        wide.sock.family == narrow.sock.family
        and port == narrow_port
        and host in ("0.0.0.0", "[::]")  # noqa: S104  (compared, not bound)
        and narrow_host != host
    )


def _is_neighbour(bound: BoundSocket, family: socket.AddressFamily, port: int) -> bool:
    """Tell whether that socket has this port, at whatever address."""
    if family == socket.AF_UNIX or bound.sock.family != family or bound.sock.fileno() < 0:
        return False
    return bool(bound.sock.getsockname()[1] == port)


def _share_port(socks: Iterable[socket.socket]) -> None:
    """Let these sockets share one port. Other programs' sockets are still refused.

    Linux asks for it, of both and for as long as they last, where an address and the wildcard
    meet and one of them listens; elsewhere SO_REUSEADDR is enough.
    """
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def canonical(address: str) -> str:
    """Write an address in the one spelling that all its spellings have. Raises BadAddress."""
    family, host, port = parse(address)
    return f"unix:{host}" if family == socket.AF_UNIX else f"{host}:{port}"


def describe(sock: socket.socket) -> str:
    """Return where a socket listens, written as in the setting."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


def adopt_passed(environ: MutableMapping[str, str], pid: int) -> list[BoundSocket]:
    """Adopt the sockets that systemd passed to this very process; the variables are used up.

    See sd_listen_fds(3). Raises ListenError for a descriptor that is not a listening socket.
    """
    meant_for = environ.pop("LISTEN_PID", "")
    count = decoding.count(environ.pop("LISTEN_FDS", ""), MOST_PASSED) or 0
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if meant_for != str(pid):
        return []
    fds = range(FIRST_PASSED_FD, FIRST_PASSED_FD + count)
    passed = [(fd, names[n] if n < len(names) else "") for n, fd in enumerate(fds)]
    return [
        replace(adopt(fd, name), stored=name) if name.startswith(STORED_PREFIX) else adopt(fd, name)
        for fd, name in passed
    ]


def adopt(fd: int, name: str = "") -> BoundSocket:
    """Take over a listening stream socket. Raises ListenError."""
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"descriptor {fd} ({name or 'unnamed'}): {error.strerror}") from error
    if sock.type != socket.SOCK_STREAM or not listens:
        sock.detach()
        raise ListenError(f"descriptor {fd} ({name or 'unnamed'}) is not a listening stream socket")
    sock.setblocking(False)
    return BoundSocket(sock, ADOPTED, describe(sock), name=name)


def _numeric(host: str, family: socket.AddressFamily, address: str) -> str:
    try:
        _find_numeric(host, 0, family)
    except (OSError, UnicodeError):
        raise BadAddress(
            f'listen "{address}": "{host}" is not an IP address; names are not looked up'
        ) from None
    return host


def _find_numeric(host: str, port: int, family: socket.AddressFamily) -> Any:
    """Return what to bind to. Raises OSError or UnicodeError where `host` is no IP address.

    As bytes: of a str the socket module makes a domain name first, with tables of all of Unicode.
    """
    return socket.getaddrinfo(host.encode(), port, family, flags=socket.AI_NUMERICHOST)[0][4]


def _bind_unix(sock: socket.socket, path: str) -> None:
    """Bind, replacing a socket file that a dead process left behind."""
    former_umask = os.umask(0o117)  # owner and group may connect
    try:
        if Path(path).is_socket() and not _answers(path):
            Path(path).unlink(missing_ok=True)
        sock.bind(path)
    finally:
        os.umask(former_umask)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # its backlog is full: another process listens
        return True
