"""An upstream that does what the request's model name says, well or badly.

It runs in a thread with an event loop of its own and counts what a gateway does to it: open
connections, requests with their heads and bodies, bytes taken, and when its client went away.
The name is a script: a behaviour and its numbers, divided by colons ("numbered:100:5").

ok                  a role, three words, a finish_reason and [DONE]
numbered:N:MS       N words that are their own number, MS milliseconds apart
bulk:KB             KB kilobytes of numbered events as fast as they are taken
stuck:KB            the same, then silence with the connection open
preamble:KB         KB kilobytes of roles, which are no output, then silence
wait:MS             headers and role at once, the first word after MS milliseconds
gap:MS              a word, MS milliseconds of silence, another word and the end
drop:K  reset:K     K words and half an event, then the connection is closed, or reset
no-terminal:K       K words, then a proper end of the body without finish_reason or [DONE]
finish-no-done      a finish_reason and a proper end, but no [DONE]
error-first         an error event as the first event of a 200
error-middle        two words, an error event, a proper end
status:S[:RETRY]    status S with a JSON error (and Retry-After)
status-once:S       the same for the first request of this model, "ok" afterwards
silent              the request is read, nothing is answered
headers-then-silent the head of a 200, and nothing more
garbage             bytes that are no HTTP
huge-event          one event of more than 4 MiB
one-byte            "ok", one byte a chunk, one chunk a write
crlf                "ok" with CRLF line ends
comments            a word, then comments without end
json  slow-json:MS  an answer that is no stream (after MS milliseconds)
big-head            a response head of a megabyte
close-reused        closes a kept-alive connection when a second request comes on it
"""

import asyncio
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from fakes.machine import stop_listening, until

EVENT_BYTES = 1000  # of "bulk" and "stuck"
PAGE_EVENTS = 20
HALF_AN_EVENT = b'data: {"choices":[{"index":0,"del'


def chunk(finish: str | None = None, **delta: object) -> bytes:
    """One event of a chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [choice],
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


ROLE = chunk(role="assistant", content="")
FINISH = chunk(finish="stop")
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"the fake is overloaded","type":"server_error","code":503}}\n\n'
OK = [ROLE, *(chunk(content=word) for word in ("one ", "two ", "three")), FINISH, DONE]


def numbered(number: int, size: int = 0) -> bytes:
    """A word that is its own number, padded to `size` bytes."""
    event = chunk(content=f"{number} ")
    return event if len(event) >= size else chunk(content=f"{number} " + "." * (size - len(event)))


def pages(kilobytes: int) -> Iterator[bytes]:
    """Numbered events of 1000 bytes, twenty at a time, which is what makes a large answer quick."""
    events = kilobytes * 1000 // EVENT_BYTES
    for first in range(0, events, PAGE_EVENTS):
        last = min(first + PAGE_EVENTS, events)
        yield b"".join(numbered(number, EVENT_BYTES) for number in range(first, last))


@dataclass
class Seen:
    """One request as it arrived, and what became of it. Times are `time.monotonic()`."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at_s: float
    sent_bytes: int = 0
    finished: bool = False
    gone_s: float | None = None  # when the client went away before the answer was finished

    @property
    def model(self) -> str:
        """The model asked for; empty where there is none."""
        return str(json.loads(self.body).get("model", "")) if self.body else ""


class Gone(Exception):
    """The client closed the connection."""


@dataclass
class ScriptedUpstream:
    """The server; `requests` and the counters may be read from any thread."""

    port: int = 0
    requests: list[Seen] = field(default_factory=list)
    open_connections: int = 0
    connections: int = 0
    tried: Counter[str] = field(default_factory=Counter)

    def start(self) -> Self:
        """Listens on a port of the system's choice."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(self._listen())
        return self

    def stop(self) -> None:
        """Closes everything and ends the thread."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    def refuse(self) -> None:
        """From here on nobody listens, and what is open is reset: the computer was unplugged."""
        self._call(self._close())

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def seen(self, model: str) -> list[Seen]:
        """The requests for one model, oldest first."""
        return [seen for seen in list(self.requests) if seen.body and seen.model == model]

    @property
    def active(self) -> int:
        """Answers that are neither finished nor given up."""
        return sum(not (seen.finished or seen.gone_s) for seen in list(self.requests))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _listen(self) -> asyncio.Server:
        self._live: set[_Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        server = await self._loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=2048
        )
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self) -> None:
        await stop_listening(self._server)
        for connection in self._live:
            connection.reset()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await until(lambda: not self._live, 10, "its connections are closed", 0)


class _Connection(asyncio.Protocol):
    """One connection: requests one after the other, each answered by its script."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.buffer = bytearray()
        self.arrived = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.gone = asyncio.Event()
        self.served = 0

    # --- the protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.upstream.connections += 1
        self.upstream.open_connections += 1
        self.upstream._live.add(self)
        serving = asyncio.ensure_future(self.serve())
        self.upstream._serving.add(serving)
        serving.add_done_callback(self.upstream._serving.discard)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open_connections -= 1
        self.upstream._live.discard(self)
        self.gone.set()
        self.arrived.set()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def reset(self) -> None:
        """Closes with RST."""
        sock = self.transport.get_extra_info("socket")
        if not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # --- requests -------------------------------------------------------------------------

    async def serve(self) -> None:
        try:
            while not self.transport.is_closing():
                await self.answer(await self.request())
        except Gone:
            pass
        finally:
            self.transport.close()

    async def request(self) -> Seen:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self.more()
        start, *lines = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in
                   (line.partition(":") for line in lines)}  # fmt: skip
        del self.buffer[: end + 4]
        size = int(headers.get("content-length", 0))
        while len(self.buffer) < size:
            await self.more()
        body = bytes(self.buffer[:size])
        del self.buffer[:size]
        method, path, _ = start.split(" ", 2)
        seen = Seen(method, path, headers, body, time.monotonic())
        self.upstream.requests.append(seen)
        self.served += 1
        return seen

    async def more(self) -> None:
        self.arrived.clear()
        if self.gone.is_set():
            raise Gone
        await self.arrived.wait()
        if self.gone.is_set():
            raise Gone

    async def answer(self, seen: Seen) -> None:
        self.seen = seen
        try:
            if seen.method == "GET":
                await self.plain(200, {"object": "list", "data": [], "status": "ok"})
            else:
                name, *numbers = seen.model.split(":")
                play = SCRIPTS[name]
                self.upstream.tried[seen.model] += 1
                await play(self, *map(int, numbers))
            seen.finished = True
        finally:
            if not seen.finished:
                seen.gone_s = time.monotonic()

    # --- what scripts are made of -----------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether a stream was asked for."""
        return bool(json.loads(self.seen.body).get("stream"))

    async def send(self, data: bytes) -> None:
        """Writes, and waits while the client does not read. Raises Gone."""
        if self.gone.is_set() or self.transport.is_closing():
            raise Gone
        self.transport.write(data)
        self.seen.sent_bytes += len(data)
        await self.writable.wait()
        if self.gone.is_set():
            raise Gone

    async def pause(self, ms: float) -> None:
        """Lets time pass. Raises Gone when the client goes meanwhile."""
        try:
            await asyncio.wait_for(self.gone.wait(), ms / 1000)
        except TimeoutError:
            return
        raise Gone

    async def hang(self) -> None:
        """Does nothing until the client has gone."""
        await self.gone.wait()
        raise Gone

    async def head(self) -> None:
        """The head of a stream."""
        await self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def events(self, *events: bytes) -> None:
        """Each event as one chunk of the body."""
        for event in events:
            await self.send(b"%x\r\n%b\r\n" % (len(event), event))

    async def last(self) -> None:
        """The proper end of the body."""
        await self.send(b"0\r\n\r\n")

    async def plain(self, status: int, body: object, *headers: str) -> None:
        """A whole answer that is no stream."""
        content = json.dumps(body).encode()
        lines = [
            f"HTTP/1.1 {status} Scripted",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *headers,
        ]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + content)


Script = Callable[..., Awaitable[None]]


async def ok(to: _Connection) -> None:
    if not to.streams:
        await whole(to)
        return
    await to.head()
    await to.events(*OK)
    await to.last()


async def whole(to: _Connection, ms: int = 0) -> None:
    await to.pause(ms)
    message = {"role": "assistant", "content": "one two three"}
    await to.plain(
        200,
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": to.seen.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
        },
    )


async def count(to: _Connection, words: int, ms: int = 0) -> None:
    await to.head()
    await to.events(ROLE)
    for number in range(words):
        if ms:
            await to.pause(ms)
        await to.events(numbered(number))
    await to.events(FINISH, DONE)
    await to.last()


async def bulk(to: _Connection, kilobytes: int) -> None:
    await to.head()
    await to.events(ROLE)
    for page in pages(kilobytes):
        await to.events(page)
    await to.events(FINISH, DONE)
    await to.last()


async def stuck(to: _Connection, kilobytes: int) -> None:
    await to.head()
    await to.events(ROLE)
    await to.events(*pages(kilobytes))
    await to.hang()


async def preamble(to: _Connection, kilobytes: int) -> None:
    await to.head()
    role = ROLE.replace(b'"index"', b'"padding":"' + b"." * 20_000 + b'","index"')
    for _ in range(kilobytes // 20):
        await to.events(role)
    await to.hang()


async def wait(to: _Connection, ms: int) -> None:
    await to.head()
    await to.events(ROLE)
    await to.pause(ms)
    await to.events(*OK[1:])
    await to.last()


async def gap(to: _Connection, ms: int) -> None:
    await to.head()
    await to.events(ROLE, numbered(0))
    await to.pause(ms)
    await to.events(numbered(1), FINISH, DONE)
    await to.last()


async def broken(to: _Connection, words: int) -> None:
    await to.head()
    await to.events(ROLE, *map(numbered, range(words)))
    await to.send(b"%x\r\n%b" % (500, HALF_AN_EVENT))


async def drop(to: _Connection, words: int) -> None:
    await broken(to, words)
    to.transport.close()


async def reset(to: _Connection, words: int) -> None:
    await broken(to, words)
    await to.pause(50)  # a reset would overtake what was written
    to.reset()


async def no_terminal(to: _Connection, words: int = 2) -> None:
    await to.head()
    await to.events(ROLE, *map(numbered, range(words)))
    await to.last()


async def finish_no_done(to: _Connection) -> None:
    await to.head()
    await to.events(*OK[:-1])
    await to.last()


async def error_first(to: _Connection) -> None:
    await to.head()
    await to.events(ERROR)
    await to.last()


async def error_middle(to: _Connection) -> None:
    await to.head()
    await to.events(ROLE, numbered(0), numbered(1), ERROR)
    await to.last()


async def status(to: _Connection, code: int, retry_after_s: int | None = None) -> None:
    retry = () if retry_after_s is None else (f"Retry-After: {retry_after_s}",)
    error = {"message": f"the fake says {code}", "type": "fake", "param": None, "code": "fake"}
    await to.plain(code, {"error": error}, *retry)


async def status_once(to: _Connection, code: int) -> None:
    await (status(to, code) if to.upstream.tried[to.seen.model] == 1 else ok(to))


async def silent(to: _Connection) -> None:
    await to.hang()


async def headers_then_silent(to: _Connection) -> None:
    await to.head()
    await to.hang()


async def garbage(to: _Connection) -> None:
    await to.send(b"\x00\x16\x03 this is not HTTP\r\n\r\n" * 20)
    to.transport.close()


async def huge_event(to: _Connection) -> None:
    await to.head()
    await to.events(ROLE, numbered(0))
    await to.send(b"%x\r\ndata: " % (64 * 1024 * 1024))
    for _ in range(1024):
        await to.send(b"x" * 64 * 1024)
    await to.hang()


async def one_byte(to: _Connection) -> None:
    await to.head()
    for number in b"".join(OK):
        await to.events(bytes([number]))
        await asyncio.sleep(0)
    await to.last()


async def crlf(to: _Connection) -> None:
    await to.head()
    await to.events(*(event.replace(b"\n", b"\r\n") for event in OK))
    await to.last()


async def comments(to: _Connection) -> None:
    await to.head()
    await to.events(ROLE, numbered(0))
    while True:
        await to.events(b": still here\n\n")
        await to.pause(20)


async def big_head(to: _Connection) -> None:
    await to.send(b"HTTP/1.1 200 OK\r\nX-Big: ")
    for _ in range(16):
        await to.send(b"x" * 65536)
    await to.send(b"\r\nContent-Length: 0\r\n\r\n")


async def close_reused(to: _Connection) -> None:
    if to.served > 1:
        to.transport.close()
        await to.hang()
    await ok(to)


SCRIPTS: dict[str, Script] = {
    "ok": ok,
    "numbered": count,
    "bulk": bulk,
    "stuck": stuck,
    "preamble": preamble,
    "wait": wait,
    "gap": gap,
    "drop": drop,
    "reset": reset,
    "no-terminal": no_terminal,
    "finish-no-done": finish_no_done,
    "error-first": error_first,
    "error-middle": error_middle,
    "status": status,
    "status-once": status_once,
    "silent": silent,
    "headers-then-silent": headers_then_silent,
    "garbage": garbage,
    "huge-event": huge_event,
    "one-byte": one_byte,
    "crlf": crlf,
    "comments": comments,
    "json": whole,
    "slow-json": whole,
    "big-head": big_head,
    "close-reused": close_reused,
}
