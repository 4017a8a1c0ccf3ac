"""The sockets that clients connect to: those in use, and those on their way out.

A setting that changes opens new ones beside the old; the old ones stay open until the worker
that accepts from them has stopped doing so, and what was opened in vain is closed again.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterable

from msgspec import Struct

from tidegate.managers import sockets
from tidegate.managers.sockets import BoundSocket, ListenError
from tidegate.managers.systemd.notify import Notifier, stored_name

_log = logging.getLogger(__name__)


class KeptListener(Struct, frozen=True, kw_only=True):
    """A listening socket that stays open."""

    fd: int
    configured: str
    address: str
    retired: bool = False  # only a draining worker accepts from it


class Listeners:
    """All listening sockets of this tidegate. `close` them when done."""

    def __init__(self, passed: list[BoundSocket], notifier: Notifier) -> None:
        """Begin with the sockets that the service manager opened: they stand above `listen`.

        Those that it only kept for us serve when the setting still asks for them.
        """
        self._notifier = notifier
        self._adopted = [bound for bound in passed if bound.stored is None]
        self._stored = {bound.stored: bound for bound in passed if bound.stored is not None}
        self._retired: list[BoundSocket] = []
        self.bound: list[BoundSocket] = []

    def __repr__(self) -> str:
        return f"<Listeners {self.addresses} retired={len(self._retired)}>"

    @property
    def _open(self) -> list[BoundSocket]:
        """List those in use, and those that a worker may still accept from."""
        return self.bound + self._retired

    @property
    def are_given(self) -> bool:
        """Tell whether the service manager opened them, so that `listen` has no say."""
        return bool(self._adopted)

    @property
    def addresses(self) -> list[str]:
        """List where clients find us, as "127.0.0.1:8433" or "unix:/path"."""
        return [bound.address for bound in self.bound if not _is_covered(bound, self.bound)]

    def kept(self) -> list[KeptListener]:
        """List what an upgrade leaves of them: all stay open."""
        return [
            KeptListener(
                fd=each.sock.fileno(),
                configured=each.configured,
                address=each.address,
                retired=each not in self.bound,
            )
            for each in self._open
        ]

    def resume(self, kept: Iterable[KeptListener]) -> None:
        """Go on with those that an upgrade left."""
        for each in kept:
            bound = BoundSocket(socket.socket(fileno=each.fd), each.configured, each.address)
            if each.retired:
                self._retired.append(bound)
            else:
                self.bound.append(bound)
        self._adopted = [each for each in self.bound if each.configured == sockets.ADOPTED]

    def open(self, addresses: Iterable[str]) -> list[BoundSocket]:
        """Open sockets for `addresses`, or take those in use. Raises ListenError with none open.

        One in use for a single address stays beside a new one for all addresses of its port: the
        system prefers it, and to close it would cost the clients in its queue their connections.
        """
        if self._adopted:
            return self._adopted
        opened: list[BoundSocket] = []
        stored = self._stored.copy()
        try:
            for address in addresses:
                opened.append(self._in_use(address, opened) or self._take(address))
        except ListenError:
            # The service manager goes on listening there, so they could not be opened anew.
            self._stored = {name: kept for name, kept in stored.items() if kept.sock.fileno() >= 0}
            again = {kept.sock for kept in self._stored.values()}
            self.discard([bound for bound in opened if bound.sock not in again])
            raise
        return opened + [b for b in self.bound if b not in opened and _is_covered(b, opened)]

    def _in_use(self, address: str, taken: Collection[BoundSocket]) -> BoundSocket | None:
        """Find the socket that listens there already, under any spelling of the same address.

        One that only just retired is as good.
        """
        wanted = sockets.parse(address)
        for bound in self._open:
            there = (sockets.parse(bound.configured), sockets.parse(bound.address))
            if wanted in there and bound not in taken:
                return bound
        return None

    def _take(self, address: str) -> BoundSocket:
        """Take the socket that was kept for this address, or a new one. Raises ListenError."""
        kept = self._stored.pop(_name(address), None)
        if kept is None:
            return sockets.bind(address, [*self._open, *self._stored.values()])
        if not kept.is_there():  # its file was taken away
            kept.close()
            return sockets.bind(address)
        _log.info("%s stayed open meanwhile", kept.address)
        return kept.configured_as(address)

    def use(self, bound: list[BoundSocket]) -> None:
        """Listen on these from now on; what is not among them retires."""
        for each in bound:
            if each not in self._adopted:
                self._notifier.store(_name(each.configured), each.sock)
            elif each not in self.bound:
                name = each.name or "without a name"
                _log.info("%s was opened by the service manager (%s)", each.address, name)
        self._retired = [former for former in self._open if former not in bound]
        self.bound = bound
        for name, unwanted in self._stored.items():
            self._notifier.drop(name)
            unwanted.configured_as(name).close()  # with its file, as one of ours
        self._stored.clear()

    def discard(self, opened: Collection[BoundSocket]) -> None:
        """Close what was opened and never came into use."""
        for bound in opened:
            if bound not in self._open:
                bound.close()

    def close_retired(self) -> None:
        """Close the retired ones: no worker accepts from them any more."""
        for bound in self._retired:
            _log.info("no longer listening on %s", bound.address)
            if bound.configured not in {each.configured for each in self.bound}:
                self._notifier.drop(_name(bound.configured))
            bound.close()
        self._retired = []

    def refuse_newcomers(self) -> None:
        """Close what no worker will accept from: better a refusal at once than a wait in vain.

        For a stop. Sockets that the service manager has too stay open there; it knows what follows.
        """
        for bound in self._open:
            if bound not in self._adopted:
                bound.close(keep_file=self._notifier.is_connected)

    def close(self) -> None:
        """Stop listening."""
        for bound in self._open:
            bound.close(keep_file=self._notifier.is_connected)


def _is_covered(bound: BoundSocket, others: Iterable[BoundSocket]) -> bool:
    """Tell whether one of the others has all addresses of its port."""
    return any(sockets.covers(other, bound) for other in others)


def _name(address: str) -> str:
    """Name the socket for an address of the setting, as the store has it."""
    return stored_name(sockets.canonical(address))
