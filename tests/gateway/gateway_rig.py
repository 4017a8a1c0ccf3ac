"""A whole gateway on the running loop, upstreams that send exact bytes, and the final count.

Every test ends in `Rig.finish`: whatever was played, no byte, run, deadline, place, connection or
task may be left, and nothing may have been logged as an error that the test did not ask for.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from fakes.client import Stream
from fakes.machine import stop_listening, until
from fakes.upstream import DONE, FINISH, ROLE
from tidegate.core import scopes
from tidegate.core.errors import UpstreamError
from tidegate.core.protocol.worker import StateUpdate, StorePlaces
from tidegate.core.settings import (
    History,
    Journal,
    Limits,
    Model,
    Server,
    Settings,
    Token,
    Upstream,
)
from tidegate.gateway.api import routes
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.server.server import GatewayServer
from tidegate.gateway.upstreams.pool import UpstreamPool

DEADLINE_S = 30.0  # what must happen at all has this long on a busy machine
# How a request is answered: in the fast lane with a run, without one, or by aiohttp.
ROADS = ("fast", "light", "ordinary")
ALARM_S = 90.0  # a test that hangs on uvloop hears no signal, so it is ended from inside
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunked(*events: bytes) -> bytes:
    """Each event as one chunk of a body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


def plain(body: bytes, status: bytes = b"200 OK", *fields: bytes) -> bytes:
    """A whole JSON answer; `fields` are whole header lines."""
    lines = [
        b"HTTP/1.1 " + status,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        *fields,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# --- an upstream that sends exact bytes ---------------------------------------------------------


class Peer:
    """One connection to a raw upstream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.gone = False

    async def request(self) -> bytes:
        """The next request, whole. Raises IncompleteReadError when none comes."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        size = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        return head + await self.reader.readexactly(size)

    async def send(self, *data: bytes) -> None:
        """Sends, each piece in a write of its own."""
        for piece in data:
            self.writer.write(piece)
            await self.writer.drain()

    async def hang(self) -> None:
        """Does nothing until the gateway goes away."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.gone = True

    def reset(self) -> None:
        """Ends the connection with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


Play = Callable[[Peer], Awaitable[None]]


class RawUpstream:
    """Plays `play` on every connection; a connection ends with its play."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.peers: list[Peer] = []
        self.open_connections = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> RawUpstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self.open_connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.play(peer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def stop(self) -> None:
        await stop_listening(self._server)
        for task in list(self._tasks):
            task.cancel()
        await until(lambda: not self._tasks, DEADLINE_S, "the raw upstream has ended")


class Tap:
    """An upstream whose events come when the test says so."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def play(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunked(ROLE))
        while piece := await self.pieces.get():
            await peer.send(piece)
        await peer.hang()

    def send(self, *events: bytes) -> None:
        """Sends these events, each as a chunk."""
        self.pieces.put_nowait(chunked(*events))

    def finish(self) -> None:
        """The proper end."""
        self.pieces.put_nowait(chunked(FINISH, DONE) + LAST)


# --- the gateway ----------------------------------------------------------------------------------


@dataclass
class Rig:
    """A gateway with its clients' address, and what must be empty when it is over."""

    gateway: Gateway
    base_url: str
    settings: Settings
    tokens: list[Token]
    errors: list[logging.LogRecord] = field(default_factory=list)
    loop_errors: list[dict[str, Any]] = field(default_factory=list)
    upstreams: tuple[Any, ...] = ()
    peer_socket: str = ""

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self.base_url.rpartition(":")[2])

    @property
    def held_bytes(self) -> int:
        """What runs and requests hold; open connections are not among it."""
        ledger = self.gateway.registry.ledger
        return ledger.total_bytes - ledger.connections.total_bytes

    @property
    def inner(self) -> GatewayServer:
        """Where the other generation and the demo are served: the gateway's own affair."""
        return self.gateway._inner

    def pool(self, name: str = "box") -> UpstreamPool:
        """An upstream."""
        return next(pool for pool in self.gateway.catalog.pools() if pool.name == name)

    def relay(self) -> Relay:
        """The newest run's."""
        [newest] = self.gateway.registry.newest(None, 1)
        found = self.gateway.registry.find(newest.id, None)
        assert found is not None
        return found

    def facts(self, **changes: Any) -> None:
        """What the watchdog says."""
        known: dict[str, Any] = {"level": 0, "ledger_limit_bytes": 0}
        self.gateway.on_state_update(StateUpdate(**(known | changes)))

    def reload(self, settings: Settings) -> None:
        """A reload, as the watchdog orders it."""
        self.settings = settings
        self.gateway.configure(settings, self.tokens, {})

    async def idle(self) -> None:
        """Waits until no run is active and no request is in hand."""
        registry, server = self.gateway.registry, self.gateway.server
        await until(lambda: not registry.active_count, DEADLINE_S, "no run is active")
        await until(lambda: not server.table.busy_connections, DEADLINE_S, "no request is in hand")

    async def finish(self) -> None:
        """Lets everything end, and counts."""
        for stream in Stream.opened:
            await stream.vanish()
        Stream.opened.clear()
        gateway, registry = self.gateway, self.gateway.registry
        await self.idle()
        for pool in gateway.catalog.pools():
            status = pool.status()
            assert (status.active, status.queued) == (0, 0), status
        while registry.finished_count and registry.sweep(gateway.loop.time(), finished=True).runs:
            pass  # some at a time
        await until(lambda: not registry.ledger.accounts, DEADLINE_S, "every account is closed")
        gateway.recorder.flush()
        await gateway.stores.flush(DEADLINE_S)
        stored = registry.ledger.stores
        if any(state.paused for state in gateway.stores.states()):  # then what came waits
            gateway.stores.configure(Journal(keep="off"), History(max_rows=0), StorePlaces())
        await until(lambda: not stored.total_bytes, DEADLINE_S, "what waited is written")
        assert self.held_bytes == 0, registry.ledger.statistics()
        assert (registry.active_count, registry.finished_count) == (0, 0)
        # No answer shows what these keep, and each run would leave a little more of it.
        assert (registry.states(), registry._of_owner, registry._of_response) == ({}, {}, {})
        assert (len(registry._clocks), len(registry._sweeps), len(registry.packing)) == (0, 0, 0)
        pools = gateway.catalog.pools()
        await gateway.close()
        assert registry.ledger.total_bytes == 0, registry.ledger.statistics()
        for pool in pools:
            await until(
                lambda pool=pool: not pool.status().connections,  # type: ignore[misc]
                DEADLINE_S,
                "connections are closed",
            )
        for upstream in self.upstreams:
            await until(
                lambda upstream=upstream: not upstream.open_connections,  # type: ignore[misc]
                DEADLINE_S,
                "the upstream is let go",
            )
        logged = [record.getMessage() for record in self.errors]
        assert not logged, logged
        assert not self.loop_errors, self.loop_errors


async def warm_up(gateway: Gateway) -> None:
    """Opens a connection to the first upstream, so that the first request can be light."""
    pool = next(iter(gateway.catalog.pools()), None)
    with suppress(UpstreamError):
        if pool is not None:
            made = await pool.connect(1.0)
            made.idle_until_s = gateway.loop.time() + 3.0
            pool._on_free(made)  # as if it had answered a request


class _Errors(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Rigs:
    """Starts gateways, and finishes them."""

    def __init__(self, peer_sockets: Callable[[], str], road: str = ROADS[0]) -> None:
        self.road = road
        self._peer_sockets = peer_sockets
        self.started: list[Rig] = []
        self._handlers: list[logging.Handler] = []
        self._before = asyncio.all_tasks()
        self.alarm = asyncio.get_running_loop().call_later(ALARM_S, _cancel_test)

    async def __call__(
        self,
        *upstreams: Upstream | RawUpstream | Any,
        models: dict[str, list[str]] | list[Model] | None = None,
        tokens: list[Token] | None = None,
        secrets: dict[str, str] | None = None,
        peer: bool = False,
        places: StorePlaces | None = None,
        journal: Journal | None = None,
        **limits: Any,
    ) -> Rig:
        """A serving gateway. What is no `Upstream` has a `url` and becomes "box", "box1", ….

        Its models are not asked for, so that the first connection to an upstream is a run's;
        with `peer` it has its Unix socket, and they are. With `places` runs are written down.
        """
        chosen = [
            each
            if isinstance(each, Upstream)
            else Upstream(name=f"box{number or ''}", url=each.url)
            for number, each in enumerate(upstreams)
        ]
        short: dict[str, Any] = {"disconnect_grace_s": 0.05, "close_flush_s": 0.5}
        settings = Settings(
            upstreams=chosen,
            models=models
            if isinstance(models, list)
            else [Model(name=n, targets=t) for n, t in (models or {}).items()],
            server=Server(fast_lane=self.road != "ordinary"),
            limits=Limits(**(short | limits)),
            journal=journal or Journal(),
        )
        peer_socket = self._peer_sockets()
        gateway = Gateway(1 + len(self.started), peer_socket, routes)
        gateway.configure(settings, tokens or [], secrets or {}, places=places)
        if places is not None and not peer:
            await gateway.stores.open()
        if peer:
            await gateway.open()
        sock = socket.create_server(("127.0.0.1", 0))
        rig = Rig(gateway, f"http://127.0.0.1:{sock.getsockname()[1]}", settings, tokens or [])
        rig.upstreams = tuple(each for each in upstreams if not isinstance(each, Upstream))
        rig.peer_socket = peer_socket
        self.started.append(rig)
        await gateway.accept_clients([sock])
        if self.road == "light":
            await warm_up(gateway)
        handler = _Errors(rig.errors)
        logging.getLogger("tidegate").addHandler(handler)
        self._handlers.append(handler)
        gateway.loop.set_exception_handler(lambda _, context: rig.loop_errors.append(context))
        return rig

    async def finish(self) -> None:
        """Finishes every gateway; afterwards no task is left."""
        self.alarm.cancel()
        for handler in self._handlers:
            logging.getLogger("tidegate").removeHandler(handler)
        for rig in reversed(self.started):
            await rig.finish()

    async def no_task_is_left(self) -> None:
        """But for those that were there before."""
        mine = asyncio.current_task()  # a fixture is torn down in another task
        assert mine is not None
        before = self._before | {mine}
        await until(lambda: asyncio.all_tasks() <= before, DEADLINE_S, "no task is left")


async def two_generations(rigs: Rigs, upstream: object, **options: Any) -> tuple[Rig, Rig]:
    """The draining one and the serving one, which know each other."""
    draining = await rigs(upstream, peer=True, **options)
    serving = await rigs(upstream, peer=True, **options)
    serving.facts(peer_socket=draining.peer_socket)
    draining.facts(peer_socket=serving.peer_socket)
    draining.gateway.server.draining = True
    return draining, serving


def scoped(key: str, scope: str = scopes.USE, name: str = "") -> Token:
    """What is stored of a key of that scope; it is called as its scope unless `name` is given."""
    digest = scopes.stored_hash(sha256(key.encode()).hexdigest(), scope)
    return Token(name=name or scope, sha256=digest, scope=scope)


def _cancel_test() -> None:
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__name__", "").startswith("test_"):
            task.cancel(f"it hung for {ALARM_S:g} s")


class Heard:
    """An exchange that writes down what it hears."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self.headers = headers
        self.said.append(("head", status))

    def on_body(self, data: bytes) -> None:
        self.said.append(("body", data))

    def on_end(self) -> None:
        self.said.append(("end",))

    def on_lost(self, reason: str, *, answered: bool) -> None:
        self.said.append(("lost", reason, answered))

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(said[1] for said in self.said if said[0] == "body")

    @property
    def is_over(self) -> bool:
        """The end or the loss has been told."""
        return bool(self.said) and self.said[-1][0] in {"end", "lost"}

    async def over(self) -> None:
        """Waits for the end or the loss."""
        await until(lambda: self.is_over, DEADLINE_S, "the answer is over", 0.002)
