"""What people and machines ask about the gateway itself."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
from aiohttp import web

from tidegate import __version__
from tidegate.core.protocol.worker import GuardFigures
from tidegate.core.words import count
from tidegate.gateway.api.metrics import CONTENT_TYPE, MetricsView, render
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused

if TYPE_CHECKING:
    from tidegate.gateway.gateway import Gateway

_ANTHROPIC = "anthropic-version"  # a header that only Anthropic's clients send
_MOST_UNIX_S = 253_402_300_799  # the last second of the year 9999; an upstream may say anything


async def welcome(gateway: Gateway, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    """One sentence for a person with a browser."""
    if gateway.parked is not None:
        return web.Response(
            status=503,
            text=f"tidegate {__version__} is parked until its configuration is mended:\n"
            f"{gateway.parked}\n",
        )
    models = len(gateway.catalog.models())
    return web.Response(
        text=f"tidegate {__version__} is up, with {count(models, 'model')};"
        " point an OpenAI client at /v1 on this address.\n"
    )


async def alive(gateway: Gateway, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    """The event loop turns. A parked one is alive, and says that it is parked."""
    parked = {} if gateway.parked is None else {"parked": gateway.parked}
    return web.json_response({"status": "alive", **parked})


async def ready(gateway: Gateway, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    """Whether it can serve, and if not, why."""
    reasons = gateway.why_not_ready()
    facts = gateway.facts
    body = {
        "status": "not ready" if reasons else "ready",
        "reasons": reasons,
        "generation": gateway.generation,
        "memory_level": facts.level if facts else 0,
        "draining": gateway.server.draining,
    }
    return web.json_response(body, status=503 if reasons else 200)


async def metrics(gateway: Gateway, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    """For Prometheus. Totals that outlive a worker come from the watchdog's facts."""
    registry, facts = gateway.registry, gateway.facts
    resident = {"worker": gateway.resident_bytes()}
    if facts is not None and facts.guard.watchdog_rss_bytes:
        resident["watchdog"] = facts.guard.watchdog_rss_bytes
    view = MetricsView(
        ledger_bytes=registry.ledger.total_bytes,
        resident_bytes=resident,
        memory_level=facts.level if facts else 0,
        runs=registry.states(),
        swept_bytes=registry.swept_bytes,
        recycles=facts.recycles if facts else {},
        relay=registry.relay_seconds,
        first_output=registry.first_output_seconds,
        loop_lag_s=gateway.loop_lag_s,
        connections=gateway.server.statistics().connections,
        relief_bytes=gateway.relief.freed_bytes if gateway.relief else {},
        relief_seconds=gateway.relief.seconds if gateway.relief else {},
        guard=facts.guard if facts else GuardFigures(),
        repairs=Counter(repair.severity for repair in facts.repairs) if facts else {},
        upstream_active={pool.name: pool.active for pool in gateway.catalog.pools()},
        upstream_aside={pool.name: int(pool.health.is_aside) for pool in gateway.catalog.pools()},
        models_aside={
            pool.name: len(list(pool.health.aside(gateway.loop.time())))
            for pool in gateway.catalog.pools()
        },
    )
    return web.Response(body=render(view), headers={"Content-Type": CONTENT_TYPE})


async def list_repairs(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """What somebody should mend, as the watchdog knows it; the worst first."""
    found = gateway.facts.repairs if gateway.facts else []
    data = [msgspec.structs.asdict(repair) for repair in found]
    return web.json_response({"object": "list", "data": data})


async def list_models(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """OpenAI's list, from memory; with what Anthropic's clients read for those who are."""
    models = gateway.catalog.models()
    if _ANTHROPIC not in request.headers:
        return web.json_response({"object": "list", "data": models})
    listed = [_for_anthropic(model) for model in models]
    ids = [model["id"] for model in listed] or [None]
    ends = {"has_more": False, "first_id": ids[0], "last_id": ids[-1]}
    return web.json_response({"object": "list", "data": listed, **ends})


async def show_model(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, model: str
) -> web.StreamResponse:
    """One entry of the list. A model's name may hold slashes."""
    for entry in gateway.catalog.models():
        if entry["id"] == unquote(model):
            shown = _for_anthropic(entry) if _ANTHROPIC in request.headers else entry
            return web.json_response(shown)
    raise Refused(404, "there is no model of that name", "model_not_found", param="model")


def _for_anthropic(model: dict[str, object]) -> dict[str, object]:
    """The entry with Anthropic's members too; a time that nobody knows is the first one."""
    created = model["created"]
    seconds = created if isinstance(created, int) and 0 <= created <= _MOST_UNIX_S else 0
    at = datetime.fromtimestamp(seconds, UTC)
    return {
        **model,
        "type": "model",
        "display_name": model["id"],
        "created_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
