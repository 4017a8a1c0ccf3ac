"""WebSockets that keep no rule of theirs: closed with a reason, and nothing of them stays."""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fakes.client import get
from gateway.gateway_rig import Rig
from hostile.conftest import Tried
from hostile.exchange import read_until_silent, try_all, willing
from hostile.mutate import mutants
from hostile.requests import UPGRADE, request

AT_ONCE = 50
FRAMES = 1_500
HANDSHAKES = 1_000
LIMITS = {
    "header_s": 0.5,
    "body_s": 0.5,
    "first_output_s": 3.0,
    "total_s": 20.0,
    "keepalive_s": 1.0,
}
MOST_S = 20.0
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
QUESTION = json.dumps(
    {"type": "response.create", "response": {"model": "m", "input": [{"role": "user"}]}}
).encode()
FLAT = json.dumps({"type": "response.create", "model": "m", "input": "hi", "stream": True}).encode()
MESSAGES = [
    QUESTION,
    FLAT,
    b'{"type":"response.create","model":"m","input":"a","previous_response_id":"resp_1"}',
    b'{"type":"response.create","model":"m","input":"a","generate":false}',
    b'{"type":"response.cancel"}',
    b"{}",
]
WORDS = [b'"type":', b'"model":1,', b"\\ud800", b"[" * 3_000, b"null", b'"stream":"x",', b"\xff"]
OPEN = request(b"GET /v1/responses", *UPGRADE)


def frame(
    opcode: int, content: bytes, *, first: int = 0x80, masked: bool = True, length: bytes = b""
) -> bytes:
    """A frame; `length` in place of the true one."""
    mask = os.urandom(4) if masked else b""
    bit = 0x80 if masked else 0
    if not length:
        if len(content) < 126:
            length = bytes([bit | len(content)])
        elif len(content) < 1 << 16:
            length = bytes([bit | 126]) + struct.pack(">H", len(content))
        else:
            length = bytes([bit | 127]) + struct.pack(">Q", len(content))
    body = bytes(b ^ mask[i % 4] for i, b in enumerate(content)) if masked else content
    return bytes([first | opcode]) + length + mask + body


BROKEN = {
    "unmasked": frame(TEXT, FLAT, masked=False),
    "a reserved bit": frame(TEXT, FLAT, first=0xC0),
    "all reserved bits": frame(TEXT, FLAT, first=0xF0),
    "a reserved opcode": frame(3, FLAT),
    "a reserved control opcode": frame(11, b"x"),
    "a long ping": frame(PING, b"x" * 126),
    "a ping in parts": frame(PING, b"x", first=0),
    "a part of nothing": frame(0, FLAT),
    "a text in a text": frame(TEXT, b"{", first=0) + frame(TEXT, b"}"),
    "not UTF-8": frame(TEXT, b'{"type":"\xff"}'),
    "half a character": frame(TEXT, b"\xc3"),
    "a surrogate": frame(TEXT, b'"\xed\xa0\x80"'),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a close with no code": frame(CLOSE, struct.pack(">H", 0)),
    "a close with a reserved code": frame(CLOSE, struct.pack(">H", 1005)),
    "a close not in UTF-8": frame(CLOSE, struct.pack(">H", 1000) + b"\xff"),
    "a length of the wrong size": frame(TEXT, b"{}", length=b"\xfe\x00\x02"),
    "an endless length": frame(TEXT, b"{}", length=b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    "a huge length": frame(TEXT, b"{}", length=b"\xff\x00\x00\x00\xff\xff\xff\xff\xff"),
    "HTTP": OPEN,
    "zeros": bytes(200),
    "half a frame": frame(TEXT, FLAT)[:9],
    "nothing": b"",
    "empty messages": frame(TEXT, b"") * 500,
    "empty parts": frame(TEXT, b"", first=0) + frame(0, b"", first=0) * 5_000,
    "pings": frame(PING, b"x" * 125) * 5_000,
    "pongs": frame(PONG, b"") * 5_000,
    "binary": frame(BINARY, FLAT),
    "many questions": frame(TEXT, FLAT) * 50,
}


async def converse(rig: Rig, sent: bytes) -> bytes:
    """Open a WebSocket, send these bytes, and read until nothing comes any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    try:
        async with asyncio.timeout(MOST_S):
            writer.write(OPEN)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 "), head
            writer.write(sent)
            return await read_until_silent(reader)
    finally:
        writer.transport.abort()


async def converse_all(rig: Rig, inputs: list[bytes]) -> list[bytes]:
    """Some at a time; nothing is logged as an error, and the gateway serves on."""
    said: list[bytes] = []
    for first in range(0, len(inputs), AT_ONCE):
        batch = inputs[first : first + AT_ONCE]
        said += await asyncio.gather(*(converse(rig, sent) for sent in batch))
        logged = [record.getMessage() for record in rig.errors] + rig.loop_errors
        assert not logged, (logged[:3], [sent[:200] for sent in batch])
    assert (await get(rig.base_url, "/healthz")).status == 200
    return said


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
async def test_frames_that_break_a_rule(rigs, raw_upstream, tried: Tried, sent: bytes) -> None:
    """Each is answered by a close or an error message, or is nothing; the connection is let go."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    await converse_all(rig, [sent])
    tried(1)


def odd_frames(seed: str, count: int) -> Iterator[bytes]:
    """Messages that were changed, in frames that were cut, spliced and changed too."""
    dice = random.Random(seed)
    for message in mutants(MESSAGES, WORDS, seed, count):
        content = message[:50_000]
        match dice.randrange(4):
            case 0:  # the message alone is odd
                yield frame(TEXT, content)
            case 1:  # in parts, with a ping between them
                at = dice.randint(0, len(content))
                yield (
                    frame(TEXT, content[:at], first=0) + frame(PING, b"?") + frame(0, content[at:])
                )
            case 2:  # the frame's own bytes are odd
                whole = bytearray(frame(dice.choice((TEXT, BINARY, CLOSE, PING)), content))
                for _ in range(dice.randint(1, 3)):
                    whole[dice.randrange(min(16, len(whole)))] = dice.randrange(256)
                yield bytes(whole)
            case _:
                yield frame(TEXT, FLAT) + frame(TEXT, content) + frame(CLOSE, b"\x03\xe8")


async def test_odd_messages_in_odd_frames(rigs, raw_upstream, tried: Tried) -> None:
    """Whatever is said over a WebSocket costs that connection at most."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    tried(len(await converse_all(rig, list(odd_frames("frames", FRAMES)))))


async def test_a_message_that_never_ends_is_given_up(rigs, raw_upstream, tried: Tried) -> None:
    """Pings that are answered do not keep half a message alive: it has body_s, like a body."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(OPEN)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(frame(TEXT, b"{" * 100_000, first=0))
    try:
        async with asyncio.timeout(MOST_S):
            while await reader.read(1 << 16):
                with suppress(ConnectionError):
                    writer.write(frame(PONG, b""))
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    tried(1)


ODD_UPGRADES = [
    request(b"GET /v1/responses", *UPGRADE),
    request(b"GET /v1/runs/run_0/stream?starting_after=1", *UPGRADE),
    request(b"GET /v1/responses", *UPGRADE, b"Sec-WebSocket-Protocol: realtime, x.y"),
    request(b"GET /v1/responses", *UPGRADE, b"Sec-WebSocket-Extensions: permessage-deflate; a=b"),
    request(b"POST /v1/responses", *UPGRADE),
]
UPGRADE_WORDS = [
    *(b"Sec-WebSocket-Key: x\r\n", b"Sec-WebSocket-Version: 8\r\n", b"websocket, h2c"),
    *(b"Sec-WebSocket-Protocol: \xff\xfe\r\n", b"Sec-WebSocket-Extensions: \x80\r\n"),
    *(b"Origin: http://evil.example\r\n", b"Upgrade: h2c\r\n", b"=" * 30, b"\x80"),
]


async def test_handshakes_that_are_wrong(rigs, raw_upstream, tried: Tried) -> None:
    """A handshake that is none is refused with a reason, and never with 500."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    inputs = mutants(ODD_UPGRADES, UPGRADE_WORDS, "handshakes", HANDSHAKES)
    tried(len(await try_all(rig, inputs)))
