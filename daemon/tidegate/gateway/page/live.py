"""`/v1/live`: what the page shows, told each second to those who look at it.

Nothing is gathered while no page is open. While one is, the watchdog is asked each second for what
it knows, and what is made of it is encoded once for all callers who may see the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

import msgspec

from tidegate import __version__
from tidegate.core.errors import LedgerFull
from tidegate.core.protocol.news import MARKS, Deed, MemoryPoint
from tidegate.core.protocol.status import MemoryState
from tidegate.core.protocol.worker import News
from tidegate.core.records.history import RunRow
from tidegate.core.runs.ledger import Account, Entry
from tidegate.core.sentence import tell_health
from tidegate.gateway import web
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.page import overview as page
from tidegate.gateway.page.overview import PageRun
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import SERVER_ERROR, Refused
from tidegate.gateway.stores.store_thread import StoreUnavailable

MOST_WATCHERS = 64
EVERY_S = 1.0
STALL_S = 30.0  # a watcher that reads nothing for so long is cut
WATCHER_BYTES = 32 * 1024  # its task, its response, and what waits in its transport
ROWS_FRESH_S = 10.0  # a draining worker's runs end in the same history, unseen by this one
_POINTS, _DEEDS = 720, 200  # as many as the watchdog keeps
# Before the watchdog has told anything, or where an older one tells nothing.
_NO_NEWS = News(state="serving", memory=MemoryState(), flat_s=0.0)
_encode = msgspec.json.Encoder().encode
_Key = tuple[str, str]  # scope and owner: callers with the same see the same


async def watch(gateway: Gateway, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    """Tell a page each second what it shows."""
    if request.method == "HEAD":
        raise Refused(405, "a stream has to be read: GET only", "bad_method", close=True)
    return await gateway.feed.serve(request, caller)


class LiveFeed:
    """Tells watchers. One a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watchers = 0
        self._news = _NO_NEWS
        self._points: deque[MemoryPoint] = deque(maxlen=_POINTS)
        self._deeds: deque[Deed] = deque(maxlen=_DEEDS)
        self._events: dict[str, int] = {}  # that each active run has had, this second
        self._former_events: dict[str, int] = {}  # and a second ago
        self._made: dict[_Key, bytes] = {}  # this second's overview
        # The last that are over, after how many ends, and when that was.
        self._finished: dict[_Key, tuple[int, float, list[PageRun]]] = {}
        self._making: dict[_Key, asyncio.Lock] = {}
        self._turn = asyncio.Event()  # set, and replaced, each second
        self._ticker: asyncio.Task[None] | None = None
        self._first = asyncio.Event()  # the watchdog has answered

    def __repr__(self) -> str:
        return f"<LiveFeed {self._watchers} watchers>"

    @property
    def watchers(self) -> int:
        """How many look at the page."""
        return self._watchers

    def on_news(self, news: News) -> None:
        """Take in what the watchdog knows."""
        self._news = news
        newest_point, newest_deed = self._newest()
        self._points.extend(each for each in news.points if each.at > newest_point)
        self._deeds.extend(each for each in news.deeds if each.at > newest_deed)
        self._first.set()

    def _newest(self) -> tuple[float, float]:
        """Tell when the newest point and the newest deed were."""
        point = self._points[-1].at if self._points else 0.0
        return point, self._deeds[-1].at if self._deeds else 0.0

    async def serve(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        """Tell one watcher until it leaves, its token is gone, or this generation drains.

        Raises Refused.
        """
        if self._watchers >= MOST_WATCHERS:
            raise Refused(
                503,
                f"{MOST_WATCHERS} pages are open already; close one",
                "too_many_pages",
                type=SERVER_ERROR,
                headers={"Retry-After": "10"},
            )
        account = self._gateway.registry.ledger.open()
        self._watchers += 1
        try:
            account.set(Entry.RECORD, WATCHER_BYTES)
            return await self._tell(request, caller, account)
        except LedgerFull:
            raise Refused(
                503, "memory is short, so no page is served now", "memory_limit", type=SERVER_ERROR
            ) from None
        finally:
            self._watchers -= 1
            account.close()

    async def _tell(
        self, request: web.BaseRequest, caller: Caller, account: Account
    ) -> web.StreamResponse:
        self._start()
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * EVERY_S):
                await self._first.wait()
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
            }
        )
        response.force_close()  # so that the page comes back to the worker that serves then
        await response.prepare(request)
        point, deed = self._newest()
        block = self._samples()
        while True:
            turn = self._turn
            await self._write(response, request, block + await self._overview(caller), account)
            await turn.wait()
            if self._gateway.server.draining or not self._may_look_on(caller):
                await response.write_eof()
                return response
            points = [_event("sample", _row(each)) for each in self._points if each.at > point]
            marks = [_event("mark", each) for each in self._marks() if each.at > deed]
            block = b"".join(points + marks)
            point, deed = self._newest()

    def _may_look_on(self, caller: Caller) -> bool:
        """Tell whether there is still a turn to wait for, and the caller's token is in force."""
        ticks = self._ticker is not None and not self._ticker.done()
        names = self._gateway.registry.token_names
        return ticks and (caller.owner in names if names else not caller.owner)

    async def _write(
        self,
        response: web.StreamResponse,
        request: web.BaseRequest,
        block: bytes,
        account: Account,
    ) -> None:
        """Write at the watcher's pace, for at most `STALL_S`. Raises ConnectionResetError."""
        transport = request.transport
        try:
            async with asyncio.timeout(STALL_S):
                await response.write(block)
        except TimeoutError:
            if transport is not None:
                transport.abort()
            raise ConnectionResetError("the page reads nothing") from None
        if transport is not None:
            waiting = getattr(transport, "get_write_buffer_size", int)()
            account.set(Entry.OUTBOUND, waiting)

    # --- once a second --------------------------------------------------------------------------

    def _start(self) -> None:
        if self._ticker is None or self._ticker.done():
            self._first.clear()
            self._ask()
            self._ticker = asyncio.ensure_future(self._tick())

    def _ask(self) -> None:
        if self._gateway.ask_news is None:
            self._first.set()
        else:
            self._gateway.ask_news(min(self._newest()))

    async def _tick(self) -> None:
        """Ask, and wake the watchers, for as long as there are any."""
        try:
            while self._watchers:
                await asyncio.sleep(EVERY_S)
                self._former_events = self._events
                under_way = self._gateway.registry.under_way()
                self._events = {relay.run.id: relay.run.window.next_seq for relay in under_way}
                self._made.clear()
                turn, self._turn = self._turn, asyncio.Event()
                turn.set()
                self._ask()
        finally:
            self._turn.set()  # none waits for a turn that does not come
            self._turn = asyncio.Event()
            self._forget()

    def _forget(self) -> None:
        """Hold nothing while no page is open."""
        for each in (self._points, self._deeds, self._made, self._finished, self._making):
            each.clear()
        self._events, self._former_events = {}, {}
        self._news = _NO_NEWS

    # --- what is told ---------------------------------------------------------------------------

    def _samples(self) -> bytes:
        rows = [_row(each) for each in self._points]
        return _event("samples", {"every_s": 10, "rows": rows, "marks": self._marks()})

    def _marks(self) -> list[Deed]:
        return [each for each in self._deeds if each.kind in MARKS]

    async def _overview(self, caller: Caller) -> bytes:
        """Give this second's overview, made once for all who may see the same."""
        key = (caller.scope, caller.owner)
        # Else each of fifty pages would ask the history.
        async with self._making.setdefault(key, asyncio.Lock()):
            made = self._made.get(key)
            if made is None:
                finished = await self._finished_runs(caller, key)
                made = self._made[key] = _event("overview", self._make(caller, finished))
        return made

    async def _finished_runs(self, caller: Caller, key: _Key) -> list[PageRun]:
        """List the last runs that are over; asked anew when one has ended, or now and then."""
        ended, now_s = self._gateway.registry.ended.total(), self._gateway.loop.time()
        known = self._finished.get(key)
        if known is not None and known[0] == ended and now_s - known[1] < ROWS_FRESH_S:
            return known[2]
        stores = self._gateway.stores
        rows: list[RunRow] = []
        with suppress(StoreUnavailable):
            if stores.keeps_rows:
                rows = await stores.list_rows(caller.sees, page.MOST_FINISHED)
        runs = [page.finished_run(row) for row in rows]
        if len(self._finished) >= MOST_WATCHERS:
            self._finished.clear()
        self._finished[key] = (ended, now_s, runs)
        return runs

    def _make(self, caller: Caller, finished: list[PageRun]) -> page.PageOverview:
        gateway, news = self._gateway, self._news
        seen = [
            relay
            for relay in gateway.registry.under_way()
            if caller.sees is None or relay.run.owner == caller.sees
        ]
        newest = sorted(seen, key=lambda relay: relay.run.created, reverse=True)
        names = gateway.registry.token_names
        active = [
            page.active_run(relay, caller, self._former_events.get(relay.run.id), names)
            for relay in newest[: page.MOST_ACTIVE]
        ]
        described, aliases = gateway.catalog.describe(page.MOST_MODELS)
        pools = {pool.name: pool for pool in gateway.catalog.pools()}
        busy = {
            name: (status.active, pool.upstream.max_concurrent, status.queued)
            for name, pool in pools.items()
            for status in (pool.status(),)
        }
        health = tell_health(
            news.state,
            news.reason,
            news.memory,
            flat_s=news.flat_s,
            running=gateway.registry.active_count,
        )
        update = gateway.state_update
        return page.PageOverview(
            version=__version__,
            generation=gateway.generation,
            at=time.time(),
            health=page.PageHealth(*health),
            scope=caller.scope,
            tokens=gateway.asks_for_token,
            memory=page.page_memory(news),
            runs=page.PageRuns(active, len(seen), finished),
            upstreams=page.page_upstreams(described, busy),
            aliases=aliases,
            repairs=update.repairs if update else [],
            decisions=list(self._deeds)[: -page.MOST_DEEDS - 1 : -1],
            addresses=page.find_addresses(news.listen),
        )


def _row(point: MemoryPoint) -> tuple[float, int, int, int, int]:
    base = max(0, point.used - point.explained - point.unexplained)
    return point.at, point.used, base, point.explained, point.unexplained


def _event(name: str, value: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode(value))
