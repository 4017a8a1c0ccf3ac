"""An upstream: its address, its pool of connections, its places.

The pool keeps idle connections only as long as the upstream surely does. A place is what
`max_concurrent` counts: without a free one a relay waits in a queue that is fair (first come, first
served) and bounded.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Protocol
from urllib.parse import urlsplit

from tidegate.core.errors import UpstreamError
from tidegate.core.message import UpstreamStatus
from tidegate.core.settings import Limits, Upstream
from tidegate.gateway.connection import UpstreamConnection

MAX_IDLE = 64  # idle connections kept per upstream: a burst's worth, a few KiB each
MAX_FETCH_BYTES = 4 * 1024 * 1024  # a list of models; OpenRouter's is half a MiB


class Waiter(Protocol):
    """A relay that waits for a place."""

    def on_place(self) -> None:
        """A place is free and is now yours."""


class UpstreamPool:
    """One upstream as the gateway uses it."""

    def __init__(self, upstream: Upstream, limits: Limits, secret: str | None) -> None:
        self.upstream = upstream
        self.name = upstream.name
        self.limits = limits
        self.active = 0
        self._active_elsewhere = 0
        self.last_error: str | None = None
        self.state = "unknown"
        self.reachable: bool | None = None  # None: not tried yet
        self._loop = asyncio.get_running_loop()
        self._idle: list[UpstreamConnection] = []
        self._reaper: asyncio.TimerHandle | None = None
        self._open: set[UpstreamConnection] = set()
        self._queue: deque[Waiter] = deque()
        self._address = _Address(upstream.url)
        self._credentials = f"Authorization: Bearer {secret}\r\n" if secret else ""

    def status(self) -> UpstreamStatus:
        """As `status` shows it."""
        return UpstreamStatus(
            name=self.name,
            url=self._address.shown,
            state=self.state,
            active=self.active,
            queued=len(self._queue),
            connections=len(self._open),
            last_error=self.last_error,
        )

    # --- places ---------------------------------------------------------------------------------

    def take_place(self, waiter: Waiter) -> bool:
        """True: go on. False: wait for `on_place`. Raises UpstreamError when the queue is full."""
        if not self._queue and self._has_place():
            self.active += 1
            return True
        if len(self._queue) >= self.limits.max_queued:
            raise UpstreamError(
                f"is busy: {self.active} active, {len(self._queue)} waiting", code="queue_full"
            )
        self._queue.append(waiter)
        return False

    def leave_place(self) -> None:
        """Gives a place back; whoever waits longest gets it."""
        self.active -= 1
        self._admit()

    def share(self, active_elsewhere: int) -> None:
        """The other generation has so many places; both together respect the limit."""
        self._active_elsewhere = active_elsewhere
        self._admit()

    def _has_place(self) -> bool:
        most = self.upstream.max_concurrent
        return not most or self.active + self._active_elsewhere < most

    def _admit(self) -> None:
        while self._queue and self._has_place():
            self.active += 1
            self._queue.popleft().on_place()

    def leave_queue(self, waiter: Waiter) -> None:
        """Waits no longer."""
        self._queue.remove(waiter)

    # --- connections ----------------------------------------------------------------------------

    def request_head(
        self, method: str, path: str, body_bytes: int, *, stream: bool, more: str = ""
    ) -> bytes:
        """The head of a request. Nothing of the client's own head is ever copied.

        `more` are whole header lines.
        """
        accept = "text/event-stream" if stream else "application/json"
        content = (
            f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n"
            if method == "POST"
            else ""
        )
        return (
            f"{method} {self._address.prefix}{path} HTTP/1.1\r\nHost: {self._address.host}\r\n"
            f"{self._credentials}Accept: {accept}\r\n{more}{content}\r\n"
        ).encode("latin-1")

    def take_idle(self) -> UpstreamConnection | None:
        """A connection that is open and surely still wanted by the other side."""
        now_s = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and connection.idle_until_s > now_s:
                return connection
            connection.abort()
        return None

    async def connect(self) -> UpstreamConnection:
        """A fresh connection. Raises UpstreamError naming what is wrong."""
        loop, address = self._loop, self._address
        try:
            async with asyncio.timeout(self.limits.connect_s):
                if address.unix_path:
                    _, made = await loop.create_unix_connection(self._new, address.unix_path)
                else:
                    _, made = await loop.create_connection(
                        self._new, address.hostname, address.port, ssl=address.tls
                    )
        except TimeoutError:
            raise UpstreamError(
                f"did not accept a connection within connect_s = {self.limits.connect_s:g} s",
                code="connect_timeout",
            ) from None
        except OSError as error:
            why = error.strerror or str(error)
            raise UpstreamError(
                f"cannot be reached at {address.shown}: {why}", code="connect_failed"
            ) from None
        if not made.is_usable:
            raise UpstreamError("hung up at once", code="upstream_disconnected")
        self._open.add(made)
        return made

    def close_idle(self) -> None:
        """Closes what nobody uses."""
        while self._idle:
            self._idle.pop().abort()
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None

    def close(self) -> None:
        """Closes every connection."""
        self.close_idle()
        for connection in list(self._open):
            connection.abort()

    def succeeded(self) -> None:
        """It answered."""
        self.state, self.last_error, self.reachable = "ok", None, True

    def failed(self, reason: str) -> None:
        """It did not."""
        self.state, self.last_error = "failing", reason

    def _new(self) -> UpstreamConnection:
        # Not ours to count yet: uvloop makes one even where nobody accepts the connection.
        return UpstreamConnection(self._loop, self._on_free)

    def _on_free(self, connection: UpstreamConnection) -> None:
        if connection.is_usable and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
            if self._reaper is None:
                self._reaper = self._loop.call_at(connection.idle_until_s, self._reap)
        else:
            connection.abort()
            self._open.discard(connection)

    def _reap(self) -> None:
        """Closes what has been idle for too long, before the upstream does."""
        now_s = self._loop.time()
        overdue = [each for each in self._idle if each.idle_until_s <= now_s]
        self._idle = [each for each in self._idle if each.idle_until_s > now_s]
        for connection in overdue:
            connection.abort()
        self._reaper = (
            self._loop.call_at(min(each.idle_until_s for each in self._idle), self._reap)
            if self._idle
            else None
        )

    # --- small questions ------------------------------------------------------------------------

    async def fetch(
        self, path: str, timeout_s: float, *, method: str = "GET", more: str = "", body: bytes = b""
    ) -> tuple[int, bytes]:
        """A whole small answer: its status and its body. Raises UpstreamError."""
        request = self.request_head(method, path, len(body), stream=False, more=more) + body
        try:
            async with asyncio.timeout(timeout_s):
                idle = self.take_idle()
                if idle is not None:
                    fetch = _Fetch()
                    try:
                        return await fetch.over(idle, request)
                    except UpstreamError:
                        if fetch.answered:
                            raise
                        # It died of idleness while our request was on its way: not a fault.
                return await _Fetch().over(await self.connect(), request)
        except TimeoutError:
            raise UpstreamError(f"did not answer within {timeout_s:g} s") from None


class _Fetch:
    """An exchange that keeps a small answer."""

    def __init__(self) -> None:
        self.answered = False  # some of it has come
        self._answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._is_complete = False
        self._status = 0
        self._body = bytearray()

    async def over(self, connection: UpstreamConnection, request: bytes) -> tuple[int, bytes]:
        """Asks over this connection. Raises UpstreamError."""
        connection.send(request, self)
        try:
            return await self._answer
        finally:
            if not self._is_complete:
                connection.abort()

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self._status, self.answered = status, True

    def on_body(self, data: bytes) -> None:
        if len(self._body) < MAX_FETCH_BYTES:
            self._body += data
        elif not self._answer.done():
            self._answer.set_exception(UpstreamError("sent a list that is too long"))

    def on_end(self) -> None:
        self._is_complete = True
        if not self._answer.done():
            self._answer.set_result((self._status, bytes(self._body)))

    def on_lost(self, reason: str, *, answered: bool) -> None:
        self.answered = answered
        if not self._answer.done():
            self._answer.set_exception(UpstreamError(reason))


class _Address:
    """An upstream's URL, taken apart once."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.unix_path = ""
        self.tls: ssl.SSLContext | None = None
        self.hostname = ""
        self.port = 0
        if parts.scheme == "unix":
            # unix:/run/x.sock, or unix:/run/x.sock:/prefix
            self.unix_path, _, prefix = parts.path.partition(":")
            self.host = "localhost"
        else:
            self.hostname = parts.hostname or ""
            self.port = parts.port or (443 if parts.scheme == "https" else 80)
            self.tls = ssl.create_default_context() if parts.scheme == "https" else None
            self.host = parts.netloc.rpartition("@")[2]
            prefix = parts.path
        # A bare host means the usual place; a path is a base URL as SDKs take it.
        self.prefix = prefix.rstrip("/") or "/v1"
        self.shown = url if self.unix_path else f"{parts.scheme}://{self.host}{parts.path}"
