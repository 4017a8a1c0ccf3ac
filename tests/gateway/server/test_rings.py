"""What a client sent is free when the client has gone, and not when the collector comes."""

from __future__ import annotations

import asyncio
import gc
import zlib

import pytest

from fakes.machine import until
from tidegate.gateway.server.client_protocol import ClientProtocol

MIB = 1024 * 1024
LIMIT_S = 10.0
POST = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
UPGRADE = (
    "GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def _bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    return b"".join(packer.compress(b" " * MIB) for _ in range(300)) + packer.flush()


def post(body: bytes, *lines: str, size: int | None = None) -> bytes:
    """A request with this body, or with more to come of it."""
    more = "".join(f"{line}\r\n" for line in lines)
    length = f"Content-Length: {len(body) if size is None else size}\r\n"
    return f"{POST}{more}{length}\r\n".encode() + body


SENT = {
    "a body that inflates": lambda: post(_bomb(), "Content-Encoding: gzip"),
    "half a body": lambda: post(b"x" * 300_000, size=900_000),
    "no JSON": lambda: post(b'{"model":"m","messages":[' + b" " * 50_000),
    "another shape": lambda: post(b'["model"]'),
    "half a message": lambda: (
        UPGRADE.encode() + b"\x81\xff\0\0\0\0\0\xf0\0\0\0\0\0\0" + b"a" * 100_000
    ),
    "a message against the rules": lambda: UPGRADE.encode() + b"\x81\x05hello",
}


def connections() -> int:
    return sum(isinstance(each, ClientProtocol) for each in gc.get_objects())


@pytest.mark.long
@pytest.mark.parametrize("kind", SENT)
async def test_what_was_sent_goes_with_its_client(rigs, scripted_upstream, kind: str) -> None:
    """No ring of an error, its frames and the connection stays for the collector."""
    data = SENT[kind]()
    rig = await rigs(scripted_upstream)
    server = rig.gateway.server
    gc.collect()
    gc.disable()
    try:
        before = connections()
        _, writer = await asyncio.open_connection("127.0.0.1", int(rig.base_url.rsplit(":", 1)[1]))
        writer.write(data)
        await until(lambda: server.table.statistics().accepted == 1, LIMIT_S, "it has come")
        await until(
            lambda: not server.table.statistics().connections["fresh"], LIMIT_S, "it is read"
        )
        await asyncio.sleep(0.1)  # its request is under way, or over
        writer.transport.abort()
        await until(lambda: not server.table.open_connections, LIMIT_S, "it has gone")
        await until(lambda: connections() == before, LIMIT_S, "nothing is left of it")
    finally:
        gc.enable()
