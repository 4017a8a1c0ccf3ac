"""Requests of the kind that the fast lane takes, and a look at which road a connection is on."""

from __future__ import annotations

import asyncio
import json
import re

from gateway.gateway_rig import Rig, Rigs
from gateway.server_rig import Answer, RawClient, request
from tidegate.gateway.server.porch import Porch

CHAT = "/v1/chat/completions"
_DRAWN = re.compile(rb"(?<=run_|req_)[0-9a-f]{32}")
_TOOK = re.compile(rb"[0-9.]+ s after")


def post(model: str, *fields: str, path: str = CHAT, **values: object) -> bytes:
    """A plain request for a stream, unless `stream` says otherwise."""
    body = {"model": model, "messages": [], "input": "x", "prompt": "x", "stream": True, **values}
    return request("POST", path, *fields, body=json.dumps(body).encode())


async def connect(rig: Rig) -> RawClient:
    """A new client."""
    return RawClient(*await asyncio.open_connection("127.0.0.1", rig.port))


def is_on_lane(rig: Rig) -> bool:
    """Whether the only connection has made no request that the lane did not take."""
    return any(isinstance(connection, Porch) for connection in rig.gateway.server.table)


def told(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    """An answer without what is drawn for each request, and without times."""
    headers = {
        name: _DRAWN.sub(b"ID", value.encode()).decode()
        for name, value in answer.headers.items()
        if name != "date"
    }
    return answer.status, headers, _TOOK.sub(b"T s after", _DRAWN.sub(b"ID", answer.body))


async def both_roads(rigs: Rigs, *upstreams: object, **limits: object) -> tuple[Rig, Rig]:
    """A gateway with the fast lane, and one without it."""
    rigs.road = "fast"
    fast = await rigs(*upstreams, **limits)
    rigs.road = "ordinary"
    return fast, await rigs(*upstreams, **limits)
