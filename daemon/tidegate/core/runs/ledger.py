"""The book of retained bytes: one account per run, one for connections; the total is their sum.

Every buffer that belongs to a run is an entry in its account, set whenever the buffer changes.
The limit is enforced where bytes are charged, because a sampler that looks once a second cannot
hold a budget against loopback speed: above 7/8 of it `reclaim` is called (it evicts finished
windows, then pauses upstreams), and above the limit itself the charge fails, with a reason.

What clients send (bodies, WebSocket messages, heads) may take half of the limit in all: answers
that are being streamed never fail because of requests that are still arriving.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

from tidegate.core.errors import LedgerFull
from tidegate.core.runs.intake import largest_body_bytes

# What a run costs beside its buffers: the record, its relay, its deadlines. Measured with
# tracemalloc over 10,000 finished runs, rounded up, so that the ledger explains that memory too.
RECORD_BYTES = 4096


class Entry(IntEnum):
    """The kinds of buffers. From BODY on they hold what clients send: the intake."""

    RECORD = 0  # the run itself
    PARTIAL = 1  # the unfinished event at the end of what was read
    HELD = 2  # what an attempt received before its first output
    WINDOW = 3  # the events kept for subscribers
    OUTBOUND = 4  # written for subscribers, not yet taken by the kernel
    STORED = 5  # of runs, on its way to the journal and the history
    BODY = 6  # the request, kept as long as an attempt may still need it
    MESSAGE = 7  # a WebSocket message that is still arriving
    CONNECTION = 8  # an open connection, and the head that is arriving on it


_ENTRIES = len(Entry)
_FIRST_OF_INTAKE = int(Entry.BODY)


class Ledger:
    """Sums all accounts, and holds them to its limit."""

    __slots__ = (
        "_accounts",
        "connections",
        "entries",
        "light",
        "limit_bytes",
        "reclaim",
        "stores",
        "total_bytes",
    )

    def __init__(self, limit_bytes: int = 0) -> None:
        self.total_bytes = 0
        self.entries = [0] * _ENTRIES  # the sums of all accounts
        self.connections = Account(self)  # of those that have no run: never closed
        self.light = Account(self)  # of light answers, which have no run either: never closed
        self.stores = Account(self)  # of what waits to be written down: never closed
        self.limit_bytes = limit_bytes  # 0: none
        self.reclaim: Callable[[], object] = lambda: None
        self._accounts: set[Account] = set()

    def open(self) -> Account:
        """Open a new, empty account."""
        account = Account(self)
        self._accounts.add(account)
        return account

    def open_surely(self, body_bytes: int = 0) -> Account:
        """Open the account of a run that must be, with what it holds from the start.

        It is charged even when the ledger is full: what comes next is refused, not this.
        """
        account = self.open()
        for entry, held_bytes in ((Entry.BODY, body_bytes), (Entry.RECORD, RECORD_BYTES)):
            with suppress(LedgerFull):
                account.set(entry, held_bytes)
        return account

    def statistics(self) -> dict[str, int]:
        """Count bytes by kind of buffer; their sum is the total."""
        return {entry.name.lower(): self.entries[entry] for entry in Entry}

    @property
    def accounts(self) -> frozenset[Account]:
        """The open accounts of runs and requests."""
        return frozenset(self._accounts)

    @property
    def is_tight(self) -> bool:
        """Above 7/8 of the limit, where upstreams wait."""
        return 0 < self.limit_bytes * 7 < self.total_bytes * 8

    @property
    def has_much(self) -> bool:
        """Above half of the limit, to which eviction brings it down so that it need not begin anew.

        Half the limit is a level of memory at which all is well.
        """
        return 0 < self.limit_bytes < self.total_bytes * 2

    @property
    def is_full(self) -> bool:
        """Above the limit, where charges fail."""
        return 0 < self.limit_bytes < self.total_bytes

    @property
    def intake_bytes(self) -> int:
        """What clients have sent and we still hold."""
        return sum(self.entries[Entry.BODY :])

    @property
    def intake_limit_bytes(self) -> int:
        """The most that it may be; 0: no limit."""
        return self.limit_bytes // 2

    @property
    def largest_body_bytes(self) -> int | None:
        """The largest body that fits when nothing else is there; None: no limit."""
        return largest_body_bytes(self.limit_bytes) if self.limit_bytes else None

    @property
    def is_intake_full(self) -> bool:
        """Above its limit, where charges of what clients send fail."""
        return 0 < self.intake_limit_bytes < self.intake_bytes

    def forget(self, account: Account) -> None:
        """Take a closed account out of the book."""
        self._accounts.discard(account)


class Account:
    """Counts the bytes that one run, or one client that has none yet, holds; by entry."""

    __slots__ = ("_is_open", "_ledger", "entries", "total_bytes")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_open = True
        self.entries = [0] * _ENTRIES
        self.total_bytes = 0

    def __repr__(self) -> str:
        held = {entry.name.lower(): self.entries[entry] for entry in Entry if self.entries[entry]}
        return f"<Account {self.total_bytes} {held}>"

    def set(self, entry: int, held_bytes: int) -> None:
        """Charge what one buffer holds now.

        Raises LedgerFull when that is more than the limit leaves, after eviction; the bytes stay
        charged until their owner lets go of them. Once the account is closed nothing is
        charged: it would never be let go of.
        """
        delta = held_bytes - self.entries[entry]
        if not delta or not self._is_open:
            return
        self.entries[entry] = held_bytes
        self.total_bytes += delta
        ledger = self._ledger
        ledger.total_bytes += delta
        ledger.entries[entry] += delta
        # Below half of the limit, where it nearly always is, nothing can be full.
        if delta > 0 and ledger.has_much:
            is_intake = entry >= _FIRST_OF_INTAKE
            if ledger.is_tight or (is_intake and ledger.is_intake_full):
                ledger.reclaim()
                if ledger.is_full:
                    raise LedgerFull(ledger.total_bytes, ledger.limit_bytes)
                if is_intake and ledger.is_intake_full:
                    raise LedgerFull(ledger.intake_bytes, ledger.intake_limit_bytes, of="requests")

    def close(self) -> int:
        """Close the account: every buffer is gone; returns the bytes that were still charged."""
        freed = self.total_bytes
        self._ledger.total_bytes -= freed
        for entry, held_bytes in enumerate(self.entries):
            self._ledger.entries[entry] -= held_bytes
        self.total_bytes = 0
        self.entries = [0] * _ENTRIES
        self._is_open = False
        self._ledger.forget(self)
        return freed
