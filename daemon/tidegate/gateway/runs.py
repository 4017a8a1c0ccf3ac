"""`/v1/runs`: look at runs, join them, resume them, cancel them.

A run that this generation does not know may belong to the other one during a recycle; then that is
asked, and what it says is relayed. Whose a run is decides what exists: another key's run is not
found.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
from aiohttp import web

from tidegate.core.errors import CursorEvicted, UpstreamError
from tidegate.core.run import State
from tidegate.core.sse import event_data, event_name, split_events
from tidegate.core.window import Cursor
from tidegate.gateway.answers import stream_head
from tidegate.gateway.client import Client, Written
from tidegate.gateway.door import Caller
from tidegate.gateway.errors import Refused
from tidegate.gateway.handoff import Peer
from tidegate.gateway.registry import summarise
from tidegate.gateway.relay import Relay
from tidegate.gateway.subscriber import StreamSubscriber, Subscriber

if TYPE_CHECKING:
    from tidegate.gateway.app import Gateway

MOST_LISTED = 1000
_MAX_SEQ = 2**53
_ID_LINE = re.compile(rb"(?:^|\n)id: (\d+)\n")

_encode = msgspec.json.Encoder().encode


async def list_runs(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """The caller's runs, newest first, those of a draining generation included."""
    limit = _whole_number(request.query.get("limit", str(MOST_LISTED)), "limit")
    if not 1 <= limit <= MOST_LISTED:
        raise Refused(400, f"limit is a number from 1 to {MOST_LISTED}", "bad_limit")
    # The other one first: a run that is handed over meanwhile is in both lists, not in neither.
    peer = gateway.peer_for(caller)
    elsewhere = await peer.runs(caller.owner) if peer is not None else []
    runs = gateway.registry.newest(caller.owner, limit)
    known = {run.id for run in runs}
    runs += [run for run in elsewhere if run.id not in known]
    runs.sort(key=lambda run: run.created, reverse=True)
    return _json({"object": "list", "data": runs[:limit]})


async def show_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """One run."""
    found = await _find(gateway, caller, run_id, _asking("GET", run_id, "", caller))
    return _json(summarise(found)) if isinstance(found, Relay) else found


async def cancel_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """Ends a run. One that is over already is shown as it is."""
    found = await _find(gateway, caller, run_id, _asking("POST", run_id, "/cancel", caller))
    if not isinstance(found, Relay):
        return found
    found.cancel("cancelled by client")
    return _json(summarise(found))


async def stream_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """The events of a run from a cursor on: over SSE with ids, or over WebSocket."""
    if request.method == "HEAD":
        raise Refused(405, "a stream has to be read: GET only", "bad_method", close=True)
    after = _starting_after(request)
    over_websocket = request.headers.get("Upgrade", "").lower() == "websocket"
    from_peer = _websocket_from_peer if over_websocket else _stream_from_peer

    async def ask(peer: Peer) -> web.StreamResponse:
        path = f"/runs/{quote(run_id, safe='')}/stream?starting_after={after}"
        return await from_peer(gateway, peer, request, path, caller)

    relay = await _find(gateway, caller, run_id, ask)
    if not isinstance(relay, Relay):
        return relay
    cursor = _cursor(relay, after)
    if relay.run.is_over and cursor == relay.run.window.end and not over_websocket:
        return web.Response(status=204)
    if over_websocket:
        return await _websocket(gateway, relay, request, cursor)
    client = Client(request)
    subscriber = StreamSubscriber(
        relay.run, client, stream_head(relay.run, client), cursor=cursor, ids=True
    )
    with gateway.reading(relay, subscriber):
        subscriber.commit()
        await subscriber.serve()
    return Written(close=client.closes)


# --- where to start ---------------------------------------------------------------------------


def _starting_after(request: web.BaseRequest) -> int:
    """The last seq that the caller has; -1 for none."""
    text = request.query.get("starting_after") or request.headers.get("Last-Event-ID") or "-1"
    return -1 if text == "-1" else _whole_number(text, "starting_after")


def _whole_number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:17]) < _MAX_SEQ and len(text) < 17):
        raise Refused(400, f"{name} is a whole number", "bad_number", param=name)
    return int(text)


def _cursor(relay: Relay, after: int) -> Cursor:
    """Where reading starts. Raises Refused: 400 in the future, 410 when it is gone."""
    run = relay.run
    if not run.streamed:
        raise Refused(400, "this run is not a stream: its answer comes in one piece", "no_stream")
    window = run.window
    if after >= window.next_seq:
        raise Refused(
            400, f"there is no event {after} yet; the next one is {window.next_seq}", "cursor_ahead"
        )
    try:
        return window.cursor(after + 1 if after >= 0 else window.first_seq)
    except CursorEvicted as evicted:
        raise Refused(410, str(evicted), evicted.code, param="starting_after") from None


# --- over WebSocket -----------------------------------------------------------------------------


def _message(seq: int, event: bytes) -> str:
    data = event_data(event).decode("utf-8", "replace")
    return _encode({"seq": seq, "event": event_name(event), "data": data}).decode()


class _Reader:
    """A WebSocket that events are sent to, and that may close at any time."""

    def __init__(self, request: web.BaseRequest, keepalive_s: float) -> None:
        self.socket = web.WebSocketResponse(
            heartbeat=keepalive_s, compress=False, max_msg_size=64 * 1024
        )
        self._request = request
        self._listener: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Shakes hands; from then on whoever opened it is cancelled when the client leaves."""
        await self.socket.prepare(self._request)
        owner = asyncio.current_task()
        assert owner is not None
        self._listener = asyncio.create_task(self._listen(owner))

    async def _listen(self, owner: asyncio.Task[object]) -> None:
        """Pings are answered while somebody receives; what a client says means nothing here."""
        async for _ in self.socket:
            pass
        owner.cancel()

    async def close(self, last: dict[str, object]) -> None:
        """The last word, and the closing handshake."""
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        if not self.socket.closed:
            await self.socket.send_str(_encode(last).decode())
            await self.socket.close()

    def drop(self) -> None:
        """Leaves nothing behind."""
        if self._listener is not None:
            self._listener.cancel()


async def _websocket(
    gateway: Gateway, relay: Relay, request: web.BaseRequest, cursor: Cursor
) -> web.StreamResponse:
    run = relay.run
    client = Client(request)
    reader = _Reader(request, run.limits.keepalive_s)
    subscriber = Subscriber(run, cursor, client)
    with gateway.reading(relay, subscriber):
        await reader.open()
        try:
            last = await _pump(subscriber, client, reader)
            await reader.close(last)
        finally:
            reader.drop()
    return reader.socket


async def _pump(subscriber: Subscriber, client: Client, reader: _Reader) -> dict[str, object]:
    """Sends events until the run is over; returns the last word."""
    run = subscriber.run
    while True:
        try:
            block, end = run.window.read(subscriber.cursor)
        except CursorEvicted as evicted:
            reason = run.reason if run.released else f"read too slowly: {evicted}"
            return {"state": run.state.value, "reason": reason}
        for seq, event in enumerate(split_events(block), subscriber.cursor.seq):
            message = _message(seq, event)
            await reader.socket.send_str(message)
            client.wrote(len(message))
        if block:
            subscriber.cursor = end
            subscriber.outbound_bytes = client.outbound_bytes
            subscriber.on_progress()
        elif run.is_over:
            return {"state": run.state.value, "reason": run.reason}
        else:
            await subscriber.wait()


# --- through the other generation -----------------------------------------------------------------


Ask = Callable[[Peer], Awaitable[web.StreamResponse]]


async def _find(
    gateway: Gateway, caller: Caller, run_id: str, ask: Ask
) -> Relay | web.StreamResponse:
    """The run, or else what the other generation answers. Raises Refused when nobody has it."""
    relay = gateway.registry.find(run_id, caller.owner)
    peer = gateway.peer_for(caller)
    if relay is not None:
        return relay
    if peer is None:
        raise _not_found()
    answer = await ask(peer)
    if answer.status != 404:
        return answer
    # It may have been handed over to us while the other one was asked.
    return gateway.registry.find(run_id, caller.owner) or answer


def _asking(method: str, run_id: str, verb: str, caller: Caller) -> Ask:
    async def ask(peer: Peer) -> web.StreamResponse:
        try:
            path = f"/runs/{quote(run_id, safe='')}{verb}"
            status, body = await peer.ask(method, path, caller.owner)
        except UpstreamError as error:
            return _peer_failed(error).response()
        return web.Response(status=status, body=body, content_type="application/json")

    return ask


async def _stream_from_peer(
    gateway: Gateway, peer: Peer, request: web.BaseRequest, path: str, caller: Caller
) -> web.StreamResponse:
    """Relays the draining generation's own answer, status and all."""
    try:
        stream = await peer.open_stream(path, caller.owner)
    except UpstreamError as error:
        return _peer_failed(error).response()
    try:
        if stream.status != 200:
            body = b"".join([piece async for piece in stream.pieces()])
            return web.Response(status=stream.status, body=body, content_type="application/json")
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
                "x-run-id": path.split("/")[2],
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


async def _websocket_from_peer(
    gateway: Gateway, peer: Peer, request: web.BaseRequest, path: str, caller: Caller
) -> web.StreamResponse:
    """The same over WebSocket: the peer's SSE, with its ids, becomes messages."""
    try:
        stream = await peer.open_stream(path, caller.owner)
    except UpstreamError as error:
        return _peer_failed(error).response()
    reader = _Reader(request, gateway.settings.limits.keepalive_s)
    try:
        if stream.status not in {200, 204}:
            body = b"".join([piece async for piece in stream.pieces()])
            return web.Response(status=stream.status, body=body, content_type="application/json")
        await reader.open()
        unfinished = bytearray()
        async for piece in stream.pieces():
            unfinished += piece
            for seq, event in _take_numbered(unfinished):
                await reader.socket.send_str(_message(seq, event))
        status, body = await peer.ask("GET", path.rpartition("/")[0], caller.owner)
        summary = msgspec.json.decode(body) if status == 200 else {}
        state, reason = summary.get("state", State.FAILED.value), summary.get("reason")
        await reader.close({"state": state, "reason": reason})
        return reader.socket
    except UpstreamError as error:
        await reader.close({"state": State.FAILED.value, "reason": str(error)})
        return reader.socket
    finally:
        stream.close()
        reader.drop()


def _take_numbered(unfinished: bytearray) -> list[tuple[int, bytes]]:
    """Takes the whole events, each with the seq in its `id:` line, off the front."""
    events = split_events(bytes(unfinished))
    del unfinished[: sum(map(len, events))]
    return [(int(found[1]), event) for event in events if (found := _ID_LINE.search(event))]


def _not_found() -> Refused:
    return Refused(404, "there is no such run, or it is no longer kept", "run_not_found")


def _peer_failed(error: UpstreamError) -> Refused:
    if error.code == "connect_failed":
        return _not_found()  # it has gone, and its runs with it
    return Refused(
        503,
        f"the other generation {error}",
        "generation_unavailable",
        type="server_error",
        headers={"Retry-After": "1"},
    )


def _json(value: object) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json")
