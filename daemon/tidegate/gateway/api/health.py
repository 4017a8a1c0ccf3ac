"""What people and machines ask about the gateway itself."""

from __future__ import annotations

from collections import Counter

import msgspec
from aiohttp import hdrs

from tidegate import __version__
from tidegate.core.labels import by_label
from tidegate.core.protocol.worker import GuardFigures
from tidegate.core.text import count
from tidegate.gateway import web
from tidegate.gateway.api.metrics import CONTENT_TYPE, MetricsView, render
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.page.assets import INDEX, show_file
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.upstreams.pool import UpstreamPool


async def show_root(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Send the page to a browser, which names HTML among what it takes, and a line to the rest."""
    if "text/html" in request.headers.get(hdrs.ACCEPT, "").lower():
        return await show_file(gateway, request, caller, INDEX)
    answer = _welcome(gateway)
    answer.headers[hdrs.VARY] = hdrs.ACCEPT
    return answer


def _welcome(gateway: Gateway) -> web.Response:
    """Say one sentence to a person."""
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


async def is_alive(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Say that the event loop turns. A parked one is alive, and says that it is parked."""
    parked = {} if gateway.parked is None else {"parked": gateway.parked}
    return web.json_response({"status": "alive", **parked})


async def is_ready(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Say whether it can serve, and if not, why."""
    reasons = gateway.why_not_ready()
    update = gateway.state_update
    body = {
        "status": "not ready" if reasons else "ready",
        "reasons": reasons,
        "generation": gateway.generation,
        "memory_level": update.level if update else 0,
        "draining": gateway.server.draining,
    }
    return web.json_response(body, status=503 if reasons else 200)


async def show_metrics(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Render every metric for Prometheus. Totals that outlive a worker are the watchdog's."""
    registry, update = gateway.registry, gateway.state_update
    pools, now_s = list(gateway.catalog.pools()), gateway.loop.time()
    resident = {"worker": gateway.resident_bytes()}
    if update is not None and update.guard.watchdog_rss_bytes:
        resident["watchdog"] = update.guard.watchdog_rss_bytes
    view = MetricsView(
        ledger_bytes=registry.ledger.total_bytes,
        resident_bytes=resident,
        memory_level=update.level if update else 0,
        runs=registry.states(),
        swept_bytes=registry.swept.by_kind,
        recycles=update.recycles if update else {},
        relay=registry.relay_seconds,
        first_output=registry.first_output_seconds,
        seconds=gateway.tally.seconds,
        requests=gateway.tally.requests,
        tokens=gateway.tally.tokens,
        loop_lag_s=gateway.loop_lag_s,
        connections=gateway.server.table.statistics().connections,
        reclaimed_bytes=gateway.evictor.freed_bytes,
        reclaim_seconds=gateway.evictor.seconds,
        stores=dict(zip(("journal", "history"), gateway.stores.states(), strict=True)),
        guard=update.guard if update else GuardFigures(),
        repairs=Counter(repair.severity for repair in update.repairs) if update else {},
        upstream_active=by_label((pool.name, pool.active) for pool in pools),
        upstream_aside=by_label((pool.name, int(pool.health.is_aside)) for pool in pools),
        models_aside=by_label((pool.name, _models_aside(pool, now_s)) for pool in pools),
    )
    return web.Response(body=render(view), headers={"Content-Type": CONTENT_TYPE})


def _models_aside(pool: UpstreamPool, now_s: float) -> int:
    return sum(1 for _ in pool.health.aside(now_s))


async def list_repairs(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """List what needs mending, as the watchdog knows it; the worst first."""
    found = gateway.state_update.repairs if gateway.state_update else []
    data = [msgspec.structs.asdict(repair) for repair in found]
    return web.json_response({"object": "list", "data": data})
