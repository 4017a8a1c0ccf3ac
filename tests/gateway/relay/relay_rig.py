"""Upstreams that send exact bytes to a relay, and what its client was told in the end."""

from __future__ import annotations

import asyncio
import json

from fakes.client import Stream
from fakes.client import chat as unlimited_chat
from fakes.upstream import DONE, OK, chunk
from gateway.gateway_rig import DEADLINE_S, HEAD, LAST, Peer, chunked

BOTH = {"both": ["box/first", "box1/second"]}
WORD = chunk(content="word ")
ERROR_BODY = b'{"error":{"message":"no","type":"x","param":null,"code":"c"}}'


async def chat(base_url: str, model: str, *, stream: bool = True) -> Stream:
    """Asks and reads all of the answer, which comes in time or not at all."""
    return await asyncio.wait_for(unlimited_chat(base_url, model, stream=stream), DEADLINE_S)


def errors(stream: Stream) -> list[str]:
    """The messages of its error events, or of its body."""
    if stream.status != 200:
        return [json.loads(stream.body)["error"]["message"]]
    return [event.error["message"] for event in stream.events if event.error]


def told(stream: Stream) -> str:
    """The one reason why it broke off; the body ends cleanly and without the marker."""
    (message,) = errors(stream)
    assert stream.clean
    assert DONE not in stream.body
    assert stream.status != 200 or stream.events[-1].error is not None
    return message


def sends(*pieces: bytes, hang: bool = True, wait_s: float = 0.0):
    """A play: answers each request with these pieces."""

    async def play(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
            await asyncio.sleep(wait_s)
        if hang:
            await peer.hang()

    return play


def always(answer: bytes):
    """A play: answers every request with this."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer)

    return play


whole = always(HEAD + chunked(*OK) + LAST)
