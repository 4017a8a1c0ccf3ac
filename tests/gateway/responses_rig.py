"""An upstream's responses as events, and how the gateway is asked for them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fakes.client import Stream, get
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, Rig, chunked

PATH = "/v1/responses"


def event(kind: str, **values: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()


def response(status: str, identity: str = "resp_theirs") -> dict[str, Any]:
    return {"id": identity, "object": "response", "status": status, "output": []}


# As llama.cpp sends it: without sequence numbers.
CREATED = event("response.created", response=response("in_progress"))
DONE = event("response.completed", response=response("completed"))


def delta(text: str) -> bytes:
    return event("response.output_text.delta", item_id="msg_1", delta=text)


WORDS = [delta(word) for word in ("a ", "b ", "c ")]


def sends(*events: bytes, last: bool = True):
    """A play: answers each request with these events; without `last` it then hangs."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(HEAD, chunked(*events))
            if not last:
                await peer.hang()
                return
            await peer.send(LAST)

    return play


async def ask(rig: Rig, path: str = "", body: object = None, method: str = "", **headers: str):
    method = method or ("GET" if body is None else "POST")
    asked = get(rig.base_url, PATH + path, body, method=method, headers=headers)
    return await asyncio.wait_for(asked, DEADLINE_S)


def told(answer: Stream) -> Any:
    return json.loads(answer.body)
