"""Where else a run may be: in the journal, or with the other generation, during a recycle.

A handler that does not know a run raises NotHere. What the journal has of a run that is over is
brought back, and the handler asked again. The run may be the other generation's: then that is
asked, and what it answers is relayed, status and all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec
from aiohttp import hdrs

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats.framing import SSE
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.state import RunState
from tidegate.gateway import web
from tidegate.gateway.api.heads import no_room
from tidegate.gateway.api.run_socket import RunSocket, event_message
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.handover import Peer, PeerStream
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.websocket import WebSocket
from tidegate.gateway.server.writer import AlreadySent
from tidegate.gateway.stores.store_thread import StoreUnavailable

_ID_LINE = re.compile(rb"(?:^|\n)id: (\d+)\n")


class Events(NamedTuple):
    """A request for a run's events: the query that names the first one, and how they are sent."""

    query: str
    over_websocket: bool = False


class NotHere(Refused):
    """This generation does not know what was asked for: 404, unless the other one does."""

    def __init__(
        self, kind: str, sought: str, owner: str | None, events: Events | None = None
    ) -> None:
        """`kind` is "run" or "response", `sought` its id, `owner` whose it must be; None: anyone's.

        `events` are what is wanted of it, if not a summary.
        """
        message = f"there is no such {kind}, or it is no longer kept"
        super().__init__(404, message, f"{kind}_not_found")
        self.kind = kind
        self.sought = sought
        self.owner = owner
        self.events = events


Again = Callable[[], Awaitable[web.StreamResponse]]


async def answer_elsewhere(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, missing: NotHere, again: Again
) -> web.StreamResponse:
    """Answer a request for what is not held here; `again` asks its handler once more.

    Raises `missing` where there is no such thing, Refused (503) where that cannot be found out.
    """
    unread: StoreUnavailable | None = None
    try:
        if await bring_back(gateway, missing):
            with suppress(NotHere):
                return await again()
    except StoreUnavailable as error:
        unread = error
    try:
        answer = await forward(gateway, request, caller, missing)
    except NotHere:
        if unread is not None:
            raise unreadable(unread) from None
        raise
    if answer.status == 404:
        with suppress(NotHere):  # it may have been handed over to us meanwhile
            return await again()
    return answer


async def bring_back(gateway: Gateway, missing: NotHere) -> bool:
    """Have the registry hold again what is sought, if the journal has it and it is over.

    Raises StoreUnavailable, and Refused where there is no room for it.
    """
    try:
        if missing.kind == "run":
            return await gateway.recall.bring_run(missing.sought, missing.owner)
        return await gateway.recall.bring_response(missing.sought, missing.owner or "")
    except LedgerFull as full:
        raise no_room(full) from None


async def forget(gateway: Gateway, run_id: str, owner: str | None) -> None:
    """Have the journal forget a run that is not held any more. Raises Refused."""
    try:
        await gateway.recall.forget(run_id, owner)
    except StoreUnavailable as error:
        raise unreadable(error) from None


def unreadable(error: StoreUnavailable) -> Refused:
    """Say that what was asked for may be in a store that cannot be used just now."""
    return Refused(
        503,
        f"what is kept of former runs cannot be used now: {error}",
        "journal_unavailable",
        type="server_error",
        headers={"Retry-After": "10"},
    )


async def forward(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, missing: NotHere
) -> web.StreamResponse:
    """Answer with what the other generation says.

    Raises `missing` where there is none any more, Refused (503) where it does not answer.
    """
    peer = gateway.peer
    if peer is None:
        raise missing
    try:
        if missing.events is not None:
            return await _forward_events(gateway, peer, request, caller, missing.events)
        method = hdrs.METH_GET if request.method == hdrs.METH_HEAD else request.method
        return _whole(*await peer.ask(method, _path(request), caller.owner, caller.scope))
    except UpstreamError as error:
        if error.code == "connect_failed":
            raise missing from None  # it has gone, and its runs with it
        raise Refused(
            503,
            f"the other generation {error}",
            "generation_unavailable",
            type="server_error",
            headers={"Retry-After": "1"},
        ) from None


def _path(request: web.BaseRequest) -> str:
    """Read the path as it was sent, below /v1."""
    return request.raw_path.partition("?")[0].removeprefix("/v1")


def _whole(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


async def _forward_events(
    gateway: Gateway, peer: Peer, request: web.BaseRequest, caller: Caller, events: Events
) -> web.StreamResponse:
    """Pass on the peer's SSE, as it is or as messages. Raises UpstreamError before the first."""
    path, account = _path(request), gateway.registry.ledger.open()
    stream = await peer.open_stream(f"{path}?{events.query}", caller.owner, account)
    try:
        if events.over_websocket and stream.status in {200, 204}:
            with RunSocket(gateway, request, caller) as reader:
                reader.open(keeps=False)
                how = await _send_messages(stream, reader.socket, peer, caller, path)
                await reader.finish(*how)
            return AlreadySent(close=True)
        if stream.status == 200:
            return await _send_events(stream, request, gateway.settings.limits.stall_s)
        return _whole(stream.status, b"".join([piece async for piece in stream.pieces()]))
    finally:
        stream.close()


async def _send_events(
    stream: PeerStream, request: web.BaseRequest, stall_s: float
) -> web.StreamResponse:
    """Send the peer's stream as it is. Raises ConnectionResetError when either side is gone."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
            **stream.ids,
        }
    )
    try:
        await response.prepare(request)
        async for piece in stream.pieces():
            async with asyncio.timeout(stall_s):
                await response.write(piece)
        async with asyncio.timeout(stall_s):
            await response.write_eof()
        return response
    except (UpstreamError, TimeoutError) as error:
        # The other generation died in the middle, or the client reads nothing: break off, for a
        # clean end would be a lie.
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError(str(error)) from None


async def _send_messages(
    stream: PeerStream, socket: WebSocket, peer: Peer, caller: Caller, path: str
) -> tuple[str, str | None]:
    """Send the peer's events as messages; return the state of their run, and its reason."""
    try:
        await _pass_on(stream, socket)
        status, body = await peer.ask("GET", path.rpartition("/")[0], caller.owner)
    except UpstreamError as error:
        return RunState.FAILED.value, str(error)
    summary = msgspec.json.decode(body) if status == 200 else {}
    return summary.get("state", RunState.FAILED.value), summary.get("reason")


async def _pass_on(stream: PeerStream, socket: WebSocket) -> None:
    """Send the peer's numbered events, at the pace of the client. Raises UpstreamError."""
    unfinished = bytearray()
    async for piece in stream.pieces():
        unfinished += piece
        for seq, event in _take_numbered(unfinished):
            await socket.send(event_message(seq, event))
        with suppress(LedgerFull):  # one event of our own, which was charged where it came from
            socket.account.set(Entry.PARTIAL, len(unfinished))


def _take_numbered(unfinished: bytearray) -> list[tuple[int, bytes]]:
    """Take the whole events, each with the seq in its `id:` line, off the front."""
    events = SSE.split(bytes(unfinished))
    del unfinished[: sum(map(len, events))]
    return [(int(found[1]), event) for event in events if (found := _ID_LINE.search(event))]
