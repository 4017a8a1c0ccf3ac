"""An upstream that does what it is told, well or badly, in every wire format.

The path says in which format it answers (`fakes.wire`), the model's name what it does: a script
and its numbers, divided by colons ("numbered:100:5"). A name that is no script plays "ok". What a
name does can be changed while it runs: `play("box", "status:503")`, or over HTTP
`POST /control {"model": "box", "script": "status:503"}` (`"all"` for every name, null to forget);
scripts that count ("times") count from there. What is told must be a script, so that a slip of the
pen is no "ok". `GET /control` says what has been asked and what is open. `python -m fakes.upstream`
runs it alone.

An event, where a script counts them, is what a server sends at once: the first word of a message
or a response brings the openings of its block with it.

It runs in a thread with an event loop of its own and counts what a gateway does to it: open
connections, requests with their heads and bodies, bytes taken, and when its client went away.

whole answers and streams
  ok                  three words, a reason to end, the terminal marker
  tools               a call of get_weather with {"city":"Paris"}, in pieces
  numbered:N:MS       N words that are their own number, MS milliseconds apart
  bulk:KB             KB kilobytes of numbered events as fast as they are taken
  one-byte            "ok", one byte a chunk, one chunk a write
  crlf                "ok" with CRLF line ends
  odd-fields          "ok" with each event's members doubled and out of order
  blank-lines         blank lines before a whole answer
  finish-no-done      a reason to end and a proper end, but no marker
  http10              "ok" as HTTP/1.0, until the connection closes
  trailers            "ok", and trailers behind the body
  continue            100 and 103 before the head
  close-reused        closes a kept-alive connection when a second request comes on it
waiting
  wait:MS             head and opening at once, the first word after MS milliseconds
  slow-json:MS        everything after MS milliseconds
  gap:MS              a word, MS milliseconds of silence, another word and the end
  stuck:KB            KB kilobytes, then silence with the connection open
  stall:K             K words, then silence
  preamble:KB         KB kilobytes of openings, which are no output, then silence
  silent              the request is read, nothing is answered
  headers-then-silent  the head of a 200, and nothing more
  comments            a word, then comments without end
  keep-alives:K       the opening, K words, then events that say nothing, without end
  open-end            a reason to end, and silence with the connection open
refusals
  status:S[:RETRY]    status S with a JSON error (and Retry-After)
  times:N:S[:RETRY]   the same for the first N requests of this name, "ok" afterwards
  status-once:S       times:1:S
  flapping:N:S        N requests refused with S, N answered, and so on
  loading:N           llama.cpp's 503 "Loading model" for the first N requests
  context-length  content-filter   400 as OpenAI and Anthropic say it
  moderation          403 for what the prompt says
  no-quota            429 for want of credit
  no-model  no-route  404 for the model, or for the path
  error-first         an error event as the first event of a 200
  error-in-200        an error object as a whole answer of 200
  html:S              a page of HTML with status S
  redirect            307 to where it came from
breakage, in the middle
  drop:K  reset:K     K words and half an event, then the connection is closed, or reset
  cut:K[:BYTES]       K events (and so many bytes of the next), then the connection is closed
  end:K               K events, then a proper end of the body
  no-terminal:K       the opening, K words, then a proper end of the body
  http10-cut:K        K events as HTTP/1.0, then the connection is closed
  malformed:K         K words, an event that is no JSON, then the rest and a proper end
  error-middle        two words, an error event, a proper end
  huge-event          one event of more than 4 MiB, without end
  huge-line:MB        one event of so many megabytes, then the rest
breakage, at once
  eof                 the connection is closed instead of an answer
  abort               the same with a reset
  garbage             bytes that are no HTTP
  big-head            a response head of a megabyte
  json                an answer that is no stream, whatever was asked
  sse                 a stream, whatever was asked
  gzip                a compressed answer that was not asked for
  too-short           a body shorter than its Content-Length, then the connection is closed
  too-long            a body longer than its Content-Length
"""

import argparse
import asyncio
import json
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from fakes.machine import stop_listening, until
from fakes.scripts import SCRIPTS, ok
from fakes.wire import (
    DONE,
    ERROR,
    FINISH,
    HALF_AN_EVENT,
    OK,
    ROLE,
    WORDS,
    Plain,
    chunk,
    numbered,
    pages,
    wire_for,
)

__all__ = [
    "DONE",
    "ERROR",
    "FINISH",
    "HALF_AN_EVENT",
    "OK",
    "ROLE",
    "SCRIPTS",
    "ScriptedUpstream",
    "Seen",
    "chunk",
    "numbered",
    "pages",
]


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
        if self.headers.get("content-type", "").startswith("multipart/"):
            found = re.search(
                rb'name="model"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)', self.body
            )
            return found[1].decode() if found else ""
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
    asked: Counter[str] = field(default_factory=Counter)  # requests for each name
    tried: Counter[str] = field(default_factory=Counter)  # the same, since it was told what to do
    told: dict[str, str] = field(default_factory=dict)  # what a name plays; "*" is every name
    listed: list[str] = field(default_factory=list)  # the models that /models names

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

    def play(self, model: str, script: str | None) -> None:
        """From the next request on `model` does this; None: what its name says. "*": all do.

        Raises ValueError for what is no script.
        """
        if script is not None and script.partition(":")[0] not in SCRIPTS:
            raise ValueError(f"{script!r} is no script")
        if script is None:
            self.told.pop(model, None)
        else:
            self.told[model] = script
        if model == "*":
            self.tried.clear()
        else:
            self.tried.pop(model, None)

    def refuse(self) -> None:
        """Stop listening, and reset what is open: the computer was unplugged."""
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
        self.live: set[Connection] = set()
        self.serving: set[asyncio.Task[None]] = set()
        server = await self._loop.create_server(
            lambda: Connection(self), "127.0.0.1", self.port, backlog=2048
        )
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self) -> None:
        await stop_listening(self._server)
        for connection in self.live:
            connection.reset()
        serving = list(self.serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await until(lambda: not self.live, 10, "its connections are closed", 0)


class Connection(asyncio.Protocol):
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
        self.upstream.live.add(self)
        serving = asyncio.ensure_future(self.serve())
        self.upstream.serving.add(serving)
        serving.add_done_callback(self.upstream.serving.discard)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open_connections -= 1
        self.upstream.live.discard(self)
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
            if seen.path == "/control":
                await self.control()
            elif seen.method == "GET":
                await self.plain(200, listing(seen.path, self.upstream.listed))
            else:
                told = self.upstream.told
                script = told.get(seen.model) or told.get("*") or seen.model
                name, *numbers = script.split(":")
                play = SCRIPTS.get(name, ok)
                self.wire = wire_for(seen.path, seen.model)
                self.upstream.asked[seen.model] += 1
                self.upstream.tried[seen.model] += 1
                await play(self, *(map(int, numbers) if name in SCRIPTS else ()))
            seen.finished = True
        finally:
            if not seen.finished:
                seen.gone_s = time.monotonic()

    # --- what scripts are made of -----------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Whether a stream was asked for."""
        if isinstance(self.wire, Plain) or not self.seen.body.startswith(b"{"):
            return False
        return bool(json.loads(self.seen.body).get("stream", self.wire.streams_unasked))

    @property
    def wants_usage(self) -> bool:
        """Whether the tokens are to be counted."""
        return bool((json.loads(self.seen.body).get("stream_options") or {}).get("include_usage"))

    @property
    def everything(self) -> list[bytes]:
        """All events of "ok"."""
        wire = self.wire
        usage = wire.usage() if self.wants_usage else []
        return [*wire.opening(), *map(wire.word, WORDS), *wire.finish(), *usage, *wire.done()]

    async def control(self) -> None:
        """Told what to play, or asked what was seen."""
        upstream = self.upstream
        if self.seen.method == "POST":
            told = json.loads(self.seen.body)
            try:
                upstream.play(
                    "*" if "all" in told else told["model"], told.get("all", told.get("script"))
                )
            except ValueError as error:
                await self.plain(400, {"error": str(error)})
                return
        await self.plain(
            200,
            {
                "told": upstream.told,
                "requests": dict(upstream.asked),
                "open_connections": upstream.open_connections,
                "active": upstream.active - 1,  # without this one
            },
        )

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
        content_type = self.wire.content_type.encode()
        await self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" % content_type
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

    async def refuse(self, status: int, message: str, code: str, *headers: str) -> None:
        """An error as this format has it."""
        await self.plain(status, self.wire.refusal(status, message, code), *headers)

    async def half_a_whole(self) -> None:
        """The head of a whole answer, and half of its body."""
        content = json.dumps(self.wire.whole()).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        await self.send(head % len(content) + content[: len(content) // 2])


def listing(path: str, models: list[str]) -> object:
    """What a GET is answered with."""
    model = {"name": "scripted:latest", "model": "scripted:latest", "size": 1}
    match path:
        case "/api/tags" | "/api/ps":
            return {"models": [model]}
        case "/api/version":
            return {"version": "0.0.1"}
    return {"object": "list", "data": [{"id": model} for model in models], "status": "ok"}


def main() -> None:
    """Runs one by hand until it is interrupted."""
    parser = argparse.ArgumentParser(prog="fakes.upstream")
    parser.add_argument("--port", type=int, default=0)
    upstream = ScriptedUpstream(parser.parse_args().port).start()
    # A shell starts what runs in its background with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(upstream.url, flush=True)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    upstream.stop()


if __name__ == "__main__":
    main()
