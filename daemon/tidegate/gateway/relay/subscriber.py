"""The readers of a run, and how its bytes reach the socket.

A subscriber is *live*, written to in the very callback in which the upstream's bytes arrived, or
*lagging*: above its high-water mark it is served from the window by cursor, at the pace of its
socket, until it has caught up. The lagging part runs in the request's own task; a live stream has
no task switch and no queue.

Everything written is one HTTP chunk of complete events, so a client always stands at an event
boundary, where a keep-alive, an error or the end may follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tidegate.core.errors import CursorEvicted
from tidegate.core.formats.base import COMMENT
from tidegate.core.formats.framing import Framing
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState
from tidegate.core.runs.window import START, Cursor
from tidegate.gateway.server.writer import LOOK_AGAIN_S, RESOLUTION_S, ResponseWriter

LAST_CHUNK = b"0\r\n\r\n"


def stream_headers(framing: Framing) -> str:
    """Give the header lines of every stream of events."""
    return (
        f"Content-Type: {framing.content_type}\r\n"
        "Cache-Control: no-cache, no-transform\r\n"
        "X-Accel-Buffering: no\r\n"
    )


class Subscriber:
    """A reader of a run: a cursor, a way to be woken, and a watch over its connection."""

    __slots__ = (
        "_client", "_loop", "_waiter", "cursor", "dropped", "live", "on_progress", "on_wake",
        "outbound_bytes", "run",
    )  # fmt: skip

    def __init__(self, run: Run, cursor: Cursor, client: ResponseWriter) -> None:
        self.run = run
        self.cursor = cursor
        self.live = False
        self.outbound_bytes = 0
        self.dropped: str | None = None  # why, when it was us who ended it
        self.on_progress: Callable[[], None] = lambda: None  # a lagging reader moved on
        self.on_wake: Callable[[], None] | None = None  # called instead while it does not wait
        self._client = client
        self._loop = client.loop
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, block: bytes, end: Cursor, *, last: bool = False) -> int:
        """Take new events, up to `end`; with `last` nothing will follow them.

        Returns what is outbound after that, in bytes.
        """
        self.wake()
        return self.outbound_bytes

    def wake(self) -> None:
        """Wake the reader: the window grew, or the run is over."""
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif self.on_wake is not None:
            self.on_wake()

    async def wait(self) -> None:
        """Wait to be woken."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def shrink_buffer(self, *, half: bool) -> None:
        """Let half as much wait for this reader, or as much as before."""
        self._client.limit_buffer(half=half)

    def stalled_s(self, now_s: float) -> float:
        """Count the seconds for which there has been something to read and nothing was read."""
        return self._client.stalled_s(now_s)

    def cut(self) -> None:
        """Drop the client at once, with what it has not read: memory is short."""
        self.dropped = self.dropped or "memory is short"
        self._client.abort()
        self.outbound_bytes = 0

    def check(self, now_s: float) -> float:
        """Drop a client that reads nothing; returns when to look again.

        A close towards a peer that does not read would keep its buffer for ever, so what is
        over has only `close_flush_s`.
        """
        limits = self.run.limits
        closing = self.run.released or self.dropped is not None
        limit_s = limits.close_flush_s if closing else limits.stall_s
        before, self.outbound_bytes = self.outbound_bytes, self._client.outbound_bytes
        if self.outbound_bytes != before:
            self.on_progress()
        if self._client.stalled_s(now_s) >= limit_s:
            self.dropped = self.dropped or f"subscriber read nothing for {limit_s:g} s"
            self._client.abort()
        soon_s = limit_s / 4
        return now_s + (min(LOOK_AGAIN_S, soon_s) if self.outbound_bytes else soon_s)


class StreamSubscriber(Subscriber):
    """A reader over HTTP.

    `ids` on our own resume route only, which is always server-sent events: SDKs choke on them.
    """

    __slots__ = ("_chunked", "_ended", "_framing", "_head", "_ids", "_keep_alive", "_wrote_s")

    def __init__(
        self,
        run: Run,
        client: ResponseWriter,
        head: bytes,
        *,
        cursor: Cursor = START,
        ids: bool = False,
    ) -> None:
        super().__init__(run, cursor, client)
        self.live = cursor == run.window.end
        self._head = head  # not written before there is something to say
        self._ids = ids
        self._chunked = not client.http10
        self._framing = run.format.framing
        self._keep_alive = COMMENT if ids else run.format.keep_alive
        self._ended = False  # the end of the body has been written
        self._wrote_s = self._loop.time()

    @property
    def is_committed(self) -> bool:
        """The status has been written; until then a failure can have a status of its own."""
        return not self._head

    def commit(self) -> None:
        """Write status and headers now, though there is nothing to say yet."""
        if self._head:
            self._write(b"")

    def stop_holding(self) -> None:
        """Write the status, which was held back long enough, if a keep-alive can follow it."""
        if self._keep_alive is not None:
            self.commit()

    def deliver(self, block: bytes, end: Cursor, *, last: bool = False) -> int:
        """Write the events at once if live; otherwise they are found in the window."""
        if not self.live:
            self.wake()
            return self.outbound_bytes
        if self._ids:
            block = self._framing.numbered(block, self.cursor.seq)
        self.cursor = end
        if self._write(block, last=last) > self._client.high_water_bytes:
            self.live = False
            self.wake()
        return self.outbound_bytes

    async def serve(self) -> None:
        """Read the run to its end. Raises ConnectionError when the client is gone."""
        while True:
            if not self.live:
                await self._catch_up()
            if self.run.is_over or self.dropped is not None:
                break
            await self.wait()
        if self.is_committed:
            self._finish()
            await self._client.flushed()
            self.run.delivered = self.run.delivered or self.dropped is None

    def _finish(self) -> None:
        """Write the end of the body, after whatever the events said of how the answer ended."""
        if not self._ended:
            self._write(b"", last=True)

    async def _catch_up(self) -> None:
        """Write from the window, as fast as the client reads, until it is live again."""
        while True:
            await self._client.drained()
            try:
                block, end = self.run.window.read(self.cursor)
            except CursorEvicted as evicted:
                if self.run.released:
                    self._drop(self.run.reason or str(evicted), self.run.error_code or "released")
                else:
                    self._drop(f"read too slowly: {evicted}", evicted.code)
                return
            if not block:
                self.live = True
                return
            if self._ids:
                block = self._framing.numbered(block, self.cursor.seq)
            self._write(block)
            del block  # a segment, which may be waited with for long: it would be in no account
            self.cursor = end
            self.on_progress()

    def check(self, now_s: float) -> float:
        """Check as every subscriber does, and write a keep-alive after a long silence."""
        again_s = super().check(now_s)
        keepalive_s = self.run.limits.keepalive_s
        if self.run.is_over or self._keep_alive is None:
            return again_s
        silent_s = now_s - self._wrote_s + RESOLUTION_S
        if silent_s >= keepalive_s and self.is_committed and not self.outbound_bytes:
            self._write(self._keep_alive)
            silent_s = 0.0
        wait_s = keepalive_s - silent_s
        if wait_s <= 0:
            wait_s = min(LOOK_AGAIN_S, keepalive_s)
        # At least a step of the clock: what rounding leaves may be too small to be later at all.
        return min(again_s, now_s + max(wait_s, RESOLUTION_S))

    def _drop(self, reason: str, code: str) -> None:
        """End this reader alone, telling it why; never silently."""
        self.dropped = reason
        block = self.run.error_block(reason, "stream_error", code)
        self._write(self._framing.as_sse(block) if self._ids else block)

    def _write(self, block: bytes, *, last: bool = False) -> int:
        """Write head, events and end at once; returns what the kernel has not taken."""
        data = block
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(block), block) if block else b""
            if last:
                data += LAST_CHUNK
        if self._head:
            data, self._head = self._head + data, b""
        self._ended = last
        self._wrote_s = self._loop.time()
        unsent = self.outbound_bytes = self._client.write(data)
        if unsent and unsent != len(data):  # seldom: a part was taken, or there was more before
            self.outbound_bytes = self._client.outbound_bytes
        return unsent


class RawSubscriber(StreamSubscriber):
    """The creator of an answer that is bytes without events, such as sound.

    Its head is the upstream's, so it is made when the first bytes are there. Nothing can be said
    in such a body: where the answer is not whole, the connection breaks.
    """

    __slots__ = ("_make_head",)

    def __init__(
        self, run: Run, client: ResponseWriter, head: Callable[[], tuple[bytes, bool]]
    ) -> None:
        """Serve bytes; `head` gives the head's bytes, and whether it announces chunks."""
        super().__init__(run, client, b"to be made")
        self._make_head = head

    def _write(self, block: bytes, *, last: bool = False) -> int:
        if not self.is_committed:
            self._head, self._chunked = self._make_head()
        return super()._write(block, last=last)

    def _drop(self, reason: str, code: str) -> None:
        self.dropped = reason

    def _finish(self) -> None:
        if self.run.state is RunState.COMPLETED and self.dropped is None:
            super()._finish()
        else:
            self._client.reset()
