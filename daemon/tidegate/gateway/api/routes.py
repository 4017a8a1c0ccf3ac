"""Which route leads where. No handler imports this table: it is handed on with the gateway.

What is not in it does not exist, and a route is closed unless the table opens it. Nothing
administrative is here: that is the watchdog's control socket.
"""

from __future__ import annotations

import re
from functools import partial

import msgspec

from tidegate.core import formats, scopes
from tidegate.core.errors import LedgerFull
from tidegate.core.formats.base import Format
from tidegate.core.runs.ledger import Entry
from tidegate.core.settings import MIB
from tidegate.gateway import web
from tidegate.gateway.api import create, demo, health, ollama, openapi, response_socket, runs
from tidegate.gateway.api.fast_lane import FastLane
from tidegate.gateway.api.heads import no_room
from tidegate.gateway.api.models import list_models, show_model
from tidegate.gateway.api.peer import NotHere, answer_elsewhere
from tidegate.gateway.api.responses import (
    cancel_response,
    delete_response,
    list_input_items,
    show_response,
)
from tidegate.gateway.api.usage import show_usage
from tidegate.gateway.gateway import Gateway, Handler, Route
from tidegate.gateway.page.assets import show_file
from tidegate.gateway.page.live import LiveFeed, watch
from tidegate.gateway.relay.handover import OWNER_HEADER, PEER_NAME, SCOPE_HEADER, unpack
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.server.auth import Access, Caller
from tidegate.gateway.server.body import read_body
from tidegate.gateway.server.errors import DEMO_PATH, Refused
from tidegate.gateway.server.ids import id_headers, new_id
from tidegate.gateway.server.writer import AlreadySent

MAX_HANDED_BYTES = 64 * MIB  # a whole window in base64, with room


def _answering(form: Format) -> Handler:
    return partial(create.answer, form=form)


# Where each format is served: at its upstream path, and where some clients look for it besides.
_FORMATS = (
    *((f"/v1{form.path}" if not form.at_root else form.path, form) for form in formats.ALL),
    ("/v1/reranking", formats.RERANK),
    ("/rerank", formats.RERANK),
)
_RESPONSE = "/v1/responses/([A-Za-z0-9_.:=~+-]{1,200})"
_RUN = "/v1/runs/([A-Za-z0-9_-]{1,80})"
ROUTES = tuple(
    Route(method, re.compile(path), access, handler)
    for method, path, access, handler in (
        *(("POST", path, Access.USE, _answering(form)) for path, form in _FORMATS),
        ("GET", "/v1/responses", Access.USE, response_socket.converse_responses),
        ("GET", f"{_RESPONSE}/input_items", Access.USE, list_input_items),
        ("GET", _RESPONSE, Access.USE, show_response),
        ("DELETE", _RESPONSE, Access.USE, delete_response),
        ("POST", f"{_RESPONSE}/cancel", Access.USE, cancel_response),
        ("GET", "/api/tags", Access.READ, ollama.list_ollama_models),
        ("GET", "/api/ps", Access.READ, ollama.list_loaded_models),
        ("GET", "/api/version", Access.READ, ollama.show_ollama_version),
        ("GET", "/v1/models", Access.READ, list_models),
        ("GET", "/v1/models/(.+)", Access.READ, show_model),
        ("GET", "/v1/runs", Access.READ, runs.list_runs),
        ("GET", _RUN, Access.READ, runs.show_run),
        ("GET", f"{_RUN}/stream", Access.USE, runs.stream_run),
        ("POST", f"{_RUN}/cancel", Access.USE, runs.cancel_run),
        ("DELETE", _RUN, Access.USE, runs.delete_run),
        ("GET", "/v1/usage", Access.READ, show_usage),
        ("GET", "/repairs", Access.READ, health.list_repairs),
        ("GET", "/metrics", Access.READ, health.show_metrics),
        ("GET", "/healthz", Access.OPEN, health.is_alive),
        ("GET", "/readyz", Access.OPEN, health.is_ready),
        ("GET", "/openapi.json", Access.OPEN, openapi.describe),  # the same for every installation
        ("GET", "/v1/live", Access.READ, watch),
        ("GET", "/", Access.OPEN, health.show_root),
        ("GET", "/page/([a-z.]+)", Access.OPEN, show_file),
    )
)
OPEN_PATHS = [route.path.pattern for route in ROUTES if route.access is Access.OPEN]


def find_route(method: str, path: str) -> tuple[Route, tuple[str, ...]]:
    """Find the route and what its path matched. Raises Refused: 404, or 405 with the methods."""
    allowed = []
    for route in ROUTES:
        if found := route.path.fullmatch(path):
            if route.method == method or (method == "HEAD" and route.method == "GET"):
                return route, found.groups()
            allowed.append(route.method)
    if allowed:
        names = ", ".join(allowed)
        raise Refused(405, f"only {names} here", "bad_method", headers={"Allow": names})
    ollama.refuse_changes(path)
    raise Refused(404, "there is nothing at this path; the API is under /v1", "not_found")


def _path(request: web.BaseRequest) -> str:
    """Read the path as it was sent, undecoded: what is matched with a route is what was checked."""
    return request.raw_path.partition("?")[0]


def make_lane(gateway: Gateway) -> FastLane:
    """Make what answers the most frequent requests past aiohttp."""
    return FastLane(gateway)


def make_feed(gateway: Gateway) -> LiveFeed:
    """Make what tells those who look at the page."""
    return LiveFeed(gateway)


async def handle(gateway: Gateway, request: web.BaseRequest) -> web.StreamResponse:
    """Answer a client: first whose request it is, then the table. Raises Refused."""
    if request.method == "OPTIONS" and (fields := gateway.preflight(request)) is not None:
        return web.Response(status=204, headers={**fields, **id_headers(new_id("req"))})
    try:
        route, groups = find_route(request.method, _path(request))
    except Refused:
        gateway.authenticate(request, Access.READ)
        _refuse_when_parked(gateway)
        raise
    caller = gateway.authenticate(request, route.access)
    if route.access is not Access.OPEN:
        _refuse_when_parked(gateway)
    try:
        answer = await route.handler(gateway, request, caller, *groups)
    except NotHere as missing:
        again = partial(route.handler, gateway, request, caller, *groups)
        answer = await answer_elsewhere(gateway, request, caller, missing, again)
    if not answer.prepared and not isinstance(answer, AlreadySent):
        for name, value in id_headers(new_id("req")).items():
            answer.headers.setdefault(name, value)
    return answer


async def handle_inner(gateway: Gateway, request: web.BaseRequest) -> web.StreamResponse:
    """Answer on the Unix socket: as the demo upstream, or the other generation for a caller."""
    if request.path == f"{DEMO_PATH}/chat/completions":
        return await demo.chat_completions(request, gateway.registry.ledger)
    if request.path.startswith(f"{DEMO_PATH}/"):
        raise demo.other_format()
    if request.path == "/v1/adopt":
        return await _adopt(gateway, request)
    route, groups = find_route(request.method, _path(request))
    caller = Caller(
        owner=request.headers.get(OWNER_HEADER, ""),
        name=PEER_NAME,
        scope=request.headers.get(SCOPE_HEADER, scopes.USE),
    )
    caller.check(route.access)
    return await route.handler(gateway, request, caller, *groups)


async def _adopt(gateway: Gateway, request: web.BaseRequest) -> web.StreamResponse:
    """Take over a finished run of the former generation."""
    registry = gateway.registry
    account = registry.ledger.open()
    try:
        body = await read_body(
            request,
            max_bytes=MAX_HANDED_BYTES,
            deadline_s=5.0,
            # Not among what clients send: that may be full while there is room for answers.
            charge=partial(account.set, Entry.HELD),
        )
        run = unpack(body, registry.ledger, gateway.settings.limits, gateway.loop.time())
    except LedgerFull as full:
        raise no_room(full) from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise Refused(400, f"this is no finished run: {error}", "bad_run") from None
    finally:
        account.close()
    registry.adopt(Relay(registry, run, [], gateway.loop))
    return web.json_response({"id": run.id})


def _refuse_when_parked(gateway: Gateway) -> None:
    """Refuse when there is no config to serve by. Raises Refused."""
    if gateway.parked is not None:
        raise Refused(
            503,
            f"tidegate is parked until its configuration is mended: {gateway.parked}",
            "parked",
            type="server_error",
            headers={"Retry-After": "10"},
        )
