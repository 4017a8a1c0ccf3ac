"""The gateway of one generation: what every request handler is given.

It puts the parts together and knows no handler: which route leads where is `gateway/api/routes`,
which the worker hands in.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from tidegate.core.brake import Brake
from tidegate.core.protocol.worker import News, StateUpdate, StorePlaces
from tidegate.core.records.history import RunRow
from tidegate.core.runs.ledger import Ledger
from tidegate.core.settings import Settings, Token
from tidegate.gateway import web
from tidegate.gateway.records.recall import Recall
from tidegate.gateway.records.recorder import Recorder
from tidegate.gateway.records.run_log import RunLog
from tidegate.gateway.records.tally import RunTally
from tidegate.gateway.records.values import Names
from tidegate.gateway.relay.evictor import Evictor
from tidegate.gateway.relay.handover import PEER_NAME, Peer
from tidegate.gateway.relay.registry import Registry
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import Subscriber
from tidegate.gateway.server import descriptors
from tidegate.gateway.server.auth import Access, AccessControl, Caller, RequestHead
from tidegate.gateway.server.errors import DEMO_PATH, Refused
from tidegate.gateway.server.porch import Lane
from tidegate.gateway.server.server import GatewayServer
from tidegate.gateway.server.sockets import Sockets
from tidegate.gateway.stores.stores import Stores
from tidegate.gateway.upstreams.catalog import PROBE_S, REFRESH_S, Catalog

log = logging.getLogger("tidegate.gateway")

WRITE_DOWN_S = 1.0  # for the stores, when all is over


Handler = Callable[..., Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """A method and a path; what the path's group matches goes to the handler."""

    method: str
    path: re.Pattern[str]
    access: Access
    handler: Handler


class Feed(Protocol):
    """What tells those who look at the page."""

    def on_news(self, news: News) -> None:
        """Take in what the watchdog knows."""

    async def serve(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        """Tell one of them until it leaves. Raises Refused."""


class Routes(Protocol):
    """What is served, outside and on the inner socket: `gateway/api/routes`."""

    ROUTES: tuple[Route, ...]
    OPEN_PATHS: list[str]  # as regular expressions; they ask for no token

    def make_lane(self, gateway: Gateway) -> Lane:
        """Make what answers the most frequent requests past aiohttp."""

    def make_feed(self, gateway: Gateway) -> Feed:
        """Make what tells those who look at the page."""

    async def handle(self, gateway: Gateway, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a client. Raises Refused."""

    async def handle_inner(self, gateway: Gateway, request: web.BaseRequest) -> web.StreamResponse:
        """Answer the other generation, or us as an upstream. Raises Refused."""


class Gateway:
    """One generation's gateway. Needs a running loop."""

    def __init__(
        self,
        generation: int,
        peer_socket: str,
        routes: Routes,
        resident_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """`routes` is what is served; `resident_bytes` is asked by a scrape of the metrics."""
        self.generation = generation
        self.loop = asyncio.get_running_loop()
        self.settings = Settings()
        self.registry = Registry(Ledger(), self.loop)
        self.registry.limits = lambda: self.settings.limits
        self.sockets = Sockets(self.registry.ledger)
        self.tally = RunTally()
        self.run_log = RunLog(self.loop)
        self.state_update: StateUpdate | None = None
        self.parked: str | None = None  # why nothing is served
        self._peer: Peer | None = None  # the other generation, while there is one
        self.loop_lag_s = 0.0
        self.resident_bytes = resident_bytes
        self.routes = routes
        self.stores = Stores(self.loop, self.registry.ledger.stores)
        self.stores.on_interrupted = self._on_interrupted
        self._places = StorePlaces()
        self.recorder = Recorder(self.loop, self.stores, self.registry.under_way)
        self.recorder.on_row = self._on_row
        self.registry.recording = self.recorder
        self.recall = Recall(self.registry, self.recorder, self.stores, self.loop)
        self.server = GatewayServer(
            partial(routes.handle, self),
            lambda: self.settings.limits,
            ledger=self.registry.ledger,
            open_paths=routes.OPEN_PATHS,
        )
        self.server.lane = self._lane = routes.make_lane(self)
        self.feed = routes.make_feed(self)
        self.ask_news: Callable[[float], None] | None = None  # of a watchdog that tells any
        self.evictor = Evictor(
            self.registry,
            sockets=self.sockets,
            make_room=self.server.table.make_room,
            drop_caches=self._drop_caches,
        )
        self._inner = GatewayServer(
            partial(routes.handle_inner, self), lambda: self.settings.limits
        )
        self._peer_socket = peer_socket
        self._peer_is_open = False
        self._refresh = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._brake = Brake()
        self._access = AccessControl(allowed_hosts=[], host_name="", tokens=[])
        self.catalog = Catalog(self.settings, {}, self._demo_url)

    # --- settings -----------------------------------------------------------------------------

    @property
    def _demo_url(self) -> str:
        return f"unix:{self._peer_socket}:{DEMO_PATH}"

    def configure(
        self,
        settings: Settings,
        tokens: list[Token],
        secrets: dict[str, str],
        headers: Mapping[str, dict[str, str]] | None = None,
        authorities: Mapping[str, str] | None = None,
        *,
        places: StorePlaces | None = None,
    ) -> None:
        """New settings for everything that begins from now on. Raises ValueError, changes nothing.

        `places` is where runs are written down; None: where they were. Runs under way keep the
        limits that they began with.
        """
        access = AccessControl(
            allowed_hosts=settings.allowed_hosts,
            allowed_origins=settings.allowed_origins,
            host_name=socket.gethostname(),
            tokens=tokens,
            brake=self._brake,
        )
        catalog = Catalog(settings, secrets, self._demo_url, headers or {}, authorities or {})
        catalog.adopt(self.catalog)
        self.settings, self._access, self.catalog = settings, access, catalog
        self.registry.token_names = access.names
        self._lane.forget()
        self._places = self._places if places is None else places
        self.stores.configure(settings.journal, settings.history, self._places)
        self.recorder.configure(settings.journal, Names(access.names, settings.models))
        self.run_log.tells_all = settings.log_requests
        self.server.table.places = descriptors.places_for(settings.limits.max_connections)

    def on_state_update(self, update: StateUpdate) -> None:
        """The watchdog's view, once a second: the ledger's limit, and where the other one is."""
        self.state_update = update
        self._access.tell_wrong_keys()
        self.registry.ledger.limit_bytes = update.ledger_limit_bytes
        self.evictor.shrink_buffers(half=update.squeeze)
        self.meet(update.peer_socket)
        for pool in self.catalog.pools():
            pool.share(update.peer_active.get(pool.name, 0))

    def meet(self, socket_path: str | None) -> None:
        """Where the other generation listens, or that there is none."""
        if (self._peer.socket_path if self._peer else None) == socket_path:
            return
        if self._peer is not None:
            self._peer.close()
        self._peer = Peer(socket_path, self.settings.limits) if socket_path else None

    @property
    def peer(self) -> Peer | None:
        """The other generation, while there is one."""
        return self._peer

    def peer_for(self, caller: Caller) -> Peer | None:
        """Who else may know what `caller` asks for; never asked when it is the one that asks."""
        return None if caller.name == PEER_NAME else self._peer

    # --- life ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Opens the stores and the inner socket, and learns what models there are."""
        await self.stores.open()
        if self._peer_socket:
            await self._inner.listen(_bind_unix(self._peer_socket))
            self._peer_is_open = True
        await self.catalog.refresh()
        self._spawn(self._refresh_models())

    async def listen_for_peers(self, path: str) -> None:
        """Opens the inner socket again, if it is not at `path` any more. Raises OSError."""
        if not path or not self._peer_is_open:
            return
        if path == self._peer_socket and _is_socket(path):
            return
        sock = _bind_unix(path)
        self._inner.stop_accepting()
        self._peer_socket = path
        await self._inner.listen(sock)

    async def accept_clients(self, listeners: list[socket.socket]) -> None:
        """Serves on these sockets, which the watchdog bound."""
        for listener in listeners:
            await self.server.listen(listener)

    def stop_accepting(self) -> None:
        """Leave new connections to the successor; open ones are served to their end."""
        self.server.draining = True
        self.server.stop_accepting()

    async def close(
        self, reason: str = "cancelled: tidegate is stopping", within_s: float = math.inf
    ) -> None:
        """Ends what is left, and leaves nothing behind. `reason` is what readers are told.

        Who does not read it `within_s` is cut.
        """
        for relay in self.registry.active():
            relay.cancel(reason)
        flush_s = min(self.settings.limits.close_flush_s, within_s / 2)
        await asyncio.gather(
            self.server.shutdown(flush_s, flush_s),
            self._inner.shutdown(flush_s, flush_s),
            self._write_down(min(WRITE_DOWN_S, within_s)),
        )
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.catalog.close()
        self.meet(None)
        self.registry.close()
        self.recorder.close()
        self.run_log.close()
        self.stores.close()
        if self._peer_socket:
            _unlink(self._peer_socket)

    def _on_row(self, row: RunRow, reason: str | None) -> None:
        self.tally.count(row)
        self.run_log.note(row, reason)

    def _on_interrupted(self, rows: Sequence[RunRow]) -> None:
        for row in rows:
            self._on_row(row, "its worker died")

    async def _write_down(self, within_s: float) -> None:
        """Have the stores write what has ended."""
        self.recorder.flush()
        await self.stores.flush(within_s)

    def _drop_caches(self) -> None:
        """Give up what can be had again: idle connections to upstreams, what sockets remember."""
        self.sockets.forget()
        for pool in self.catalog.pools():
            pool.close_idle()

    def refresh_models_soon(self) -> None:
        """Asks the upstreams of new settings now."""
        self._refresh.set()

    async def _refresh_models(self) -> None:
        """Keeps the list of models fresh, whatever catalog a reload put in place.

        In between it looks often at the upstreams of whom a look decides something.
        """
        due_s = self.loop.time() + REFRESH_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await self._refresh.wait()
            is_due = self._refresh.is_set() or self.loop.time() >= due_s
            self._refresh.clear()
            try:
                if is_due:
                    due_s = self.loop.time() + REFRESH_S
                    await self.catalog.refresh()
                else:
                    await self.catalog.probe()
            except Exception:
                log.exception("the list of models could not be refreshed")

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- requests -----------------------------------------------------------------------------

    def authenticate(self, request: web.BaseRequest, access: Access) -> Caller:
        """Find out who sends a request. Raises Refused: 401, 403 or 429."""
        if fields := self._access.pages.fields(request.headers):
            request[web.PAGE_FIELDS] = fields
        over_unix = getattr(request.protocol, "over_unix", False)
        return self._access.authenticate(request, access, over_unix=over_unix)

    def preflight(self, request: web.BaseRequest) -> Mapping[str, str] | None:
        """Answer a browser that asks what an allowed page may send. Raises Refused (400)."""
        return self._access.preflight(request)

    @contextmanager
    def reading(self, relay: Relay, subscriber: Subscriber) -> Iterator[None]:
        """A subscriber belongs to its relay for as long as its request is served."""
        relay.attach(subscriber)
        try:
            yield
        finally:
            self.registry.detach(relay, subscriber)

    def recognise(self, head: RequestHead) -> Caller | None:
        """Find the caller that asks a model, if it may; a refusal is not told nor counted."""
        return self._access.recognise(head, Access.USE)

    @property
    def asks_for_token(self) -> bool:
        """Whether there is a token, so that each request needs one."""
        return bool(self.registry.token_names)

    @property
    def admits_all(self) -> bool:
        """Whether nothing stands against a new run, whosever it is."""
        update = self.state_update
        is_shedding = update is not None and update.shed is not None
        return not (self.parked or self.server.draining or is_shedding)

    def refuse_when_shedding(self) -> None:
        """Raises Refused when memory is so short that nothing new may begin."""
        if self.state_update is not None and self.state_update.shed is not None:
            raise Refused(
                503,
                f"no new runs until memory is back: {self.state_update.shed}",
                "memory_limit",
                type="server_error",
                headers={"Retry-After": "10"},
            )

    def why_not_ready(self) -> list[str]:
        """Empty when it can serve."""
        reasons = [f"parked: {self.parked}"] if self.parked is not None else []
        if self.server.draining:
            reasons.append("draining")
        if not self.catalog.can_serve and self.parked is None:
            reasons.append("no upstream can be reached")
        if self.state_update is not None and self.state_update.shed is not None:
            reasons.append(self.state_update.shed)
        return reasons


def _bind_unix(path: str) -> socket.socket:
    _unlink(path)  # a generation's number is used once; this is a crash's remains
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    Path(path).chmod(0o600)
    sock.listen(128)
    sock.setblocking(False)
    return sock


def _is_socket(path: str) -> bool:
    return Path(path).is_socket()


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        Path(path).unlink()
