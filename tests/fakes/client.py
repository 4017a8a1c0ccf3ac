"""A client that looks at the bytes: heads, chunk framing, events, and how the body ended.

The official clients hide what these tests are about: whether a broken answer ended cleanly, what
stood between two events, how a connection was closed. So this one speaks HTTP by hand.
"""

import asyncio
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Self
from urllib.parse import urlsplit

READ_BYTES = 64 * 1024
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@dataclass(frozen=True)
class Event:
    """One event of a stream, or a comment that stood between two."""

    raw: bytes
    name: str = "message"
    data: bytes = b""
    id: str | None = None

    @property
    def error(self) -> dict[str, str] | None:
        """The error object, if it is an error event."""
        try:
            parsed = json.loads(self.data)
        except ValueError:
            return None
        return parsed.get("error") if isinstance(parsed, dict) else None


def parse_events(body: bytes) -> list[Event]:
    """The whole events of a body; comments and an unfinished tail are left out."""
    events = []
    start = 0
    for end in _END.finditer(body):
        raw = body[start : end.end()]
        start = end.end()
        fields: dict[str, list[str]] = {}
        text = raw.decode(errors="replace")
        lines = [line for line in text.splitlines() if line and not line.startswith(":")]
        for line in lines:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        if "data" in fields:
            kept = b"".join(
                line for line in raw.splitlines(keepends=True) if not line.startswith(b":")
            )
            events.append(
                Event(
                    raw=kept,
                    name=fields.get("event", ["message"])[-1],
                    data="\n".join(fields["data"]).encode(),
                    id=fields["id"][-1] if "id" in fields else None,
                )
            )
    return events


def words(events: list[Event]) -> list[str]:
    """The contents of all deltas, in order."""
    chunks = [json.loads(event.data) for event in events if event.data != b"[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices") or []]
    return [word for choice in choices if (word := choice["delta"].get("content"))]


def numbers(events: list[Event]) -> list[int]:
    """The numbers of a numbered answer, in order."""
    return [int(word.split()[0]) for word in words(events)]


@dataclass(eq=False)
class Stream:
    """One request and its answer, over a connection of its own."""

    opened: ClassVar[list["Stream"]] = []  # so that a test that fails leaves no socket to the next

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    chunks: list[int] = field(default_factory=list)  # the sizes of the body's chunks
    clean: bool = False  # the body ended as its framing says it must
    over: bool = False
    rest: AsyncIterator[bytes] | None = None  # what `read_events` goes on with
    parsed: list[Event] = field(default_factory=list)  # the events of the first `parsed_bytes`
    parsed_bytes: int = 0

    @classmethod
    async def open(
        cls,
        base_url: str,
        path: str,
        body: object = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        receive_buffer: int = 0,
    ) -> Self:
        """Sends a request, which is small; the answer's head is not waited for."""
        address = urlsplit(base_url)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(
                sock, (address.hostname or "", address.port or 80)
            )
        except BaseException:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=READ_BYTES)
        stream = cls(reader, writer)
        cls.opened.append(stream)
        content = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1",
            f"Host: {address.netloc}",
            *(["Content-Type: application/json"] if content else []),
            f"Content-Length: {len(content)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        return stream

    async def head(self) -> Self:
        """Reads the answer's head."""
        if self.status:
            return self
        start, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(start.split()[1])
        for line in filter(None, lines):
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        return self

    @property
    def run_id(self) -> str:
        """The run that this answer is."""
        return self.headers["x-run-id"]

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, a chunk at a time where it is chunked."""
        await self.head()
        try:
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    data = (await self.reader.readexactly(size + 2))[:-2]
                    self.chunks.append(size)
                    self.body += data
                    yield data
                self.clean = await self.reader.readexactly(2) == b"\r\n"
            elif (length := self.headers.get("content-length")) is not None:
                self.body += await self.reader.readexactly(int(length))
                self.clean = True
                yield bytes(self.body)
            elif self.status not in {204, 304}:
                while data := await self.reader.read(READ_BYTES):
                    self.body += data
                    yield data
        except (asyncio.IncompleteReadError, ConnectionError) as cut:
            if isinstance(cut, asyncio.IncompleteReadError):
                self.body += cut.partial
        finally:
            self.over = True

    async def read_all(self) -> Self:
        """Reads the answer to its end, however that comes."""
        async for _ in self.pieces():
            pass
        return self

    async def read_events(self, count: int) -> list[Event]:
        """Reads until `count` events are there, or the answer is over."""
        if len(self.events) < count and not self.over:
            self.rest = self.rest or self.pieces()
            async for _ in self.rest:
                if len(self.events) >= count:
                    break
        return self.events

    async def read_rest(self) -> Self:
        """Goes on after `read_events`, to the end."""
        await self.read_events(10**9)
        return self

    @property
    def events(self) -> list[Event]:
        """The whole events read so far."""
        new = bytes(self.body[self.parsed_bytes :])
        ends = [end.end() for end in _END.finditer(new)]
        if ends:
            self.parsed += parse_events(new[: ends[-1]])
            self.parsed_bytes += ends[-1]
        return self.parsed

    def json(self) -> object:
        """The body of an answer that is no stream."""
        return json.loads(self.body)

    async def close(self) -> None:
        """Closes as a polite client does."""
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def vanish(self) -> None:
        """Closes with RST, as a client that was killed or unplugged."""
        if self.writer.is_closing():
            return
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)


async def get(
    base_url: str,
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> Stream:
    """A request and its whole answer."""
    stream = await Stream.open(base_url, path, body, method=method, headers=headers)
    try:
        return await stream.read_all()
    finally:
        await stream.close()


def chat_body(model: str, *, stream: bool = True, **values: object) -> dict[str, object]:
    """A chat completion request."""
    messages = [{"role": "user", "content": "hello"}]
    return {"model": model, "stream": stream, "messages": messages, **values}


async def open_chat(
    base_url: str,
    model: str,
    *,
    stream: bool = True,
    headers: dict[str, str] | None = None,
    receive_buffer: int = 0,
    **values: object,
) -> Stream:
    """Asks for an answer; nothing of it has been read."""
    return await Stream.open(
        base_url,
        "/v1/chat/completions",
        chat_body(model, stream=stream, **values),
        headers=headers,
        receive_buffer=receive_buffer,
    )


async def chat(
    base_url: str,
    model: str,
    *,
    stream: bool = True,
    headers: dict[str, str] | None = None,
    **values: object,
) -> Stream:
    """Asks for an answer and reads all of it."""
    opened = await open_chat(base_url, model, stream=stream, headers=headers, **values)
    try:
        return await opened.read_all()
    finally:
        await opened.close()


async def replay(
    base_url: str,
    run_id: str,
    *,
    after: int | None = None,
    headers: dict[str, str] | None = None,
) -> Stream:
    """A run's events from the one behind `after` on, to their end."""
    query = "" if after is None else f"?starting_after={after}"
    return await get(base_url, f"/v1/runs/{run_id}/stream{query}", headers=headers)


def without_ids(body: bytes) -> bytes:
    """A replay without its `id:` and `retry:` lines and comments: what the creator was sent."""
    lines = body.splitlines(keepends=True)
    return b"".join(
        line for line in lines if not line.startswith((b"id:", b":", b"retry:"))
    ).lstrip(b"\r\n")
