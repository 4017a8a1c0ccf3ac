"""Upstreams that answer with anything: an honest answer or an error for the client, and no harm.

What a stream's bytes may come to is judged in tests/gateway/relay/test_fuzzed_upstreams.py. Here
every kind of answer is changed in every part, the head too, for streams, plain answers and lists.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable

import pytest

from fakes.client import get
from fakes.wire import wire_for
from gateway.gateway_rig import HEAD, LAST, Peer, Rig, chunked, plain
from hostile.conftest import Tried
from hostile.exchange import CHAT_WHOLE, STREAM
from hostile.mutate import mutants
from tidegate.core.settings import Upstream

AT_ONCE = 48
MUTANTS = 900
MOST_S = 30.0
LIMITS = {"first_output_s": 2.0, "idle_s": 2.0, "total_s": 8.0, "connect_s": 2.0}
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat", "/v1/embeddings")
WORDS = [
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Content-Encoding: gzip\r\n"),
    *(
        b"Set-Cookie: a=b\r\n",
        b"Location: http://127.0.0.1:1/\r\n",
        b"Retry-After: 99999999999\r\n",
    ),
    *(b"Retry-After: -1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"),
    *(b"x-request-id: a\tb\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"0\r\n\r\n"),
    *(
        b"data: [DONE]\n\n",
        b"data: {}\n\n",
        b"event: error\n",
        b": x\n\n",
        b"id: 1\n",
        b"retry: 0\n",
    ),
    *(
        b'"error":{"message":"\xff"}',
        b'"finish_reason":"stop"',
        b'"id":7,',
        b"[" * 2_000,
        b"\\ud800",
    ),
    *(b"data: [1\n\ndata: 2]\n\n", b"ffffffffffffffff\r\n", b"1" * 5_000, b"\xef\xbb\xbf"),
]
ERROR = plain(b'{"error":{"message":"no","type":"x","code":null}}', b"429 Too Many Requests")
OTHER = plain(b"<html>no</html>", b"502 Bad Gateway", b"X-Powered-By: y")


def streamed(path: str) -> bytes:
    """A whole stream of that format."""
    wire = wire_for(path, "m")
    events = [*wire.opening(), wire.word("one"), *wire.usage(), *wire.finish(), *wire.done()]
    head = HEAD.replace(b"text/event-stream", wire.content_type.encode())
    return head + chunked(*events) + LAST


def corpus(path: str) -> list[bytes]:
    """Answers to that route: streams, whole ones, refusals."""
    answers = [plain(json.dumps(wire_for(path, "m").whole()).encode()), ERROR, OTHER]
    if path != "/v1/embeddings":
        answers += [streamed(path)] * 3
    close = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    return [*answers, close + CHAT_WHOLE, HEAD.replace(b"1.1", b"1.0") + b"".join(STREAM)]


def player(answers: list[bytes]) -> Callable[[Peer], object]:
    """An upstream that answers model "n7n" with the seventh, in pieces, and hangs up."""

    async def play(peer: Peer) -> None:
        found = re.search(rb'"n(\d+)n"', await peer.request())
        assert found is not None
        answer = answers[int(found[1])]
        cut = int(found[1]) % max(1, len(answer))
        await peer.send(answer[:cut])
        await asyncio.sleep(0)
        await peer.send(answer[cut:])

    return play


async def ask_all(rig: Rig, path: str, count: int) -> None:
    """Every one ends within its limits, with an answer or an error, and none of it is logged."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int) -> None:
        body = {"model": f"n{number}n", "messages": [], "input": "x", "max_tokens": 1}
        async with gate:
            answer = await asyncio.wait_for(
                get(rig.base_url, path, {**body, "stream": bool(number % 3)}), MOST_S
            )
        assert answer.status not in {101, 304}, (number, answer.status)
        assert answer.clean, (number, answer.status)
        told = " ".join(f"{name}: {value}" for name, value in answer.headers.items())
        assert "set-cookie" not in told, (number, told)
        assert "location" not in told, (number, told)

    await asyncio.gather(*(ask(number) for number in range(count)))
    logged = [record.getMessage() for record in rig.errors] + rig.loop_errors
    assert not logged, logged[:5]


@pytest.mark.parametrize("path", PATHS)
async def test_whatever_an_upstream_answers(rigs, raw_upstream, tried: Tried, path: str) -> None:
    """Its client gets an end, in time; its cookies and redirects reach no client."""
    answers = list(mutants(corpus(path), WORDS, f"upstreams {path}", MUTANTS // len(PATHS)))
    rig = await rigs(await raw_upstream(player(answers)), **LIMITS)
    await ask_all(rig, path, len(answers))
    tried(len(answers))


LIST = plain(
    json.dumps({"object": "list", "data": [{"id": "m"}, {"id": "n", "created": 1}]}).encode()
)


async def test_whatever_an_upstream_lists(rigs, raw_upstream, tried: Tried) -> None:
    """A list of models that is none, or is full of odd names, costs that upstream alone."""
    dice = random.Random("lists")
    answers = list(mutants([LIST, ERROR, OTHER], WORDS, "lists", 300))

    async def odd(peer: Peer) -> None:
        await peer.request()
        await peer.send(dice.choice(answers))

    async def good(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(LIST)

    strange, honest = await raw_upstream(odd), await raw_upstream(good)
    rig = await rigs(
        Upstream(name="odd", url=strange.url), Upstream(name="good", url=honest.url), **LIMITS
    )
    for _ in range(len(answers) // 2):
        await rig.gateway.catalog.refresh()
        listed = await get(rig.base_url, "/v1/models")
        assert listed.status == 200
        names = [model["id"] for model in listed.json()["data"]]
        assert {"m", "n"} <= {name.rpartition("/")[2] for name in names}, names
        assert all(isinstance(name, str) for name in names), names
    assert not rig.errors, [record.getMessage() for record in rig.errors][:3]
    tried(len(answers) // 2)


UNENDING = {
    "a head": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    "heads": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    "interim heads": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "a trailer": HEAD + b"0\r\n" + b"X: y\r\n" * 20_000,
    "an event": HEAD + b"500000\r\n" + b"data: " + b"x" * 0x4FFFFA,
    "a line": HEAD + b"500000\r\n" + b"x" * 0x500000,
    "comments": HEAD + chunked(b": x\n\n" * 50_000) * 4,
    "empty chunks": HEAD + b"1\r\n\n\r\n" * 50_000,
    "chunk extensions": HEAD + b"1;" + b"x" * 200_000,
}


@pytest.mark.parametrize("answer", UNENDING.values(), ids=UNENDING)
async def test_what_an_upstream_never_ends_is_bounded(
    rigs, raw_upstream, tried: Tried, answer: bytes
) -> None:
    """Whatever part of an answer has no end is cut at a bound or in time, with an error."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await peer.hang()

    rig = await rigs(await raw_upstream(play), **LIMITS)
    body = {"model": "m", "messages": [], "stream": True}
    told = await asyncio.wait_for(get(rig.base_url, "/v1/chat/completions", body), MOST_S)
    assert told.status >= 400 or b'"error"' in bytes(told.body), bytes(told.body)[:200]
    tried(1)
