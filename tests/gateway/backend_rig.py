"""Upstreams that answer as Ollama, LM Studio and llama.cpp do, as far as they are asked."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from gateway.gateway_rig import Peer, plain

NOT_FOUND = plain(b'{"error":"not found"}', b"404 Not Found")
# LM Studio's way to say the same.
UNEXPECTED = plain(b'{"error":"Unexpected endpoint or method. (GET /api/version)"}')

Routes = dict[str, Any]


def models(*names: str, owner: str = "me", **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": n, "owned_by": owner, **more} for n in names]}


OLLAMA: Routes = {
    "/v1/models": models("llama3:latest", "qwen3:8b", owner="library"),
    "/api/version": {"version": "0.12.3"},
    "/api/tags": {"models": [{"name": "llama3:latest", "size": 1}, {"name": "qwen3:8b"}]},
    "/api/ps": {"models": [{"name": "qwen3:8b", "size_vram": 5}]},
}
LM_STUDIO: Routes = {
    "/v1/models": models("gemma", "phi", owner="organization_owner"),
    "/api/v0/models": {
        "data": [{"id": "gemma", "state": "not-loaded"}, {"id": "phi", "state": "loaded"}]
    },
}
LLAMA_CPP: Routes = {
    "/v1/models": {
        **models("tiny", owner="llamacpp", meta={"n_ctx": 1}),
        "models": [{"name": "x"}],
    },
    "/api/tags": {"models": [{"name": "tiny"}], "object": "list", "data": []},
    "/health": {"status": "ok"},
}
ROUTER = {
    "object": "list",
    "data": [
        {"id": name, "owned_by": "llamacpp", "status": {"value": value, "args": ["--x"]}}
        for name, value in [("a", "loaded"), ("b", "unloaded"), ("c", "loading"), ("d", "sleeping")]
    ],
}


class Fake:
    """Answers GETs from a table, and counts who asked for what."""

    def __init__(self, routes: Routes, otherwise: bytes = NOT_FOUND) -> None:
        self.routes = dict(routes)
        self.otherwise = otherwise
        self.asked: Counter[str] = Counter()

    async def play(self, peer: Peer) -> None:
        while True:
            path = (await peer.request()).split(b" ")[1].decode()
            self.asked[path] += 1
            answer = self.routes.get(path, self.otherwise)
            await peer.send(answer if isinstance(answer, bytes) else plain(as_json(answer)))


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
