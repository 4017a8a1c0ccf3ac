"""`/v1/runs`: look at runs, join them, resume them, cancel them, forget them.

Whose a run is decides what exists: another key's run is not found, unless the key is there to look
after all. What a run says is for its owner alone. One that this generation does not know may be in
the journal, or belong to the other one during a recycle (`peer`).
"""

from __future__ import annotations

import msgspec

from tidegate.gateway import web
from tidegate.gateway.api.cursor import cursor_after, follow, starting_after, whole_number
from tidegate.gateway.api.peer import Events, NotHere, forget
from tidegate.gateway.api.run_socket import serve_socket
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.handover import PEER_NAME
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.summaries import attempts_of, summarise
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.writer import ResponseWriter
from tidegate.gateway.stores.store_thread import StoreUnavailable

MOST_LISTED = 1000

_encode = msgspec.json.Encoder().encode


async def list_runs(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """List the runs that the caller sees, newest first, a draining generation's included."""
    limit = whole_number(request.query.get("limit", str(MOST_LISTED)), "limit")
    if not 1 <= limit <= MOST_LISTED:
        raise Refused(400, f"limit is a number from 1 to {MOST_LISTED}", "bad_limit")
    # The other one first: a run that is handed over meanwhile is in both lists, not in neither.
    peer = gateway.peer_for(caller)
    elsewhere = await peer.runs(caller.owner, caller.scope) if peer is not None else []
    runs = gateway.registry.newest(caller.sees, limit)
    known = {run.id for run in runs}
    runs += [run for run in elsewhere if run.id not in known]
    missing: dict[str, str] = {}
    if caller.name != PEER_NAME:
        known.update(run.id for run in runs)
        try:
            kept = await gateway.recall.listed(caller.sees, limit)
            runs += [run for run in kept if run.id not in known]
        except StoreUnavailable as error:
            missing = {"incomplete": f"runs that are only in the journal are left out: {error}"}
    runs.sort(key=lambda run: run.created, reverse=True)
    return _json({"object": "list", "data": runs[:limit], **missing})


async def show_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """Show one run."""
    relay = _find(gateway, caller.sees, run_id)
    shown = msgspec.structs.asdict(summarise(relay, gateway.registry.token_names))
    return _json({**shown, "attempt_list": attempts_of(relay.run, gateway.loop.time())})


async def cancel_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """End a run. One that is over already is shown as it is."""
    relay = _find(gateway, caller.ends, run_id)
    relay.cancel("cancelled by client")
    return _json(summarise(relay, gateway.registry.token_names))


async def delete_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """Forget a run, and end it if need be; the history keeps that there was one."""
    gateway.registry.discard(_find(gateway, caller.ends, run_id), "deleted by client")
    await forget(gateway, run_id, caller.ends)
    return _json({"id": run_id, "object": "run", "deleted": True})


async def stream_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, run_id: str
) -> web.StreamResponse:
    """Send the events of a run from a cursor on: over SSE with ids, or over WebSocket."""
    if request.method == "HEAD":
        raise Refused(405, "a stream has to be read: GET only", "bad_method", close=True)
    after = starting_after(request)
    over_websocket = request.headers.get("Upgrade", "").lower() == "websocket"
    events = Events(f"starting_after={after}", over_websocket)
    relay = _find(gateway, caller.owner, run_id, events)
    cursor = cursor_after(relay, after)
    if relay.run.is_over and cursor == relay.run.window.end and not over_websocket:
        return web.Response(status=204)
    if over_websocket:
        return await serve_socket(gateway, relay, request, caller, cursor)
    return await follow(gateway, relay, ResponseWriter.of(request), cursor, ids=True)


def _find(gateway: Gateway, owner: str | None, run_id: str, events: Events | None = None) -> Relay:
    """Find the run, if it is `owner`'s; with None anyone's. Raises NotHere."""
    relay = gateway.registry.find(run_id, owner)
    if relay is None:
        raise NotHere("run", run_id, owner, events)
    return relay


def _json(value: object) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json")
