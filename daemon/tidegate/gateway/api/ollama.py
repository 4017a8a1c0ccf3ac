"""What Ollama's clients ask of it beside answers: what there is, what is loaded, which version.

All Ollamas behind the gateway answer as one. Nothing that changes one of them is passed on: no
pull, no create, no delete. That is asked of the Ollama that is meant.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

import msgspec
from msgspec import Raw, Struct

from tidegate.core.errors import UpstreamError
from tidegate.core.formats.foreign_json import JsonReader, UnreadableJson, as_utf8
from tidegate.gateway import web
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.upstreams.catalog import LATEST
from tidegate.gateway.upstreams.fetch import fetch
from tidegate.gateway.upstreams.pool import UpstreamPool

_CHANGES = re.compile(r"/api/(?:pull|push|create|copy|delete|blobs(?:/.*)?)")
ASK_LIMIT_S = 5.0  # a client that lists models gives up soon after


class _Listed(Struct):
    models: list[dict[str, Raw]] = []


class _Version(Struct):
    version: str


_listed = JsonReader(_Listed)
_version = JsonReader(_Version)
_text = JsonReader(str)
_encode = msgspec.json.encode


def refuse_changes(path: str) -> None:
    """Refuse a path of Ollama's that would change what it has. Raises Refused."""
    if _CHANGES.fullmatch(path):
        raise Refused(
            404,
            "what changes an Ollama is not passed on: no pull, push, create, copy, delete or"
            " blobs; ask that Ollama itself",
            "not_passed_on",
        )


async def list_ollama_models(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """List the models of every Ollama, and the aliases that lead to one of them."""
    lists = await _lists(gateway, "/api/tags")
    there = {(upstream, name): model for upstream, name, model in lists}
    models: dict[str, dict[str, Raw]] = {}
    for alias, (upstream, name) in gateway.catalog.ollama_aliases().items():
        if model := there.get((upstream, name)) or there.get((upstream, name + LATEST)):
            models[alias] = {**model, "name": _raw(alias), "model": _raw(alias)}
    return _json({"models": _first_of_each(models, lists)})


async def list_loaded_models(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """List the models that are in memory."""
    return _json({"models": _first_of_each({}, await _lists(gateway, "/api/ps"))})


async def show_ollama_version(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Show the version of the first Ollama that answers."""
    for _, body in await _ask(gateway, "/api/version"):
        try:
            return _json({"version": _version(as_utf8(body)).version})
        except UnreadableJson:
            continue
    raise _no_ollama()


async def _lists(gateway: Gateway, path: str) -> list[tuple[str, str, dict[str, Raw]]]:
    """List every model: its upstream, its name, and what that says of it. Raises Refused."""
    answers = await _ask(gateway, path)
    if not answers:
        raise _no_ollama()
    found = []
    for upstream, body in answers:
        with suppress(UnreadableJson):
            listed = _listed(as_utf8(body)).models
            found += [(upstream, _name(model), model) for model in listed]
    return found


def _first_of_each(
    models: dict[str, dict[str, Raw]], lists: list[tuple[str, str, dict[str, Raw]]]
) -> list[dict[str, Raw]]:
    """Join `models` and the lists; of two models of one name the first one's upstream counts."""
    for _, name, model in lists:
        models.setdefault(name, model)
    return list(models.values())


def _name(model: dict[str, Raw]) -> str:
    return _text(bytes(model.get("name", b'""')))


async def _ask(gateway: Gateway, path: str) -> list[tuple[str, bytes]]:
    """Ask every Ollama; return the body of each that answers in time and well, by upstream."""
    pools = gateway.catalog.ollama_pools()
    answers = await asyncio.gather(*(_ask_one(pool, path) for pool in pools))
    told = zip(pools, answers, strict=True)
    return [(pool.name, body) for pool, body in told if body is not None]


async def _ask_one(pool: UpstreamPool, path: str) -> bytes | None:
    try:
        status, body = await fetch(pool, path, ASK_LIMIT_S, at_root=True)
    except UpstreamError:
        return None
    return body if status == 200 else None


def _no_ollama() -> Refused:
    return Refused(
        502,
        "no upstream of the config speaks Ollama's own API, or none answers;"
        " ask an Ollama through /api, and any upstream through /v1",
        "no_ollama",
        type="server_error",
    )


def _json(value: object) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json")


def _raw(value: object) -> Raw:
    return Raw(_encode(value))
