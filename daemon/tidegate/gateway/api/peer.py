"""What the other generation is asked on a client's behalf, during a recycle.

A run that this generation does not know may belong to the other one; what that says is relayed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from aiohttp import web

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats.framing import SSE
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.run import State
from tidegate.gateway.api.run_socket import RunSocket, event_message
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.handover import Peer, PeerStream
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.websocket import WebSocket
from tidegate.gateway.server.writer import Written

_ID_LINE = re.compile(rb"(?:^|\n)id: (\d+)\n")
Ask = Callable[[Peer], Awaitable[web.StreamResponse]]
Look = Callable[[], Relay | None]


async def find_run(
    gateway: Gateway, caller: Caller, run_id: str, ask: Ask
) -> Relay | web.StreamResponse:
    """The run, or the other generation's answer. Raises Refused: 404."""

    def look() -> Relay | None:
        return gateway.registry.find(run_id, caller.owner)

    missing = Refused(404, "there is no such run, or it is no longer kept", "run_not_found")
    return await _find(gateway, caller, look, ask, missing)


async def find_response(
    gateway: Gateway, caller: Caller, response_id: str, ask: Ask
) -> Relay | web.StreamResponse:
    """The run of a response, or the other generation's answer. Raises Refused: 404."""

    def look() -> Relay | None:
        return gateway.registry.find_response(response_id, caller.owner)

    missing = Refused(
        404, "there is no such response, or it is no longer kept", "response_not_found"
    )
    return await _find(gateway, caller, look, ask, missing)


async def _find(
    gateway: Gateway, caller: Caller, look: Look, ask: Ask, missing: Refused
) -> Relay | web.StreamResponse:
    """What was looked for, or else what the other generation answers. Raises `missing`."""
    relay = look()
    peer = gateway.peer_for(caller)
    if relay is not None:
        return relay
    if peer is None:
        raise missing
    try:
        answer = await ask(peer)
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
    if answer.status != 404:
        return answer
    # It may have been handed over to us while the other one was asked.
    return look() or answer


def asking(method: str, path: str, caller: Caller) -> Ask:
    """A plain question to the other generation."""

    async def ask(peer: Peer) -> web.StreamResponse:
        status, body = await peer.ask(method, path, caller.owner)
        return web.Response(status=status, body=body, content_type="application/json")

    return ask


async def stream_from_peer(
    gateway: Gateway, peer: Peer, request: web.BaseRequest, path: str, caller: Caller
) -> web.StreamResponse:
    """Relays the draining generation's own answer, status and all."""
    account = gateway.registry.ledger.open()
    stream = await peer.open_stream(path, caller.owner, account)
    try:
        if stream.status != 200:
            body = b"".join([piece async for piece in stream.pieces()])
            return web.Response(status=stream.status, body=body, content_type="application/json")
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
                **stream.ids,
            }
        )
        await response.prepare(request)
        stall_s = gateway.settings.limits.stall_s
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
    finally:
        stream.close()


async def websocket_from_peer(
    gateway: Gateway, peer: Peer, request: web.BaseRequest, path: str, caller: Caller
) -> web.StreamResponse:
    """The same over WebSocket: the peer's SSE, with its ids, becomes messages."""
    account = gateway.registry.ledger.open()
    stream = await peer.open_stream(path, caller.owner, account)
    try:
        if stream.status not in {200, 204}:
            body = b"".join([piece async for piece in stream.pieces()])
            return web.Response(status=stream.status, body=body, content_type="application/json")
        with RunSocket(gateway, request, caller) as reader:
            reader.open(keeps=False)
            try:
                await _pass_on(stream, reader.socket)
                status, body = await peer.ask("GET", path.rpartition("/")[0], caller.owner)
                summary = msgspec.json.decode(body) if status == 200 else {}
                state, reason = summary.get("state", State.FAILED.value), summary.get("reason")
            except UpstreamError as error:
                state, reason = State.FAILED.value, str(error)
            await reader.finish(state, reason)
        return Written(close=True)
    finally:
        stream.close()


async def _pass_on(stream: PeerStream, socket: WebSocket) -> None:
    """Sends the peer's numbered events, at the pace of the client."""
    unfinished = bytearray()
    async for piece in stream.pieces():
        unfinished += piece
        for seq, event in _take_numbered(unfinished):
            await socket.send(event_message(seq, event))
        with suppress(LedgerFull):  # one event of our own, which was charged where it came from
            socket.account.set(Entry.PARTIAL, len(unfinished))


def _take_numbered(unfinished: bytearray) -> list[tuple[int, bytes]]:
    """Takes the whole events, each with the seq in its `id:` line, off the front."""
    events = SSE.split(bytes(unfinished))
    del unfinished[: sum(map(len, events))]
    return [(int(found[1]), event) for event in events if (found := _ID_LINE.search(event))]
