"""The open connections of a server: how many there may be, and how long each may keep us waiting.

Every connection is in one phase, and each phase has a dict in the order in which its connections
came in, so that the first is always the one that has waited longest. One timer looks at the first
of each only. A request moves its connection from IDLE to BUSY and back; one whose head comes in
parts stands in HEAD in between.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Protocol

from tidegate.core.descriptors import ConnectionBounds
from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import ErrorText
from tidegate.core.runs.ledger import Entry, Ledger
from tidegate.core.settings import KIB, Limits
from tidegate.core.text import count
from tidegate.gateway.server.errors import ALL_IN_USE, NO_MEMORY

log = logging.getLogger(__name__)

KEEPALIVE_S = 15.0  # an idle connection; longer than a client thinks between two calls in a row

# Of an open connection that aiohttp serves, beside what it sends: protocol, parser, task and
# transport. Resident memory of 2,000 connections by their number: idle 8.7 KiB on uvloop and 8.5 on
# plain asyncio, with a small request in hand 9.1, before the first request 5.9.
CONNECTION_BYTES = 9 * KIB
# When all places are taken, so many connections at most beyond them may ask for health. Each one
# more puts out the one that has waited longest, so that silent ones keep no other out.
BEYOND = 64
FRESH_S = 0.5  # a head that is younger may be there in a moment, and is spared when memory is short
LATE_S = 1.0  # a tick so late ends no connection: what clients sent meanwhile was not read yet

_LONGEST_TICK_S = 1.0
_LOG_EVERY_S = 60.0


class ConnectionPhase(IntEnum):
    """Where a connection stands. A number, since an enum's own hash costs more than a move."""

    FRESH = 0  # connected, nothing sent yet
    HEAD = 1  # a part of a head has come
    BUSY = 2  # a request is in hand
    IDLE = 3  # between two requests
    CLOSING = 4  # nothing more is read from it; its last bytes are on their way
    GONE = 5  # in the table no more


_OPEN = tuple(phase for phase in ConnectionPhase if phase is not ConnectionPhase.GONE)
WAITING = (
    ConnectionPhase.FRESH,
    ConnectionPhase.HEAD,
    ConnectionPhase.IDLE,
)  # these go first when there is no more room


class Connection(Hashable, Protocol):
    """A connection, as far as the table needs it. Phase, charge and `beyond` are the table's."""

    own_bytes: ClassVar[int]  # what it costs beside what it sends
    phase: ConnectionPhase
    charged_bytes: int
    beyond: ErrorText | None  # why it may ask for open paths only

    def force_close(self) -> None:
        """End it once what was written has left."""

    def abort(self) -> None:
        """End it now, with whatever was not sent yet."""

    def give_up(self, status: int, message: str, code: str) -> None:
        """End it while no request is in hand, saying why."""

    def leave_for_memory(self) -> None:
        """End it at once, for memory is short."""

    @property
    def has_unread(self) -> bool:
        """Whether the client has sent what was not read yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatistics:
    """Connections now, by phase, and what happened since the start."""

    connections: dict[str, int]
    accepted: int
    evicted: int  # made room for a newcomer, or gave back memory
    refused: int  # came when there was no room
    malformed: int  # requests that were not HTTP

    @property
    def open(self) -> int:
        """All connections."""
        return sum(self.connections.values())


class ConnectionTable:
    """All open connections, by phase; which of them goes when places, memory or time run short.

    `limits` is asked anew each time, so that a reload takes effect at once.
    """

    def __init__(self, limits: Callable[[], Limits], ledger: Ledger) -> None:
        """Connections are charged to `ledger`. Needs a running loop."""
        self.limits = limits
        self.places = ConnectionBounds(clients=sys.maxsize, beyond=BEYOND)  # that have descriptors
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._by_phase: tuple[dict[Connection, float], ...] = tuple({} for _ in _OPEN)
        self._beyond: dict[Connection, None] = {}  # beyond the bound, for open paths only
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_s = 0.0  # when it is due
        self._spared = False  # the last one was late and ended no connection
        self.connected = 0  # sockets that are open, also of connections that were evicted
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._accepted = self._evicted = self._refused = self._malformed = 0
        self._malformed_line, self._room_line = _Line(), _Line()

    def __repr__(self) -> str:
        phases = " ".join(f"{name}={n}" for name, n in self.statistics().connections.items())
        return f"<ConnectionTable {phases}>"

    def __iter__(self) -> Iterator[Connection]:
        """Every open connection, as of now."""
        return iter([connection for phase in self._by_phase for connection in phase])

    def statistics(self) -> ConnectionStatistics:
        """Count what `/metrics` and a heartbeat show."""
        return ConnectionStatistics(
            connections={phase.name.lower(): len(self._by_phase[phase]) for phase in _OPEN},
            accepted=self._accepted,
            evicted=self._evicted,
            refused=self._refused,
            malformed=self._malformed,
        )

    @property
    def open_connections(self) -> int:
        """How many connections there are."""
        return sum(map(len, self._by_phase))

    @property
    def busy_connections(self) -> int:
        """How many of them have a request in hand."""
        return len(self._by_phase[ConnectionPhase.BUSY])

    @property
    def most_connections(self) -> int:
        """How many there may be: what the setting says, and what there are descriptors for."""
        return min(self.limits().max_connections, self.places.clients)

    async def emptied(self, limit_s: float | None = None) -> bool:
        """Wait until every connection is gone; False when that takes longer than `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                await self._all_gone.wait()
        except TimeoutError:
            return False
        return True

    # --- coming and going -----------------------------------------------------------------

    def arrive(self, connection: Connection) -> bool:
        """Make room for a newcomer; False when all the others have a request in hand.

        A connection that is closing goes first, then the one that has waited longest without a
        request, so heads that never end cannot keep others out. When all are busy, or memory is
        short, the newcomer is `beyond` the bound, and may only look whether we are well.
        """
        self._accepted += 1
        self.connected += 1
        self._all_gone.clear()
        if self._ticker is None:
            self._schedule_tick()
        while self.open_connections - len(self._beyond) >= self.most_connections:
            victim = self._next_to_go(spared=self._beyond)
            if victim is None:
                return self._arrive_beyond(connection, ALL_IN_USE)
            self._evict(victim)
        try:
            self.enter(connection, ConnectionPhase.FRESH)
        except LedgerFull:
            return self._arrive_beyond(connection, NO_MEMORY)
        return True

    def _arrive_beyond(self, connection: Connection, why: ErrorText) -> bool:
        connection.beyond = why
        if len(self._beyond) >= min(BEYOND, self.places.beyond):
            waiting = (each for each in self._beyond if each.phase is not ConnectionPhase.BUSY)
            victim = next(waiting, None)
            if victim is None:
                self._refused += 1
                return False
            self._evict(victim)
        self._beyond[connection] = None
        if connection.phase is ConnectionPhase.GONE:
            self._enter_full(connection, ConnectionPhase.FRESH)
        return True

    def refuse(self, connection: Connection) -> None:
        """Keep a newcomer for which there is no place at all while its last bytes leave."""
        self._enter_full(connection, ConnectionPhase.CLOSING)

    def enter(self, connection: Connection, phase: ConnectionPhase) -> None:
        """Move a connection to the end of another phase. Raises LedgerFull for a new one."""
        by_phase = self._by_phase
        is_new = connection.phase is ConnectionPhase.GONE
        if not is_new:
            del by_phase[connection.phase][connection]
        connection.phase = phase
        by_phase[phase][connection] = self._loop.time()
        if is_new:
            self.charge(connection, connection.own_bytes)

    def replace(self, former: Connection, successor: Connection) -> None:
        """Give `successor` the place of `former`, for the same socket is now its own.

        What that costs more is charged all the same: the connection has its place already.
        """
        self._by_phase[former.phase].pop(former)
        successor.phase, former.phase = former.phase, ConnectionPhase.GONE
        successor.charged_bytes, former.charged_bytes = former.charged_bytes, 0
        successor.beyond = former.beyond
        self._by_phase[successor.phase][successor] = self._loop.time()
        if former in self._beyond:
            del self._beyond[former]
            self._beyond[successor] = None
        with suppress(LedgerFull):
            self.charge(successor, successor.own_bytes)

    def _enter_full(self, connection: Connection, phase: ConnectionPhase) -> None:
        """Like `enter`, also when the ledger is full: it is charged all the same."""
        with suppress(LedgerFull):
            self.enter(connection, phase)

    def charge(self, connection: Connection, held_bytes: int) -> None:
        """Say what a connection costs now. Raises LedgerFull when there is no room for more.

        One that is gone costs nothing.
        """
        if connection.phase is ConnectionPhase.GONE:
            held_bytes = 0
        delta = held_bytes - connection.charged_bytes
        if delta:
            connection.charged_bytes = held_bytes
            account = self._ledger.connections
            account.set(Entry.CONNECTION, account.entries[Entry.CONNECTION] + delta)

    def leave(self, connection: Connection) -> None:
        """Note that a connection is lost; `emptied` waits for this."""
        self._forget(connection)
        self.connected -= 1
        if not self.connected:
            self._all_gone.set()

    def _forget(self, connection: Connection) -> None:
        if connection.phase is not ConnectionPhase.GONE:
            del self._by_phase[connection.phase][connection]
            connection.phase = ConnectionPhase.GONE
            self._beyond.pop(connection, None)
            self.charge(connection, 0)

    # --- which goes when there is no room ---------------------------------------------------

    def _evict(self, connection: Connection) -> None:
        self._evicted += connection.phase is not ConnectionPhase.CLOSING
        connection.abort()
        self._forget(connection)

    def _next_to_go(self, spared: Collection[Connection]) -> Connection | None:
        """The one that is closing, or else has waited longest."""
        for connection in self._by_phase[ConnectionPhase.CLOSING]:
            if connection not in spared:
                return connection
        oldest = self._oldest(WAITING, spared)
        return None if oldest is None else oldest[0]

    def _oldest(
        self, phases: tuple[ConnectionPhase, ...], spared: Collection[Connection] = ()
    ) -> tuple[Connection, float] | None:
        """The one that has been longest in one of the phases, and since when."""
        firsts = (
            next((item for item in self._by_phase[phase].items() if item[0] not in spared), None)
            for phase in phases
        )
        return min((f for f in firsts if f is not None), key=lambda f: f[1], default=None)

    def make_room(self, is_short: Callable[[], bool]) -> int:
        """Give memory back while it is short, without harm to any run; how many connections went.

        Heads that are arriving and connections that have sent nothing go first, the longest
        waiting before others; then connections between two requests. The youngest are spared, and
        those that have asked for something which this loop was too busy to read.
        """
        before = self._evicted
        now_s = self._loop.time()
        for phases in ((ConnectionPhase.HEAD, ConnectionPhase.FRESH), (ConnectionPhase.IDLE,)):
            while is_short():
                oldest = self._oldest(phases)
                if oldest is None or oldest[1] > now_s - FRESH_S:
                    break
                waiting = oldest[0]
                if waiting.phase is not ConnectionPhase.HEAD and waiting.has_unread:
                    self.enter(waiting, waiting.phase)
                    continue
                self._evicted += 1
                waiting.leave_for_memory()
                self._forget(waiting)
        gone = self._evicted - before
        if gone and (total := self._room_line.add(gone, self._loop.time())):
            log.warning("memory is short: %s closed", count(total, "waiting connection"))
        return gone

    # --- which has waited too long ----------------------------------------------------------

    def _schedule_tick(self) -> None:
        limits = self.limits()
        shortest_s = min(limits.header_s, limits.close_flush_s, KEEPALIVE_S)
        self._tick_s = self._loop.time() + min(_LONGEST_TICK_S, shortest_s / 4)
        self._ticker = self._loop.call_at(self._tick_s, self._tick)

    def _tick(self) -> None:
        """End what has waited too long. Stops when nothing is connected."""
        self._ticker = None
        late = self._loop.time() - self._tick_s > LATE_S
        self._spared = late and not self._spared  # once: a loop that is always late still judges
        if self._spared:
            self._schedule_tick()  # we were stopped: what came meanwhile has yet to be read
            return
        limits = self.limits()
        for connection in self._overdue(ConnectionPhase.FRESH, limits.header_s):
            connection.force_close()
        for connection in self._overdue(ConnectionPhase.HEAD, limits.header_s):
            connection.give_up(
                408,
                f"the head was not complete after {limits.header_s:g} s (limits.header_s)",
                "head_timeout",
            )
        for connection in self._overdue(ConnectionPhase.IDLE, KEEPALIVE_S):
            connection.force_close()
        for connection in self._overdue(ConnectionPhase.CLOSING, limits.close_flush_s):
            connection.abort()
            self._forget(connection)
        if self.open_connections:
            self._schedule_tick()

    def _overdue(self, phase: ConnectionPhase, limit_s: float) -> list[Connection]:
        latest_s = self._loop.time() - limit_s
        due = []
        for connection, since_s in self._by_phase[phase].items():
            if since_s > latest_s:
                break
            due.append(connection)
        return due

    # --- what is counted ----------------------------------------------------------------------

    def note_refused(self) -> None:
        """Count a request for which there was no place."""
        self._refused += 1

    def note_malformed(self, peer: str | None, fault: str) -> None:
        """Count a request that is not HTTP; log it once a minute, for scanners send many."""
        self._malformed += 1
        if total := self._malformed_line.add(1, self._loop.time()):
            others = total - 1
            log.warning(
                "malformed request from %s: %s%s",
                peer or "a Unix socket",
                fault,
                f" (and {others} others since the last such line)" if others else "",
            )


class _Line:
    """A log line that is written once a minute at most, with the sum of what it is about."""

    def __init__(self) -> None:
        self._untold = 0
        self._told_s = float("-inf")

    def add(self, number: int, now_s: float) -> int:
        """Add to the sum; returns what to tell now, or 0 while a line is less than a minute old."""
        self._untold += number
        if now_s - self._told_s < _LOG_EVERY_S:
            return 0
        told, self._untold, self._told_s = self._untold, 0, now_s
        return told
