"""Load for the memory guard, cheap and from processes of its own.

    python -m fakes.flood upstream          prints its port and serves until its input ends
    python -m fakes.flood clients PLAN      plays a plan (JSON), a line of JSON for each phase

A test that sends this load from its own process measures itself. The upstream writes answers that
it made once; the clients check every byte of what they read. The model says what is answered:

flood:KB        KB kilobytes of numbered events, as fast as they are taken
paced:N:MS      N numbered events, one every MS milliseconds
tide:MS         one every MS milliseconds until a POST to /finish

The last event before the finish_reason says how many there were, so that a client that was given
a shorter answer with a proper end knows it too.
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import struct
import sys
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fakes.client import chat_body
from fakes.upstream import DONE, FINISH, ROLE, chunk, numbered

FLOOD_EVENT_BYTES = 4000
LIVE_EVENT_BYTES = 500
WRITE_BYTES = 256 * 1024
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# Eight clients leave an answer each so often: 45 MB/s, about what one worker relays of such events
# beside everything else here. Hundreds of answers at once would try the event loop, not the memory.
LEAVE_EVERY_S = 0.8
SMALL_BUFFER_BYTES = 4096  # of a client's socket that shall take next to nothing


def framed(*events: bytes) -> bytes:
    """Events as chunks of a body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


def ending(count: int) -> tuple[bytes, bytes, bytes]:
    """The end of an answer of `count` numbered events."""
    return chunk(content=f"of {count}"), FINISH, DONE


def expected(count: int, size: int = LIVE_EVENT_BYTES) -> bytes:
    """The whole body of an answer of `count` numbered events."""
    return b"".join([ROLE, *(numbered(n, size) for n in range(count)), *ending(count)])


@functools.cache
def flood_body(kilobytes: int) -> bytes:
    count = kilobytes * 1000 // FLOOD_EVENT_BYTES
    events = (numbered(n, FLOOD_EVENT_BYTES) for n in range(count))
    return HEAD + framed(ROLE, *events, *ending(count)) + b"0\r\n\r\n"


@functools.cache
def responses_body(kilobytes: int) -> bytes:
    """The same in the format of responses; for readers that read nothing of it."""

    def event(kind: str, **values: object) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (
            kind.encode(),
            json.dumps({"type": kind, **values}).encode(),
        )

    response = {"id": "resp_flood", "object": "response", "output": []}
    delta = event("response.output_text.delta", delta="a" * FLOOD_EVENT_BYTES)
    count = kilobytes * 1000 // len(delta)
    opening = event("response.created", response=response | {"status": "in_progress"})
    end = event("response.completed", response=response | {"status": "completed"})
    return HEAD + framed(opening, *[delta] * count, end) + b"0\r\n\r\n"


# --- the upstream -----------------------------------------------------------------------------


class UpstreamConnection(asyncio.Protocol):
    """One request after the other."""

    finishing = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return
        fields = head.decode("latin-1").lower().split("\r\n")
        size = next((int(f.split(":")[1]) for f in fields if f.startswith("content-length:")), 0)
        if len(rest) < size:
            return
        self.buffer = rest[size:]
        self.task = asyncio.ensure_future(self.answer(fields[0], rest[:size]))

    async def answer(self, start: str, body: bytes) -> None:
        if start.startswith("get "):
            self.plain(b'{"object":"list","data":[]}')
        elif "/finish" in start:
            self.finishing.set()
            self.plain(b"{}")
        elif "/responses" in start:
            await self.write_all(responses_body(int(json.loads(body)["model"].split(":")[1])))
        else:
            name, *numbers = json.loads(body)["model"].split(":")
            await {"flood": self.flood, "paced": self.paced, "tide": self.tide}[name](
                *map(int, numbers)
            )

    def plain(self, content: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(content), content)
        )

    async def flood(self, kilobytes: int) -> None:
        await self.write_all(flood_body(kilobytes))

    async def write_all(self, answer: bytes) -> None:
        view = memoryview(answer)
        for at in range(0, len(view), WRITE_BYTES):
            self.transport.write(view[at : at + WRITE_BYTES])
            await self.writable.wait()

    async def paced(self, count: int, ms: int) -> None:
        self.transport.write(HEAD + framed(ROLE))
        for number in range(count):
            await asyncio.sleep(ms / 1000)
            self.transport.write(framed(numbered(number, LIVE_EVENT_BYTES)))
        self.transport.write(framed(*ending(count)) + b"0\r\n\r\n")

    async def tide(self, ms: int) -> None:
        self.transport.write(HEAD + framed(ROLE))
        count = 0
        while not self.finishing.is_set():
            self.transport.write(framed(numbered(count, LIVE_EVENT_BYTES)))
            await self.writable.wait()
            count += 1
            await asyncio.sleep(ms / 1000)
        self.transport.write(framed(*ending(count)) + b"0\r\n\r\n")


async def upstream() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(UpstreamConnection, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


# --- the clients ------------------------------------------------------------------------------


def request(base_url: str, model: str, **headers: str) -> bytes:
    """A chat completion request, as bytes."""
    body = json.dumps(chat_body(model)).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {urlsplit(base_url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Reader(asyncio.Protocol):
    """One request and its answer, kept as it came."""

    def __init__(self, ask: bytes) -> None:
        self.ask = ask
        self.raw = bytearray()
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.retry_after_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.ask)

    def data_received(self, data: bytes) -> None:
        self.raw += data
        if not self.status.done() and (end := self.raw.find(b"\r\n\r\n")) > 0:
            head = bytes(self.raw[:end]).decode("latin-1")
            for line in head.lower().split("\r\n"):
                if line.startswith("retry-after:"):
                    self.retry_after_s = float(line.split(":")[1])
            self.status.set_result(int(head.split()[1]))
        if self.raw.endswith(b"\r\n0\r\n\r\n") and not self.over.done():
            self.over.set_result("")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.status.done():
            self.status.set_result(0)
        if not self.over.done():
            self.over.set_result(f"cut: {exc or 'end of file'}")

    def vanish(self) -> None:
        """Closes with RST."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def body(self) -> bytes:
        """Without head and chunks."""
        rest = memoryview(bytes(self.raw))[self.raw.find(b"\r\n\r\n") + 4 :]
        whole = bytearray()
        at = 0
        while at < len(rest):
            end = bytes(rest[at : at + 20]).find(b"\r\n")
            if end < 0:
                break
            size = int(bytes(rest[at : at + end]).split(b";")[0], 16)
            whole += rest[at + end + 2 : at + end + 2 + size]
            at += end + 2 + size + 2
        return bytes(whole)

    def trouble(self) -> str:
        """What is wrong with the answer; empty if every byte is right."""
        if self.status.result() != 200:
            return f"status {self.status.result()}: {bytes(self.raw[-300:])!r}"
        events = [
            b"".join(line + b"\n" for line in event.split(b"\n") if not line.startswith(b":"))
            for event in self.body().split(b"\n\n")
        ]
        body = b"".join(event + b"\n" for event in events if event.strip())
        if (why := self.over.result()) or not body.endswith(DONE):
            return f"{why or 'no [DONE]'}, after {body[-300:]!r}"
        count = body.count(b"\n\n") - 4  # the role, the count, the finish_reason and [DONE]
        right = expected(count)
        if body == right:
            return ""
        pairs = enumerate(zip(body.split(b"\n\n"), right.split(b"\n\n"), strict=False))
        number, (got, _) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        return f"event {number} of {count} is {got[:200]!r}"


@dataclass
class Counts:
    """What became of one kind of client."""

    asked: int = 0
    refused: int = 0  # 503
    retry_after: int = 0  # of these with a Retry-After
    unreachable: int = 0  # the connection itself was refused or broke before an answer
    accepted: int = 0
    exact: int = 0
    troubles: list[str] = field(default_factory=list)


class Clients:
    """Plays a plan against a gateway."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.base_url: str = plan["base_url"]
        self.place = (urlsplit(self.base_url).hostname, urlsplit(self.base_url).port)
        self.live, self.left, self.readers = Counts(), Counts(), Counts()
        self.blind: list[socket.socket] = []
        self.going = True

    async def connect(self, model: str, **headers: str) -> Reader:
        loop = asyncio.get_running_loop()
        ask = request(self.base_url, model, **headers)
        _, reader = await loop.create_connection(lambda: Reader(ask), *self.place)
        return reader

    async def play(self) -> None:
        loop = asyncio.get_running_loop()
        lives = [await self.connect("tide:50") for _ in range(self.plan.get("live", 0))]
        statuses = [await live.status for live in lives]
        self.live.asked = self.live.accepted = len(lives)
        assert all(status == 200 for status in statuses), statuses
        readers = [
            asyncio.create_task(self.read_again_and_again(n))
            for n in range(self.plan.get("readers", 0))
        ]
        self.say("begun")
        todo = iter(range(self.plan.get("left", 0)))
        await asyncio.gather(self.open_blinds(), *(self.leave_some(todo) for _ in range(8)))
        self.say("loaded", left=vars(self.left))
        await loop.run_in_executor(None, sys.stdin.readline)
        self.going = False
        await asyncio.gather(*readers)
        if lives:
            await self.post_finish()
        for live in lives:
            await asyncio.wait_for(live.over, 60)
            self.judge(self.live, live)
        for sock in self.blind:
            sock.close()
        self.say("over", live=vars(self.live), left=vars(self.left), readers=vars(self.readers))

    def judge(self, counts: Counts, reader: Reader) -> None:
        if trouble := reader.trouble():
            counts.troubles.append(trouble)
        else:
            counts.exact += 1

    async def read_again_and_again(self, number: int) -> None:
        """Whole answers, each over a connection of its own, until it is enough."""
        counts = self.readers
        await asyncio.sleep(number * 0.03)
        while self.going:
            counts.asked += 1
            try:
                reader = await self.connect(self.plan["model"])
            except OSError as error:
                counts.unreachable += 1
                counts.troubles.append(f"no connection: {error}")
                await asyncio.sleep(0.2)
                continue
            if await reader.status == 503:
                counts.refused += 1
                counts.retry_after += reader.retry_after_s > 0
                reader.transport.close()
                await asyncio.sleep(0.5)
                continue
            counts.accepted += 1
            await reader.over
            self.judge(counts, reader)
            reader.transport.close()

    async def open_blinds(self) -> None:
        """Clients that ask and never read, some every moment."""
        for _ in range(self.plan.get("blind", 0)):
            await self.open_blind()
            await asyncio.sleep(0.02)

    async def open_blind(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        await asyncio.get_running_loop().sock_connect(sock, self.place)
        sock.send(request(self.base_url, self.plan["flood"]))
        self.blind.append(sock)

    async def leave_some(self, todo: Any) -> None:
        """Clients that ask for an answer that goes on without them, and go."""
        counts = self.left
        deadline_s = asyncio.get_running_loop().time() + self.plan.get("left_limit_s", 30.0)
        for _ in todo:
            while True:
                counts.asked += 1
                reader = await self.connect(self.plan["flood"], **{"x-on-disconnect": "continue"})
                status = await reader.status
                reader.vanish()
                if status == 200:
                    counts.accepted += 1
                    await asyncio.sleep(LEAVE_EVERY_S)
                    break
                counts.refused += status == 503
                counts.retry_after += reader.retry_after_s > 0
                counts.unreachable += status == 0
                if asyncio.get_running_loop().time() > deadline_s:
                    return
                await asyncio.sleep(0.5)

    async def post_finish(self) -> None:
        """Tell the upstream to bring its tides to their end."""
        place = urlsplit(self.plan["upstream"])
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(b"POST /finish HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    def say(self, phase: str, **found: object) -> None:
        print(json.dumps({"phase": phase, **found}), flush=True)


def main(arguments: list[str]) -> None:
    """Be one of the two."""
    if arguments[0] == "upstream":
        asyncio.run(upstream())
    else:
        asyncio.run(Clients(json.loads(arguments[1])).play())


if __name__ == "__main__":
    main(sys.argv[1:])
