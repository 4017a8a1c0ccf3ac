"""Responses that are asked for later: in the background, by id, again, as OpenAI has them.

The run does what OpenAI's servers do. It goes on when its creator has left, keeps the answer for
`keep_finished_s`, and its events can be read from any point. So a response made with
`background: true` gets an id of ours at once, and its events are numbered by us: an upstream is
only asked for a plain stream, and need not know the word. Every other response keeps the id that
its upstream gave it.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec
from msgspec import Raw

from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import RequestInfo
from tidegate.core.formats.responses import Rewriter, bare_response, failed_response, response_in
from tidegate.core.runs.run import Run
from tidegate.core.runs.state import RunState
from tidegate.gateway import web
from tidegate.gateway.api.cursor import cursor_after, follow, starting_after
from tidegate.gateway.api.peer import Events, NotHere, forget
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.request import RequestExtras
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.ids import id_headers
from tidegate.gateway.server.writer import ResponseWriter
from tidegate.gateway.stores.store_thread import StoreUnavailable
from tidegate.gateway.upstreams.choice import Target

_encode = msgspec.json.encode
_STATUS = {
    RunState.QUEUED: "queued",
    RunState.CONNECTING: "queued",
    RunState.STREAMING: "in_progress",
}


async def show_response(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """Show a response as it is now, or with `stream=true` its events from a cursor on."""
    after = starting_after(request)
    if not _wants_stream(request):
        return show(_find(gateway, caller, response_id))
    events = Events(f"stream=true&starting_after={after}")
    relay = _find(gateway, caller, response_id, events)
    check_streamable(relay.run)
    return await follow(
        gateway, relay, ResponseWriter.of(request), cursor_after(relay, after), ids=False
    )


async def cancel_response(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """End a background response; one that is over is shown as it is."""
    relay = _find(gateway, caller, response_id)
    check_cancellable(relay.run)
    relay.cancel("cancelled by client")
    return show(relay)


async def delete_response(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """Forget a response, and end it if need be."""
    relay = _find(gateway, caller, response_id)
    gateway.registry.discard(relay, "deleted by client")
    await forget(gateway, relay.run.id, caller.owner)
    return deleted(response_id)


async def list_input_items(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, response_id: str
) -> web.StreamResponse:
    """Say of a response that there is one, and that its input is not kept."""
    _find(gateway, caller, response_id)
    raise no_input_items()


def _find(
    gateway: Gateway, caller: Caller, response_id: str, events: Events | None = None
) -> Relay:
    """Find the run of the caller's response. Raises NotHere."""
    relay = gateway.registry.find_response(response_id, caller.owner)
    if relay is None:
        raise NotHere("response", response_id, caller.owner, events)
    return relay


def _wants_stream(request: web.BaseRequest) -> bool:
    text = request.query.get("stream", "false").lower()
    if text not in {"true", "false"}:
        raise Refused(400, "stream is true or false", "bad_boolean", param="stream")
    return text == "true"


def lacks_former(gateway: Gateway, info: RequestInfo, owner: str) -> bool:
    """Say whether a request goes on from a response that is not held, and may be in the journal."""
    return (
        info.previous is not None
        and gateway.stores.keeps_runs
        and gateway.registry.find_response(info.previous, owner) is None
    )


async def bring_former(gateway: Gateway, info: RequestInfo, owner: str) -> None:
    """Have that response held again, if the journal has it: which upstream gave it is asked."""
    with suppress(StoreUnavailable, LedgerFull):  # then the upstream may know it all the same
        await gateway.recall.bring_response(info.previous or "", owner)


def prepare(
    gateway: Gateway, run: Run, info: RequestInfo, extras: RequestExtras, targets: list[Target]
) -> tuple[RequestExtras, list[Target]]:
    """Complete a request for a response: what to send beside it, and where it may go."""
    values: dict[str, Raw | None] = {}
    if info.background:
        run.response_id = run.id.replace("run_", "resp_", 1)
        run.transcript.rewrite = Rewriter(run.about())
        values |= {"background": None, "stream": Raw(b"true")}
    former = gateway.registry.find_response(info.previous, run.owner)
    if former is not None:
        if former.run.upstream_response_id is None:
            raise Refused(
                400,
                "the response that previous_response_id names has not begun: its upstream has not"
                " given it an id, and so knows nothing to go on from",
                "previous_response_not_found",
                param="previous_response_id",
            )
        # Only the upstream that gave the former answer knows it, by a name of its own.
        values["previous_response_id"] = Raw(_encode(former.run.upstream_response_id))
        upstream = former.run.attempt.upstream
        targets = [each for each in targets if each.pool.name == upstream] or targets
    return extras._replace(values=values), targets


def begin(relay: Relay) -> web.StreamResponse:
    """Start a run that has no reader yet; the answer is where to find it."""
    relay.begin()
    return _json(relay.run)


def show(relay: Relay) -> web.StreamResponse:
    """Show the response as it is now."""
    return _json(relay.run)


def check_streamable(run: Run) -> None:
    """Check that events of this response were promised. Raises Refused."""
    if not run.request.background:
        raise Refused(
            400,
            "This response cannot be streamed because it was not created with background=true.",
            "not_background",
        )


def check_cancellable(run: Run) -> None:
    """Check that the response does not end with its creator's request. Raises Refused."""
    if not run.request.background:
        raise Refused(
            400,
            "Cannot cancel a synchronous response: it was not created with background=true.",
            "not_background",
        )


def no_input_items() -> Refused:
    """Refuse to show the input: it is let go of when the answer begins, to cost no memory."""
    return Refused(
        404, "the input of a response is not kept here, only its answer", "input_items_not_kept"
    )


def deleted(response_id: str) -> web.Response:
    """Make the answer to a DELETE."""
    body = _encode({"id": response_id, "object": "response", "deleted": True})
    return web.Response(body=body, content_type="application/json")


def _json(run: Run) -> web.Response:
    return web.Response(
        body=_as_it_is(run),
        content_type="application/json",
        headers={"x-run-id": run.id, **id_headers(run.id)},
    )


def _as_it_is(run: Run) -> bytes:
    """Find the response object. Raises Refused when it is no longer kept."""
    if not run.is_over:
        return _encode(bare_response(run.about(), _STATUS[run.state]))
    if not run.request.streamed:
        whole, _ = run.window.read(run.window.cursor(run.window.first_seq))
        if whole:
            return whole
    for event in reversed(run.window.last_events(2)):
        if found := response_in(event):
            return found
    if run.state is RunState.COMPLETED:
        raise Refused(410, "this response is no longer kept", "response_evicted")
    return _encode(failed_response(run.error(), run.about()))
