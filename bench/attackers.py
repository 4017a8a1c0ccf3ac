"""Clients that try to make a gateway hold memory, in a process of their own.

    python bench/attackers.py PLAN      plays a plan (JSON) until its input ends or says "stop"

Each kind keeps a number of connections busy for as long as the attack lasts: a client that is
refused or closed comes again, a moment later. Nothing here reads more than it must. At the end one
line of JSON says what each kind was told: statuses, close codes, resets.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

MIB = 1024 * 1024
HEAD_LINE = b"X-Filler: " + b"a" * 7990 + b"\r\n"
HEAD_LINES = 128  # with the lines above: 1 MB, and each line is within its own bound
BODY_BYTES = MESSAGE_BYTES = 31 * MIB  # just below limits.max_body
BOMB_BYTES = 300 * MIB  # inflated
PIECE_BYTES = 256 * 1024
SMALL_BUFFER_BYTES = 4096  # of a socket that shall take next to nothing
AGAIN_S = 0.3  # before one that was closed comes again
FLOOD = "flood:4400"  # more than a window of 4 MiB
KEY = b"\0\0\0\0"  # a mask that changes nothing


class Attack:
    """Where it goes, for how long, and what it was told."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.place = (parts.hostname, parts.port)
        self.host = parts.netloc
        self.told: dict[str, Counter[str]] = {}
        self.over = asyncio.Event()

    async def keep(self, kind: str, act: Callable[[Attack], Awaitable[str]]) -> None:
        """Play one client of a kind, again and again until it is over."""
        counts = self.told.setdefault(kind, Counter())
        while not self.over.is_set():
            try:
                counts[await act(self)] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                counts[type(error).__name__] += 1
            await asyncio.sleep(AGAIN_S)

    async def connect(self, *, small: bool = False) -> tuple[socket.socket, Reader]:
        """Open a connection; with `small` its client takes next to nothing."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            if small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            await asyncio.get_running_loop().sock_connect(sock, self.place)
        except BaseException:
            sock.close()
            raise
        return sock, Reader(sock)

    def post(self, path: str, size: int, *lines: str) -> bytes:
        """Send a head."""
        head = (
            f"POST {path} HTTP/1.1",
            f"Host: {self.host}",
            "Content-Type: application/json",
            f"Content-Length: {size}",
            *lines,
        )
        return "\r\n".join(head).encode() + b"\r\n\r\n"

    def ask(self, model: str) -> bytes:
        """Send a whole request for a stream."""
        body = question(model)
        return self.post("/v1/chat/completions", len(body)) + body


class Reader:
    """What a socket was answered: only as much as one must know."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def status(self) -> str:
        """Read the status of an answer, or how the connection ended."""
        loop = asyncio.get_running_loop()
        data = await loop.sock_recv(self.sock, 4096)
        return data.split(b" ", 2)[1].decode("latin-1") if data.startswith(b"HTTP/") else "closed"

    async def until_closed(self, over: asyncio.Event) -> str:
        """Read what little comes until the other side closes or the attack is over."""
        loop = asyncio.get_running_loop()
        waiting = asyncio.create_task(over.wait())
        seen = b""
        try:
            while not over.is_set():
                reading = asyncio.create_task(loop.sock_recv(self.sock, 4096))
                await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    return "held to the end"
                data = reading.result()
                if not data:
                    break
                seen = seen or data
            if seen.startswith(b"HTTP/"):
                return seen.split(b" ", 2)[1].decode("latin-1")
            return f"close {_close_code(seen)}" if seen else "closed"
        finally:
            waiting.cancel()


def _close_code(data: bytes) -> str:
    """Return the code of a WebSocket's close frame, where one begins in these bytes."""
    at = data.find(b"\x88")
    return str(struct.unpack_from("!H", data, at + 2)[0]) if 0 <= at <= len(data) - 4 else "?"


def question(model: str) -> bytes:
    """Make a chat completion request."""
    message = {"role": "user", "content": "hello"}
    return json.dumps({"model": model, "stream": True, "messages": [message]}).encode()


async def send(sock: socket.socket, data: bytes, over: asyncio.Event) -> None:
    """Send it in pieces, for as long as it is taken and the attack lasts."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    for at in range(0, len(view), PIECE_BYTES):
        if over.is_set():
            return
        await asyncio.wait_for(loop.sock_sendall(sock, view[at : at + PIECE_BYTES]), 60)


# --- the kinds --------------------------------------------------------------------------------


async def heads(attack: Attack) -> str:
    """Send a megabyte of a head whose end never comes."""
    sock, reader = await attack.connect()
    with sock:
        start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {attack.host}\r\n".encode()
        with suppress(ConnectionError):
            await send(sock, start + HEAD_LINE * HEAD_LINES, attack.over)
        return await reader.until_closed(attack.over)


async def messages(attack: Attack) -> str:
    """Send a WebSocket's message of 31 MiB, whose last byte never comes."""
    sock, reader = await attack.connect()
    with sock:
        if (status := await upgrade(attack, sock, reader, "/v1/responses")) != "101":
            return status
        frame = b"\x81\xff" + struct.pack("!Q", MESSAGE_BYTES) + KEY
        with suppress(ConnectionError):
            await send(sock, frame + b'{"type":"' + b"a" * (MESSAGE_BYTES - 10), attack.over)
        return await reader.until_closed(attack.over)


async def uploads(attack: Attack) -> str:
    """Send a whole body of 31 MiB, for an upstream that reads nothing."""
    sock, reader = await attack.connect()
    with sock:
        body = question("silent/m")
        body = body.replace(b"hello", b"a" * (BODY_BYTES - len(body)))
        with suppress(ConnectionError):
            await send(sock, attack.post("/v1/chat/completions", len(body)) + body, attack.over)
        return await reader.until_closed(attack.over)


async def bombs(attack: Attack) -> str:
    """Send 300 KB that inflate to 300 MB."""
    sock, reader = await attack.connect()
    with sock:
        head = attack.post("/v1/chat/completions", len(BOMB), "Content-Encoding: gzip")
        with suppress(ConnectionError):
            await send(sock, head + BOMB, attack.over)
        return await reader.until_closed(attack.over)


async def dead_readers(attack: Attack) -> str:
    """Ask for 4.4 MB and read nothing."""
    sock, _ = await attack.connect(small=True)
    with sock:
        await send(sock, attack.ask(f"box/{FLOOD}"), attack.over)
        await attack.over.wait()
        return "held to the end"


async def dead_sockets(attack: Attack) -> str:
    """Ask for 4.4 MB over a WebSocket and read nothing but the handshake."""
    sock, reader = await attack.connect(small=True)
    with sock:
        if (status := await upgrade(attack, sock, reader, "/v1/responses")) != "101":
            return status
        ask = {"type": "response.create", "model": f"box/{FLOOD}", "input": "hello"}
        text = json.dumps(ask).encode()
        frame = b"\x81" + bytes([0x80 | 126]) + struct.pack("!H", len(text)) + KEY + text
        await send(sock, frame, attack.over)
        await attack.over.wait()
        return "held to the end"


async def idle(attack: Attack) -> str:
    """Hold a connection on which nothing is asked."""
    sock, reader = await attack.connect()
    with sock:
        return await reader.until_closed(attack.over)


async def slow_bodies(attack: Attack) -> str:
    """Send a body one byte a second."""
    sock, reader = await attack.connect()
    with sock:
        await send(sock, attack.post("/v1/chat/completions", 1000), attack.over)
        reading = asyncio.create_task(reader.until_closed(attack.over))
        while not reading.done():
            with suppress(OSError):
                sock.send(b" ")
            await asyncio.wait({reading}, timeout=1.0)
        return reading.result()


async def slow_readers(attack: Attack) -> str:
    """Ask for 4.4 MB and read a kilobyte a second."""
    sock, _ = await attack.connect(small=True)
    loop = asyncio.get_running_loop()
    with sock:
        await send(sock, attack.ask(f"box/{FLOOD}"), attack.over)
        while not attack.over.is_set():
            if not await loop.sock_recv(sock, 1024):
                return "closed"
            await asyncio.sleep(1.0)
        return "held to the end"


async def half_heads(attack: Attack) -> str:
    """Send a head that stops in the middle."""
    sock, reader = await attack.connect()
    with sock:
        await send(sock, b"POST /v1/chat/completions HTTP/1.1\r\nHost: ", attack.over)
        return await reader.until_closed(attack.over)


KINDS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "heads": heads,
    "messages": messages,
    "uploads": uploads,
    "bombs": bombs,
    "dead readers": dead_readers,
    "dead sockets": dead_sockets,
    "idle": idle,
    "slow bodies": slow_bodies,
    "slow readers": slow_readers,
    "half heads": half_heads,
}


async def upgrade(attack: Attack, sock: socket.socket, reader: Reader, path: str) -> str:
    """Shake hands for a WebSocket; the status."""
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {attack.host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    await send(sock, "\r\n".join(lines).encode() + b"\r\n\r\n", attack.over)
    return await reader.status()


def _bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    spaces = b" " * MIB
    return b"".join(packer.compress(spaces) for _ in range(BOMB_BYTES // MIB)) + packer.flush()


BOMB = b""


async def play(plan: dict[str, Any]) -> None:
    """Play all kinds of the plan at once, until the input says so."""
    attack = Attack(plan["base_url"])
    tasks = [
        asyncio.create_task(attack.keep(kind, KINDS[kind]))
        for kind, count in plan["clients"].items()
        for _ in range(count)
    ]
    print(json.dumps({"phase": "begun"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    attack.over.set()
    _, pending = await asyncio.wait(tasks, timeout=5)
    for task in pending:
        task.cancel()
    print(json.dumps({"phase": "over", "told": attack.told}), flush=True)


if __name__ == "__main__":
    the_plan = json.loads(sys.argv[1])
    if "bombs" in the_plan["clients"]:
        BOMB = _bomb()
    os.nice(5)  # the gateway and its honest clients come first on a small machine
    asyncio.run(play(the_plan))
