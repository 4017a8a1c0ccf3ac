"""control.sock: the command line asks one line, the watchdog answers one line.

The socket is for its owner alone (0600), which is all the authority there is. Clients are few,
their line is short and has a deadline, and none of them can make the watchdog wait. A line that is
not a request is answered too: the client is told what is wrong with it before the end.
"""

from __future__ import annotations

import os
import selectors
import socket
import stat
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from tidegate.core.decoding import Undecodable
from tidegate.core.protocol.control import (
    ControlReply,
    ControlRequest,
    decode_request,
)
from tidegate.core.protocol.lines import MAX_LINE_BYTES, ChannelError, LineSplitter
from tidegate.managers.sockets import ListenError
from tidegate.watchdog.control.client import RETRY_S
from tidegate.watchdog.faults import Handler

MAX_CLIENTS = 32  # a person and a few scripts; more are told to come back
REQUEST_LIMIT_S = 5.0  # for the line to arrive, and for the answer to be read
MAX_REQUEST_BYTES = 4096
MAX_UNSENT_BYTES = MAX_LINE_BYTES  # of all answers that wait to be read: one as long as any may be
MAX_IGNORED_BYTES = MAX_LINE_BYTES  # behind the first line, or of one that is too long
_READ_BYTES = 64 * 1024
OUR_FAULT = "a fault of tidegate's own; its log has the stack"


class ControlClient:
    """One connection: the client sends a request, waits for the answer, and goes."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.deadline_s: float | None = deadline_s  # None while the watchdog owes the answer
        self.splitter = LineSplitter(MAX_REQUEST_BYTES)
        self.unsent = b""
        self.is_refused = False  # what it sent was not a request; the rest of that is read away
        self.ignored_bytes = 0

    @property
    def is_asking(self) -> bool:
        """Tell whether its line is still to come."""
        return self.deadline_s is not None and not self.unsent and not self.is_refused


class ControlServer:
    """The watchdog's side. `on_request(client, request)` answers now or later by `reply`."""

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        on_request: Callable[[ControlClient, ControlRequest], None],
        clock: Callable[[], float],
        kept_fd: int | None = None,
    ) -> None:
        """Listen, or go on with the socket that an upgrade left.

        The caller holds the pid file's lock, so whatever lies there is dead. Raises ListenError.
        """
        self._path = path
        self._selector = selector
        self._on_request = on_request
        self._clock = clock
        self._clients: set[ControlClient] = set()
        self._begin(_listen(path) if kept_fd is None else socket.socket(fileno=kept_fd))

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._file = _identity(self._path)
        handler = Handler("a new client of control.sock", self._accept, self.renew)
        self._selector.register(sock, selectors.EVENT_READ, handler)

    @property
    def is_there(self) -> bool:
        """Tell whether the command line can still find it."""
        return self._file is not None and _identity(self._path) == self._file

    def renew(self, path: Path | None = None) -> None:
        """Listen anew, there or at `path`. Clients stay. Raises ListenError; then all is as it was.

        As at the start, what lies there must be known to be dead.
        """
        sock = _listen(path or self._path)
        with suppress(KeyError):
            self._selector.unregister(self._sock)
        self._sock.close()
        self._path = path or self._path
        self._begin(sock)

    def __repr__(self) -> str:
        return f"<ControlServer {self._path} clients={len(self._clients)}>"

    def fileno(self) -> int:
        """Return the listening socket's descriptor, for an upgrade."""
        return self._sock.fileno()

    def is_quiet(self, but: Collection[ControlClient]) -> bool:
        """Tell whether no client is asking or being answered, apart from `but`."""
        return all(client in but for client in self._clients)

    def resume(self, fd: int) -> ControlClient:
        """Take back a client that an upgrade left, which still waits for its answer."""
        client = ControlClient(socket.socket(fileno=fd), 0.0)
        client.deadline_s = None
        self._add(client)
        return client

    def reply(self, client: ControlClient, answer: ControlReply) -> None:
        """Answer and hang up once the answer has been read. A client that went is no fault."""
        if client not in self._clients:
            return
        line = msgspec.json.encode(answer) + b"\n"
        waiting_bytes = sum(len(each.unsent) for each in self._clients)
        if waiting_bytes and waiting_bytes + len(line) > MAX_UNSENT_BYTES:
            busy = "too many answers wait to be read; ask again in a moment"
            line = msgspec.json.encode(ControlReply(ok=False, error=busy)) + b"\n"
        client.unsent = line
        client.deadline_s = self._clock() + REQUEST_LIMIT_S
        self._write(client)

    def answer(self, client: ControlClient | None, error: str | None) -> None:
        """Answer that it is done, or (`error`) why not; without a client do nothing."""
        if client is not None:
            self.reply(client, ControlReply(ok=error is None, error=error))

    def drop_late(self) -> None:
        """Hang up on clients that neither asked nor read in time."""
        now_s = self._clock()
        for client in list(self._clients):
            if client.deadline_s is not None and now_s > client.deadline_s:
                self._drop(client)

    def close(self) -> None:
        """Hang up on all and remove the socket."""
        for client in list(self._clients):
            self._drop(client)
        with suppress(KeyError, ValueError):
            self._selector.unregister(self._sock)
        self._sock.close()
        with suppress(OSError):  # no process listens behind it, whatever becomes of the file
            self._path.unlink()

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it went again
            return
        except OSError:  # out of descriptors: the next turn retries, and not at full speed
            time.sleep(RETRY_S)
            return
        client = ControlClient(sock, self._clock() + REQUEST_LIMIT_S)
        try:
            self._add(client)
        except Exception:
            self._drop(client)  # it must not wait for an answer that will not come
            raise
        if len(self._clients) > MAX_CLIENTS:
            self._make_room(client)

    def _add(self, client: ControlClient) -> None:
        self._clients.add(client)
        self._selector.register(client.sock, selectors.EVENT_READ, self._handler(client))

    def _handler(self, client: ControlClient) -> Handler:
        return Handler(
            "a client of control.sock",
            lambda mask: self._turn(client, mask),
            lambda: self._give_up(client),
        )

    def _give_up(self, client: ControlClient) -> None:
        """Tell a client of a fault of ours while it was served, if that can be done."""
        is_told = False
        try:
            if client in self._clients and not client.unsent:
                self.reply(client, ControlReply(ok=False, error=OUR_FAULT))
                is_told = True
        finally:
            if not is_told:
                self._drop(client)

    def _make_room(self, newcomer: ControlClient) -> None:
        """Drop a silent client first, so that `status` is always answered."""
        silent = [
            client
            for client in self._clients
            if client is not newcomer
            and (client.is_asking or (client.is_refused and not client.unsent))
        ]
        if silent:
            self._drop(min(silent, key=lambda c: c.deadline_s or 0.0))
        else:
            self.reply(newcomer, ControlReply(ok=False, error="too many commands at once"))

    def _turn(self, client: ControlClient, mask: int) -> None:
        if client not in self._clients:  # dropped by another event of the same turn
            return
        if mask & selectors.EVENT_WRITE:
            self._write(client)
        elif mask & selectors.EVENT_READ:
            self._read(client)

    def _read(self, client: ControlClient) -> None:
        try:
            data = client.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not client.is_asking:
            self._ignore(client, data)
            return
        try:
            line = next(client.splitter.feed(data), None)
        except ChannelError as error:
            self._refuse(client, str(error))
            return
        if line is not None:
            self._request(client, line)
        elif not data and client.splitter.unfinished:
            self._refuse(client, "the end of the line is missing")
        elif not data:  # it gave up
            self._drop(client)

    def _ignore(self, client: ControlClient, data: bytes) -> None:
        """Read away what comes behind the client's line, up to a limit: it has no meaning."""
        client.ignored_bytes += len(data)
        if not data or client.ignored_bytes > MAX_IGNORED_BYTES:
            self._drop(client)

    def _request(self, client: ControlClient, line: bytes) -> None:
        try:
            request = decode_request(line)
        except Undecodable as error:
            self._refuse(client, str(error))
            return
        client.deadline_s = None  # the answer has its own limit from here
        self._on_request(client, request)

    def _refuse(self, client: ControlClient, why: str) -> None:
        """Tell the client what is wrong with what it sent.

        It may still be sending. A socket that is closed with something unread fails the client's
        next write, and a client that sees this does not look for the answer.
        """
        client.is_refused = True
        self.reply(client, ControlReply(ok=False, error=f"not a request: {why}"))

    def _write(self, client: ControlClient) -> None:
        try:
            client.unsent = client.unsent[client.sock.send(client.unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # it went
            self._drop(client)
            return
        if client.unsent:
            self._selector.modify(client.sock, selectors.EVENT_WRITE, self._handler(client))
        elif client.is_refused:
            self._await_end(client)
        else:
            self._drop(client)

    def _await_end(self, client: ControlClient) -> None:
        """Tell a client that was refused that there is no more; it has until its deadline to go."""
        try:
            client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(client)
            return
        self._selector.modify(client.sock, selectors.EVENT_READ, self._handler(client))

    def _drop(self, client: ControlClient) -> None:
        self._clients.discard(client)
        with suppress(KeyError, ValueError):  # it never was registered
            self._selector.unregister(client.sock)
        client.sock.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells one socket's file from another's; None when there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former_umask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(former_umask)
    return sock
