"""`/v1/models`: what may be asked for, as OpenAI's and as Anthropic's clients read it."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import unquote

from tidegate.gateway import web
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused

_ANTHROPIC = "anthropic-version"  # a header that only Anthropic's clients send
_MOST_UNIX_S = 253_402_300_799  # the last second of the year 9999; an upstream may say anything


async def list_models(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """List the models as OpenAI does, from memory; for Anthropic's clients with what they read."""
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
    """Show one entry of the list. A model's name may hold slashes."""
    for entry in gateway.catalog.models():
        if entry["id"] == unquote(model):
            shown = _for_anthropic(entry) if _ANTHROPIC in request.headers else entry
            return web.json_response(shown)
    raise Refused(404, "there is no model of that name", "model_not_found", param="model")


def _for_anthropic(model: dict[str, object]) -> dict[str, object]:
    """Add Anthropic's members to the entry; a time that is not known is the first one."""
    created = model["created"]
    seconds = created if isinstance(created, int) and 0 <= created <= _MOST_UNIX_S else 0
    at = datetime.fromtimestamp(seconds, UTC)
    return {
        **model,
        "type": "model",
        "display_name": model["id"],
        "created_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
