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

import msgspec
from aiohttp import web

from tidegate.core.errors import CursorEvicted, LedgerFull, UpstreamError
from tidegate.core.formats.framing import SSE, Framing
from tidegate.core.http.frames import CloseCode
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.run import Run, State
from tidegate.core.runs.window import Cursor
from tidegate.gateway.api import responses
from tidegate.gateway.api.create import stream_head
from tidegate.gateway.relay.handover import Peer, PeerStream
from tidegate.gateway.relay.registry import attempts_of, summarise
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import StreamSubscriber, Subscriber
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.websocket import WRITE_BYTES, SocketEnded, WebSocket, text_frame
from tidegate.gateway.server.writer import Client, Written

if TYPE_CHECKING:
    from tidegate.gateway.gateway import Gateway

MOST_LISTED = 1000
MOST_SAID_BYTES = 64 * 1024  # in a message, where what a client says means nothing
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
    found = await _find_run(gateway, caller, run_id, _asking("GET", f"/runs/{run_id}", caller))
    if not isinstance(found, Relay):
        return found
    shown = msgspec.structs.asdict(summarise(found))
    return _json({**shown, "attempt_list": attempts_of(found.run, gateway.loop.time())})


async def cancel_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """Ends a run. One that is over already is shown as it is."""
    ask = _asking("POST", f"/runs/{run_id}/cancel", caller)
    found = await _find_run(gateway, caller, run_id, ask)
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
        path = f"/runs/{run_id}/stream?starting_after={after}"
        return await from_peer(gateway, peer, request, path, caller)

    relay = await _find_run(gateway, caller, run_id, ask)
    if not isinstance(relay, Relay):
        return relay
    cursor = _cursor(relay, after)
    if relay.run.is_over and cursor == relay.run.window.end and not over_websocket:
        return web.Response(status=204)
    if over_websocket:
        return await _websocket(gateway, relay, request, caller, cursor)
    client = Client(request)
    return await _follow(gateway, relay, client, cursor, ids=True)


async def _follow(
    gateway: Gateway, relay: Relay, client: Client, cursor: Cursor, *, ids: bool
) -> web.StreamResponse:
    """Reads a run to its end from `cursor` on."""
    head = stream_head(relay.run, client, SSE if ids else relay.run.format.framing)
    subscriber = StreamSubscriber(relay.run, client, head, cursor=cursor, ids=ids)
    with gateway.reading(relay, subscriber):
        subscriber.commit()
        await subscriber.serve()
    return Written(close=client.closes)


# --- responses, by the ids that OpenAI's clients know ----------------------------------------


async def show_response(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """A response as it is now, or with `stream=true` its events from a cursor on."""
    after = _starting_after(request)
    if not _wants_stream(request):
        ask = _asking("GET", f"/responses/{response_id}", caller)
        found = await _find_response(gateway, caller, response_id, ask)
        return responses.show(found) if isinstance(found, Relay) else found

    async def ask_stream(peer: Peer) -> web.StreamResponse:
        path = f"/responses/{response_id}?stream=true&starting_after={after}"
        return await _stream_from_peer(gateway, peer, request, path, caller)

    found = await _find_response(gateway, caller, response_id, ask_stream)
    if not isinstance(found, Relay):
        return found
    responses.check_streamable(found.run)
    return await _follow(gateway, found, Client(request), _cursor(found, after), ids=False)


async def cancel_response(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """Ends a background response; one that is over is shown as it is."""
    ask = _asking("POST", f"/responses/{response_id}/cancel", caller)
    found = await _find_response(gateway, caller, response_id, ask)
    if not isinstance(found, Relay):
        return found
    responses.check_cancellable(found.run)
    found.cancel("cancelled by client")
    return responses.show(found)


async def delete_response(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """Forgets a response, and ends it if need be."""
    ask = _asking("DELETE", f"/responses/{response_id}", caller)
    found = await _find_response(gateway, caller, response_id, ask)
    if not isinstance(found, Relay):
        return found
    gateway.registry.discard(found, "deleted by client")
    return responses.deleted(response_id)


async def list_input_items(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """Says of a response that there is one, and that this is not kept."""
    ask = _asking("GET", f"/responses/{response_id}/input_items", caller)
    found = await _find_response(gateway, caller, response_id, ask)
    if not isinstance(found, Relay):
        return found
    raise responses.no_input_items()


# --- where to start ---------------------------------------------------------------------------


def _wants_stream(request: web.BaseRequest) -> bool:
    text = request.query.get("stream", "false").lower()
    if text not in {"true", "false"}:
        raise Refused(400, "stream is true or false", "bad_boolean", param="stream")
    return text == "true"


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


def _message(seq: int, event: bytes, framing: Framing = SSE) -> bytes:
    data = framing.data(event).decode("utf-8", "replace")
    return _encode({"seq": seq, "event": framing.event_name(event), "data": data})


class _Reader:
    """A WebSocket that events are sent to, and that may close at any time."""

    def __init__(self, gateway: Gateway, request: web.BaseRequest, caller: Caller) -> None:
        self.socket = WebSocket(gateway, request, caller.owner, MOST_SAID_BYTES)
        self._listener: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Shakes hands; from then on whoever opened it is cancelled when the client leaves."""
        self.socket.open(keeps=False)
        owner = asyncio.current_task()
        assert owner is not None
        self._listener = asyncio.create_task(self._listen(owner))

    async def _listen(self, owner: asyncio.Task[object]) -> None:
        """Pings are answered while somebody receives; what a client says means nothing here."""
        with suppress(ConnectionError):
            try:
                while True:
                    await self.socket.receive()
            except SocketEnded as ended:
                await self.socket.close(ended.code, ended.reason)
        owner.cancel()

    async def close(self, last: dict[str, object]) -> None:
        """The last word, and the closing handshake."""
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        await self.socket.send(_encode(last))
        await self.socket.close(CloseCode.OK)

    def drop(self) -> None:
        """Leaves nothing behind."""
        listener, self._listener = self._listener, None  # how it ended holds us
        if listener is not None:
            listener.cancel()
        self.socket.drop()


async def _websocket(
    gateway: Gateway, relay: Relay, request: web.BaseRequest, caller: Caller, cursor: Cursor
) -> web.StreamResponse:
    reader = _Reader(gateway, request, caller)
    try:
        subscriber = Subscriber(relay.run, cursor, reader.socket.client)
        reader.socket.reader = subscriber
        with gateway.reading(relay, subscriber):
            reader.open()
            await reader.close(await _pump(subscriber, reader.socket))
    finally:
        reader.drop()
    return Written(close=True)


async def _pump(subscriber: Subscriber, socket: WebSocket) -> dict[str, object]:
    """Sends events until the run is over, at the pace of the client; returns the last word."""
    run = subscriber.run
    while True:
        try:
            frames, subscriber.cursor = _frames(run, subscriber.cursor)
        except CursorEvicted as evicted:
            reason = run.reason if run.released else f"read too slowly: {evicted}"
            return {"state": run.state.value, "reason": reason}
        if frames:
            keeps_up = socket.write(frames)
            del frames  # they may be waited with for long: they would be in no account
            subscriber.on_progress()
            if not keeps_up:
                await socket.drained()
        elif run.is_over:
            return {"state": run.state.value, "reason": run.reason}
        else:
            await subscriber.wait()


def _frames(run: Run, cursor: Cursor) -> tuple[bytes, Cursor]:
    """The next events as frames, and the cursor behind them. Raises CursorEvicted."""
    framing = run.format.framing
    block, _ = run.window.read(cursor)
    frames: list[bytes] = []
    size = 0
    for event in framing.split(block):
        frames.append(text_frame(_message(cursor.seq, event, framing)))
        size += len(event)
        cursor = Cursor(cursor.seq + 1, cursor.offset + len(event))
        if size >= WRITE_BYTES:
            break
    return b"".join(frames), cursor


# --- through the other generation -----------------------------------------------------------------


Ask = Callable[[Peer], Awaitable[web.StreamResponse]]
Look = Callable[[], Relay | None]


async def _find_run(
    gateway: Gateway, caller: Caller, run_id: str, ask: Ask
) -> Relay | web.StreamResponse:
    def look() -> Relay | None:
        return gateway.registry.find(run_id, caller.owner)

    missing = Refused(404, "there is no such run, or it is no longer kept", "run_not_found")
    return await _find(gateway, caller, look, ask, missing)


async def _find_response(
    gateway: Gateway, caller: Caller, response_id: str, ask: Ask
) -> Relay | web.StreamResponse:
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


def _asking(method: str, path: str, caller: Caller) -> Ask:
    async def ask(peer: Peer) -> web.StreamResponse:
        status, body = await peer.ask(method, path, caller.owner)
        return web.Response(status=status, body=body, content_type="application/json")

    return ask


async def _stream_from_peer(
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


async def _websocket_from_peer(
    gateway: Gateway, peer: Peer, request: web.BaseRequest, path: str, caller: Caller
) -> web.StreamResponse:
    """The same over WebSocket: the peer's SSE, with its ids, becomes messages."""
    account = gateway.registry.ledger.open()
    stream = await peer.open_stream(path, caller.owner, account)
    reader = None
    try:
        if stream.status not in {200, 204}:
            body = b"".join([piece async for piece in stream.pieces()])
            return web.Response(status=stream.status, body=body, content_type="application/json")
        reader = _Reader(gateway, request, caller)
        reader.open()
        await _pass_on(stream, reader.socket)
        status, body = await peer.ask("GET", path.rpartition("/")[0], caller.owner)
        summary = msgspec.json.decode(body) if status == 200 else {}
        state, reason = summary.get("state", State.FAILED.value), summary.get("reason")
        await reader.close({"state": state, "reason": reason})
        return Written(close=True)
    except UpstreamError as error:
        if reader is None:
            raise
        await reader.close({"state": State.FAILED.value, "reason": str(error)})
        return Written(close=True)
    finally:
        stream.close()
        if reader is not None:
            reader.drop()


async def _pass_on(stream: PeerStream, socket: WebSocket) -> None:
    """Sends the peer's numbered events, at the pace of the client."""
    unfinished = bytearray()
    async for piece in stream.pieces():
        unfinished += piece
        for seq, event in _take_numbered(unfinished):
            await socket.send(_message(seq, event))
        with suppress(LedgerFull):  # one event of our own, which was charged where it came from
            socket.account.set(Entry.PARTIAL, len(unfinished))


def _take_numbered(unfinished: bytearray) -> list[tuple[int, bytes]]:
    """Takes the whole events, each with the seq in its `id:` line, off the front."""
    events = SSE.split(bytes(unfinished))
    del unfinished[: sum(map(len, events))]
    return [(int(found[1]), event) for event in events if (found := _ID_LINE.search(event))]


def _json(value: object) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json")
