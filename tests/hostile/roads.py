"""The same bytes to a gateway with the fast lane and to one without it, and what differs.

Each input has a connection of its own on both, and a look at health behind it, which shows whether
the connection goes on. What is compared: each answer's status, headers and body, and what the
upstream was asked. What is drawn for a request or counts time is left out. What differs is tried
again by itself, with more time, before it is believed.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fakes.wire import dumps, wire_for
from gateway.gateway_rig import HEAD, LAST, Peer, Play, RawUpstream, Rig, Rigs, chunked, plain
from hostile.exchange import NotHttp, Reply, parse, read_until_silent
from hostile.requests import request

HEALTH = request(b"GET /healthz", b"Connection: close")
SILENCE_S = 0.25
LONG_SILENCE_S = 1.5  # for what is tried again
TRIES = 3
_DRAWN = re.compile(rb"[0-9a-f]{32}|[0-9a-f]{16}|[0-9.]+ s\b|\"created(_at)?\": ?[0-9.]+")
_DATE = re.compile(rb"(?i)\r\ndate: [^\r]*")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: [0-9]*")
_COUNTS = (b"GET /metrics", b"GET /v1/runs", b"GET /readyz")  # whose answers tell of all requests


class Watched:
    """An upstream that answers whatever it is asked, and writes it down."""

    def __init__(self) -> None:
        self.asked: Counter[bytes] = Counter()

    async def play(self, peer: Peer) -> None:
        while True:
            whole = await peer.request()
            self.asked[_DRAWN.sub(b"-", re.sub(rb"127.0.0.1:[0-9]+", b"-", whole))] += 1
            await _answer(peer, whole)


async def _answer(peer: Peer, asked: bytes) -> None:
    """One answer, whole or as a stream, in the format of its path."""
    head = asked.partition(b"\r\n\r\n")[0]
    wire = wire_for(head.split(b" ")[1].decode(), "m")
    if b"event-stream" in head or b"ndjson" in head:
        events = [*wire.opening(), wire.word("x"), *wire.finish(), *wire.done()]
        await peer.send(HEAD.replace(b"text/event-stream", wire.content_type.encode()))
        await peer.send(chunked(*events) + LAST)
    else:
        await peer.send(plain(dumps(wire.whole())))


Outcome = tuple[dict[bytes, str], Counter[bytes]]  # what each was told, what was asked for in all


class Roads:
    """Both gateways, and the upstream of each."""

    def __init__(self, *sides: tuple[Rig, Watched]) -> None:
        """With the lane, and without it."""
        self._sides = sides
        self.first = b""  # a request for a stream that is answered before each input

    @classmethod
    async def open(
        cls, rigs: Rigs, start: Callable[[Play], Awaitable[RawUpstream]], **limits: float
    ) -> Roads:
        """Start them."""
        sides = []
        for rigs.road in ("fast", "ordinary"):
            upstream = Watched()
            sides.append((await rigs(await start(upstream.play), **limits), upstream))
        return cls(*sides)

    async def differing(self, inputs: list[bytes]) -> dict[bytes, str]:
        """Try these at once; what is answered, or asked for, in two ways, or logged as an error."""
        first, second, logged = await self._try(inputs, SILENCE_S)
        suspects = [one for one in inputs if first[0][one] != second[0][one]]
        if not suspects and (first[1] != second[1] or logged):
            if len(inputs) > 1:
                half = len(inputs) // 2
                return await self.differing(inputs[:half]) | await self.differing(inputs[half:])
            suspects = inputs
        return {one: said for one in suspects if (said := await self._difference(one))}

    async def _difference(self, one: bytes) -> str:
        """What differs each time; empty when that was only a matter of time."""
        said = ""
        for _ in range(TRIES):
            first, second, logged = await self._try([one], LONG_SILENCE_S)
            if logged:
                return f"it was logged: {logged}"
            if first == second:
                return ""
            said = f"with the lane {first}, without it {second}"
        return said

    async def _try(self, inputs: list[bytes], silence_s: float) -> tuple[Outcome, Outcome, str]:
        """What comes of these on either road, and the first error that was logged."""
        for _, upstream in self._sides:
            upstream.asked.clear()
        came = await asyncio.gather(
            *(self._told(rig.port, one, silence_s) for rig, _ in self._sides for one in inputs)
        )
        halves = (came[: len(inputs)], came[len(inputs) :])
        logged = ""
        for rig, _ in self._sides:
            await rig.idle()
            for said in (*rig.errors, *rig.loop_errors):
                logged = logged or str(said)
            rig.errors.clear()
            rig.loop_errors.clear()
        first, second = (
            (dict(zip(inputs, half, strict=True)), Counter(upstream.asked))
            for half, (_, upstream) in zip(halves, self._sides, strict=True)
        )
        return first, second, logged

    async def _told(self, port: int, sent: bytes, silence_s: float) -> str:
        """What a client of this input is told, and whether its connection went on."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            if self.first:
                writer.write(self.first)
                await reader.readuntil(b"\r\n" + LAST)
            writer.write(sent)
            came = await read_until_silent(reader, silence_s)
            has_ended = reader.at_eof()
            with suppress(ConnectionError):
                writer.write(HEALTH)
                after = await read_until_silent(reader, silence_s)
        finally:
            writer.transport.abort()
        return f"{_seen(sent, came)} {'the end' if has_ended else _seen(HEALTH, after)}"


def _seen(sent: bytes, came: bytes) -> str:
    try:
        replies = list(parse(came, may_lack_body=b"HEAD " in sent))
    except NotHttp as error:
        return str(error)
    tells_of_all = any(start in sent for start in _COUNTS)
    return ", ".join(_shown(reply, tells_of_all=tells_of_all) for reply in replies)


def _shown(reply: Reply, *, tells_of_all: bool) -> str:
    head = _LENGTH.sub(b"", _DATE.sub(b"", _DRAWN.sub(b"-", reply.head)))
    body = b"" if tells_of_all else _DRAWN.sub(b"-", reply.body)
    return f"{head!r} {body!r}{'' if reply.is_whole else ' and no more'}"
