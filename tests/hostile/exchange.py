"""Raw bytes sent to a real gateway, many connections at a time, and what may never come of it.

Every answer is an HTTP answer; none of them is 500, for that is a mistake of ours; a refusal says
why in JSON; nothing is logged as an error; and afterwards the gateway serves on and holds nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from fakes.client import get
from gateway.gateway_rig import HEAD, LAST, Peer, Rig, chunked, plain

AT_ONCE = 250
# What is a part of a request waits for the rest of it; nothing more comes, so it is hung up on.
SILENCE_S = 0.25
MOST_S = 20.0
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [ -~]*\r\n")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: chunked\r\n")


class NotHttp(Exception):
    """What came back is no HTTP."""


@dataclass
class Reply:
    """One answer."""

    status: int
    head: bytes
    body: bytes
    is_whole: bool = True


@dataclass
class Tried:
    """One input, and what came of it."""

    sent: bytes
    replies: list[Reply] = field(default_factory=list)
    wrong: str = ""

    def __str__(self) -> str:
        return f"{self.wrong}: {self.sent[:300]!r}"


async def try_all(rig: Rig, inputs: Iterable[bytes]) -> list[Tried]:
    """Each on a connection of its own. Fails on the first wrong ones, which it names."""
    tried: list[Tried] = []
    for batch in _batches(inputs):
        done = await asyncio.gather(*(try_one(rig.port, sent) for sent in batch))
        wrong = [one for one in done if one.wrong]
        assert not wrong, "\n".join(map(str, wrong[:10]))
        logged = [record.getMessage() for record in rig.errors] + rig.loop_errors
        assert not logged, (logged[:3], [one.sent[:300] for one in done])
        tried += done
    assert (await get(rig.base_url, "/healthz")).status == 200
    return tried


def _batches(inputs: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(inputs)
    while batch := list(islice(rest, AT_ONCE)):
        yield batch


async def try_one(port: int, sent: bytes) -> Tried:
    """Send it, read what comes until it is silent, and look at that."""
    one = Tried(sent)
    try:
        async with asyncio.timeout(MOST_S):
            came = await _exchange(port, sent)
    except TimeoutError:
        one.wrong = "it never ended"
        return one
    try:
        one.replies = list(parse(came, may_lack_body=b"HEAD " in sent))
    except NotHttp as error:
        one.wrong = str(error)
        return one
    one.wrong = next(filter(None, map(_wrong_with, one.replies)), "")
    return one


async def _exchange(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return await read_until_silent(reader)
    finally:
        writer.transport.abort()


async def read_until_silent(reader: asyncio.StreamReader, silence_s: float = SILENCE_S) -> bytes:
    """What comes until the end, or until nothing has come for `silence_s`."""
    came = bytearray()
    with suppress(ConnectionError, TimeoutError):
        while True:
            async with asyncio.timeout(silence_s):
                data = await reader.read(1 << 16)
            if not data:
                break
            came += data
    return bytes(came)


def parse(came: bytes, *, may_lack_body: bool = False) -> Iterator[Reply]:
    """The answers, one behind the other. Raises NotHttp.

    An answer to HEAD says a length and has no body, but what cannot be read as a request has one.
    """
    while came:
        found = _STATUS.match(came)
        head, end, rest = came.partition(b"\r\n\r\n")
        if not found or not end:
            raise NotHttp(f"this is no head of an answer: {came[:200]!r}")
        head += b"\r\n"
        status = int(found[1])
        if status == 101:
            yield Reply(status, head, rest)
            return
        lacks_body = may_lack_body and (not rest or rest.startswith(b"HTTP/1."))
        if lacks_body or status in {204, 304} or status < 200:
            body, came, whole = b"", rest, True
        elif length := _LENGTH.search(head):
            size = int(length[1])
            body, came, whole = rest[:size], rest[size:], len(rest) >= size
        elif _CHUNKED.search(head):
            body, came, whole = _unchunk(rest)
        else:
            body, came, whole = rest, b"", True
        yield Reply(status, head, body, whole)
        if not whole:
            return


def _unchunk(data: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while True:
        line, end, rest = data.partition(b"\r\n")
        if not end:
            return body, b"", False
        if not re.fullmatch(rb"[0-9a-fA-F]+", line):
            raise NotHttp(f"this is no size of a chunk: {line[:80]!r}")
        size = int(line, 16)
        if len(rest) < size + 2:
            return body + rest[:size], b"", False
        body, data = body + rest[:size], rest[size + 2 :]
        if not size:
            return body, data, True


def _wrong_with(reply: Reply) -> str:
    """What is wrong with an answer; empty when nothing is."""
    if reply.status == 500:
        return f"500: {reply.body[:200]!r}"
    if reply.status >= 400 and reply.is_whole and reply.body and not _tells_error(reply.body):
        return f"{reply.status} without saying why: {reply.body[:200]!r}"
    return ""


def _tells_error(body: bytes) -> bool:
    with suppress(ValueError):
        told = json.loads(body)
        return isinstance(told, dict) and bool(told.get("error"))
    return False


CHAT_WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        ],
    }
).encode()
STREAM = (
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)


async def willing(peer: Peer) -> None:
    """An upstream that answers whatever it is asked, over one connection as long as it lasts."""
    while True:
        request = await peer.request()
        if b"event-stream" in request.partition(b"\r\n\r\n")[0]:
            await peer.send(HEAD + chunked(*STREAM) + LAST)
        else:
            await peer.send(plain(CHAT_WHOLE))
