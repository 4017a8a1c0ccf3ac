"""All WebSockets of a worker: what their messages may take together, and which goes first."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from tidegate.core.errors import LedgerFull
from tidegate.core.runs.ledger import Ledger

STALLED_S = 2.0  # a message that has not grown for so long goes first when memory is short


class Socket(Hashable, Protocol):
    """One WebSocket, as far as memory is concerned."""

    forget: Callable[[], None]  # drops what the client can send again
    grew_s: float  # when the message that is arriving last took more memory

    @property
    def arriving_bytes(self) -> int:
        """The memory that what has arrived takes until it is received."""

    def give_up(self) -> None:
        """Give up its message, for memory."""


class Sockets:
    """All open WebSockets, and what they may hold together."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open: dict[Socket, None] = {}
        self._shares: dict[str, _Share] = {}  # of owners whose messages are arriving

    def __len__(self) -> int:
        return len(self._open)

    def add(self, socket: Socket) -> None:
        """Count a socket among the open ones."""
        self._open[socket] = None

    def remove(self, socket: Socket) -> None:
        """Forget a socket that is gone."""
        self._open.pop(socket, None)

    def count(self, owner: str, before_bytes: int, after_bytes: int) -> None:
        """Say how much has arrived of one of the owner's messages."""
        share = self._shares.setdefault(owner, _Share())
        share.arriving_bytes += after_bytes - before_bytes
        share.messages += bool(after_bytes) - bool(before_bytes)
        if not share.messages:
            del self._shares[owner]

    def check_share(self, owner: str) -> None:
        """Bound an owner's messages: LedgerFull where they take more than half of the intake.

        A message that is the owner's only one is bounded by the ledger alone.
        """
        most_bytes = self._ledger.intake_limit_bytes // 2
        share = self._shares.get(owner)
        if share is not None and share.messages > 1 and 0 < most_bytes < share.arriving_bytes:
            raise LedgerFull(share.arriving_bytes, most_bytes, of="messages from this client")

    def reclaim(self, now_s: float) -> None:
        """Give memory back: what clients can send again goes, then messages that do not grow."""
        ledger = self._ledger
        for socket in self._open:
            if not (ledger.is_tight or ledger.is_intake_full):
                return
            socket.forget()
        waiting = [each for each in self._open if each.arriving_bytes]
        for socket in sorted(waiting, key=lambda each: each.grew_s):
            if not ledger.is_intake_full or now_s - socket.grew_s < STALLED_S:
                return
            socket.give_up()

    def forget(self) -> None:
        """Drop all that clients can send again."""
        for socket in self._open:
            socket.forget()


@dataclass(slots=True)
class _Share:
    """What has arrived of one owner's messages."""

    arriving_bytes: int = 0
    messages: int = 0
