"""A small answer of an upstream, kept whole: a list of models, say, or how it is."""

from __future__ import annotations

import asyncio

from tidegate.core.errors import UpstreamError
from tidegate.gateway.upstreams.connection import UpstreamConnection
from tidegate.gateway.upstreams.pool import UpstreamPool

MAX_FETCH_BYTES = 4 * 1024 * 1024  # a list of models; OpenRouter's is half a MiB


async def fetch(
    pool: UpstreamPool,
    path: str,
    timeout_s: float,
    *,
    method: str = "GET",
    more: str = "",
    body: bytes = b"",
    at_root: bool = False,
) -> tuple[int, bytes]:
    """Ask an upstream for a small answer; returns its status and its body. Raises UpstreamError.

    `more` are whole header lines; with `at_root` the path counts from where the server begins.
    """
    head = pool.request_head(method, path, len(body), stream=False, more=more, at_root=at_root)
    try:
        async with asyncio.timeout(timeout_s):
            idle = pool.take_idle()
            if idle is not None:
                exchange = _Fetch()
                try:
                    return await exchange.over(idle, head, body)
                except UpstreamError:
                    if exchange.answered:
                        raise
                    # It died of idleness while our request was on its way: not a fault.
            return await _Fetch().over(await pool.connect(), head, body)
    except TimeoutError:
        raise UpstreamError(f"did not answer within {timeout_s:g} s") from None


class _Fetch:
    """An exchange that keeps a small answer. Needs a running loop."""

    def __init__(self) -> None:
        self.answered = False  # some of it has come
        self._answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._is_complete = False
        self._status = 0
        self._body = bytearray()

    async def over(
        self, connection: UpstreamConnection, head: bytes, body: bytes
    ) -> tuple[int, bytes]:
        """Ask over this connection; returns status and body. Raises UpstreamError."""
        connection.send(head, self, [body])
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
