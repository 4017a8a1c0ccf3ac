"""What the scripted upstream can do: one function a script, over any wire format.

The list of them, with their numbers, is in `fakes.upstream`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fakes.wire import WORDS, numbered, pages

if TYPE_CHECKING:
    from fakes.upstream import Connection

Script = Callable[..., Awaitable[None]]


# --- whole answers and streams ------------------------------------------------------------------


async def ok(to: Connection) -> None:
    if not to.streams:
        await whole(to)
        return
    await to.head()
    await to.events(*to.everything)
    await to.last()


async def whole(to: Connection, ms: int = 0) -> None:
    await to.pause(ms)
    if to.seen.path.endswith("/audio/speech"):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 9\r\n\r\n"
        await to.send(head + b"\xff\xfbone two")
        return
    await to.plain(200, to.wire.whole())


async def slow(to: Connection, ms: int) -> None:
    await to.pause(ms)
    await ok(to)


async def tools(to: Connection) -> None:
    wire = to.wire
    if not to.streams:
        await to.plain(200, wire.whole(tool=True))
        return
    await to.head()
    await to.events(*wire.opening(), *wire.tool(), *wire.finish("tool"), *wire.done())
    await to.last()


async def count(to: Connection, words: int, ms: int = 0) -> None:
    wire = to.wire
    await to.head()
    await to.events(*wire.opening())
    for number in range(words):
        if ms:
            await to.pause(ms)
        await to.events(numbered(number, 0, wire))
    await to.events(*wire.finish(), *wire.done())
    await to.last()


async def bulk(to: Connection, kilobytes: int) -> None:
    wire = to.wire
    await to.head()
    await to.events(*wire.opening())
    for page in pages(kilobytes, wire):
        await to.events(page)
    await to.events(*wire.finish(), *wire.done())
    await to.last()


async def one_byte(to: Connection) -> None:
    if not to.streams:
        content = json.dumps(to.wire.whole()).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        for number in head % len(content) + content:
            await to.send(bytes([number]))
            await asyncio.sleep(0)
        return
    await to.head()
    for number in b"".join(to.everything):
        await to.events(bytes([number]))
        await asyncio.sleep(0)
    await to.last()


async def crlf(to: Connection) -> None:
    if not to.streams:
        await ok(to)
        return
    await to.head()
    await to.events(*(event.replace(b"\n", b"\r\n") for event in to.everything))
    await to.last()


async def odd_fields(to: Connection) -> None:
    if not to.streams:
        await ok(to)
        return
    await to.head()
    for event in to.everything:
        lines = [_oddly(line) for line in event.split(b"\n")]
        await to.events(b"\n".join(lines))
    await to.last()


def _oddly(line: bytes) -> bytes:
    """The same JSON with its members the other way round, the first one twice, and blanks."""
    label, brace, rest = line.partition(b"{")
    if not brace:
        return line
    members = list(json.loads(brace + rest).items())[::-1]
    doubled = [
        (name, "another" if name == "id" else value) for name, value in members[:1]
    ] + members
    said = (f"{json.dumps(name)} : {json.dumps(value)}" for name, value in doubled)
    return label + ("{ " + " , ".join(said) + " }").encode()


async def blank_lines(to: Connection) -> None:
    content = b"\n\n\n" + json.dumps(to.wire.whole()).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await (ok(to) if to.streams else to.send(head % len(content) + content))


async def finish_no_done(to: Connection) -> None:
    wire = to.wire
    await to.head()
    await to.events(*wire.opening(), *map(wire.word, WORDS), *wire.finish())
    await to.last()


async def http10(to: Connection) -> None:
    streams = to.streams
    content_type = to.wire.content_type if streams else "application/json"
    body = b"".join(to.everything) if streams else json.dumps(to.wire.whole()).encode()
    head = f"HTTP/1.0 200 OK\r\nContent-Type: {content_type}\r\n\r\n"
    await to.send(head.encode() + body)
    to.transport.close()


async def trailers(to: Connection) -> None:
    if not to.streams:
        await ok(to)
        return
    await to.head()
    await to.events(*to.everything)
    await to.send(b"0\r\nx-tail: 1\r\nContent-Type: text/plain\r\n\r\n")


async def early_heads(to: Connection) -> None:
    await to.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    await ok(to)


async def close_reused(to: Connection) -> None:
    if to.served > 1:
        to.transport.close()
        await to.hang()
    await ok(to)


# --- waiting ------------------------------------------------------------------------------------


async def wait(to: Connection, ms: int) -> None:
    if not to.streams:
        await whole(to, ms)
        return
    wire = to.wire
    await to.head()
    await to.events(*wire.opening())
    await to.pause(ms)
    await to.events(*map(wire.word, WORDS), *wire.finish(), *wire.done())
    await to.last()


async def gap(to: Connection, ms: int) -> None:
    if not to.streams:
        await whole(to, ms)
        return
    wire = to.wire
    await to.head()
    await to.events(*wire.opening(), numbered(0, 0, wire))
    await to.pause(ms)
    await to.events(numbered(1, 0, wire), *wire.finish(), *wire.done())
    await to.last()


async def stuck(to: Connection, kilobytes: int) -> None:
    await to.head()
    await to.events(*to.wire.opening())
    await to.events(*pages(kilobytes, to.wire))
    await to.hang()


async def stall(to: Connection, words: int) -> None:
    await begin(to, words)
    await to.hang()


async def preamble(to: Connection, kilobytes: int) -> None:
    await to.head()
    opening = (to.wire.opening() or [to.wire.word("")])[0]
    padded = opening.replace(b"{", b'{"padding":"' + b"." * 20_000 + b'",', 1)
    for _ in range(kilobytes // 20):
        await to.events(padded)
    await to.hang()


async def silent(to: Connection) -> None:
    await to.hang()


async def headers_then_silent(to: Connection) -> None:
    await to.head()
    await to.hang()


async def comments(to: Connection) -> None:
    await to.head()
    await to.events(*to.wire.opening(), numbered(0, 0, to.wire))
    while True:
        await to.events(to.wire.comment)
        await to.pause(20)


async def keep_alives(to: Connection, words: int) -> None:
    await to.head()
    await to.events(*to.wire.opening(), *(numbered(number, 0, to.wire) for number in range(words)))
    while True:
        await to.events(*to.wire.keep_alives())
        await to.pause(5)


async def open_end(to: Connection) -> None:
    wire = to.wire
    await to.head()
    await to.events(*wire.opening(), *map(wire.word, WORDS), *wire.finish())
    await to.hang()


# --- refusals -----------------------------------------------------------------------------------


async def status(to: Connection, code: int, retry_after_s: int | None = None) -> None:
    retry = () if retry_after_s is None else (f"Retry-After: {retry_after_s}",)
    await to.refuse(code, f"the fake says {code}", "fake", *retry)


async def times(to: Connection, most: int, code: int, retry_after_s: int | None = None) -> None:
    early = to.upstream.tried[to.seen.model] <= most
    await (status(to, code, retry_after_s) if early else ok(to))


async def status_once(to: Connection, code: int) -> None:
    await times(to, 1, code)


async def flapping(to: Connection, row: int, code: int = 503) -> None:
    bad = (to.upstream.tried[to.seen.model] - 1) // row % 2 == 0
    await (status(to, code) if bad else ok(to))


async def loading(to: Connection, most: int) -> None:
    if to.upstream.tried[to.seen.model] > most:
        await ok(to)
        return
    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    await to.plain(503, {"error": error})


async def context_length(to: Connection) -> None:
    await to.refuse(400, "prompt is too long: 9 tokens > 8 maximum", "context_length_exceeded")


async def content_filter(to: Connection) -> None:
    await to.refuse(400, "the prompt was filtered", "content_filter")


async def moderation(to: Connection) -> None:
    await to.refuse(403, "the prompt was flagged by moderation", "content_policy_violation")


async def no_quota(to: Connection) -> None:
    await to.refuse(429, "You exceeded your current quota", "insufficient_quota")


async def no_model(to: Connection) -> None:
    await to.refuse(404, "The model does not exist", "model_not_found")


async def no_route(to: Connection) -> None:
    await to.refuse(404, "File Not Found", "not_found_error")


async def error_first(to: Connection) -> None:
    if not to.streams:
        await error_in_200(to)
        return
    await to.head()
    await to.events(*to.wire.error())
    await to.last()


async def error_in_200(to: Connection) -> None:
    await to.plain(200, to.wire.refusal(503, "the fake is overloaded", "overloaded"))


async def html(to: Connection, code: int) -> None:
    page = b"<html><body><h1>Bad Gateway</h1></body></html>"
    head = b"HTTP/1.1 %d X\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n"
    await to.send(head % (code, len(page)) + page)


async def redirect(to: Connection) -> None:
    await to.plain(307, {}, f"Location: {to.seen.path}")


# --- breakage, in the middle --------------------------------------------------------------------


async def begin(to: Connection, words: int) -> None:
    """The opening and some words; of a whole answer its first half."""
    if not to.streams:
        await to.half_a_whole()
        return
    await to.head()
    await to.events(*to.wire.opening())
    await to.events(*(numbered(number, 0, to.wire) for number in range(words)))


async def broken(to: Connection, words: int) -> None:
    await begin(to, words)
    if to.streams:
        await to.send(b"%x\r\n%b" % (500, to.wire.half))


async def drop(to: Connection, words: int) -> None:
    await broken(to, words)
    to.transport.close()


async def reset(to: Connection, words: int) -> None:
    await broken(to, words)
    await to.pause(50)  # a reset would overtake what was written
    to.reset()


async def cut(to: Connection, events: int, more_bytes: int = 0) -> None:
    if to.streams:
        await to.head()
        everything = to.everything
        await to.events(*everything[:events])
        if more_bytes:
            await to.events(everything[events][:more_bytes])
    else:
        await to.half_a_whole()
    to.transport.close()


async def end(to: Connection, events: int) -> None:
    if not to.streams:
        await to.half_a_whole()
        to.transport.close()
        return
    await to.head()
    await to.events(*to.everything[:events])
    await to.last()


async def no_terminal(to: Connection, words: int = 2) -> None:
    await begin(to, words)
    if not to.streams:
        to.transport.close()
        return
    await to.last()


async def http10_cut(to: Connection, events: int) -> None:
    streams = to.streams
    content_type = to.wire.content_type if streams else "application/json"
    body = b"".join(to.everything[:events])
    if not streams:
        body = json.dumps(to.wire.whole()).encode()[:-5]
    head = f"HTTP/1.0 200 OK\r\nContent-Type: {content_type}\r\n\r\n"
    await to.send(head.encode() + body)
    to.transport.close()


async def malformed(to: Connection, words: int = 2) -> None:
    wire = to.wire
    if not to.streams:
        content = json.dumps(wire.whole()).encode()[:-3]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        await to.send(head % len(content) + content)
        return
    await begin(to, words)
    await to.events(wire.malformed, wire.word("more"), *wire.finish(), *wire.done())
    await to.last()


async def error_middle(to: Connection) -> None:
    await begin(to, 2)
    if not to.streams:
        to.transport.close()
        return
    await to.events(*to.wire.error())
    await to.last()


async def huge_event(to: Connection) -> None:
    await begin(to, 1)
    await to.send(b"%x\r\ndata: " % (64 * 1024 * 1024))
    for _ in range(1024):
        await to.send(b"x" * 64 * 1024)
    await to.hang()


async def huge_line(to: Connection, megabytes: int) -> None:
    wire = to.wire
    await begin(to, 1)
    await to.events(wire.word("x" * 1_000_000 * megabytes), *wire.finish(), *wire.done())
    await to.last()


# --- breakage, at once --------------------------------------------------------------------------


async def eof(to: Connection) -> None:
    to.transport.close()


async def abort(to: Connection) -> None:
    to.reset()


async def garbage(to: Connection) -> None:
    await to.send(b"\x00\x16\x03 this is not HTTP\r\n\r\n" * 20)
    to.transport.close()


async def big_head(to: Connection) -> None:
    await to.send(b"HTTP/1.1 200 OK\r\nX-Big: ")
    for _ in range(16):
        await to.send(b"x" * 65536)
    await to.send(b"\r\nContent-Length: 0\r\n\r\n")


async def sse(to: Connection) -> None:
    await to.head()
    await to.events(*to.everything)
    await to.last()


async def gzipped(to: Connection) -> None:
    content = gzip.compress(json.dumps(to.wire.whole()).encode())
    content_type = to.wire.content_type if to.streams else "application/json"
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    await to.send(head.encode() + content)


async def too_short(to: Connection) -> None:
    """The body is shorter than its length."""
    await to.half_a_whole()
    to.transport.close()


async def too_long(to: Connection) -> None:
    """More bytes than were announced."""
    content = json.dumps(to.wire.whole()).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await to.send(head % len(content) + content + b"and more")


SCRIPTS: dict[str, Script] = {
    "ok": ok,
    "tools": tools,
    "numbered": count,
    "bulk": bulk,
    "one-byte": one_byte,
    "crlf": crlf,
    "odd-fields": odd_fields,
    "blank-lines": blank_lines,
    "finish-no-done": finish_no_done,
    "http10": http10,
    "trailers": trailers,
    "continue": early_heads,
    "close-reused": close_reused,
    "wait": wait,
    "slow-json": slow,
    "gap": gap,
    "stuck": stuck,
    "stall": stall,
    "preamble": preamble,
    "silent": silent,
    "headers-then-silent": headers_then_silent,
    "comments": comments,
    "keep-alives": keep_alives,
    "open-end": open_end,
    "status": status,
    "times": times,
    "status-once": status_once,
    "flapping": flapping,
    "loading": loading,
    "context-length": context_length,
    "content-filter": content_filter,
    "moderation": moderation,
    "no-model": no_model,
    "no-quota": no_quota,
    "no-route": no_route,
    "error-first": error_first,
    "error-in-200": error_in_200,
    "html": html,
    "redirect": redirect,
    "drop": drop,
    "reset": reset,
    "cut": cut,
    "end": end,
    "no-terminal": no_terminal,
    "http10-cut": http10_cut,
    "malformed": malformed,
    "error-middle": error_middle,
    "huge-event": huge_event,
    "huge-line": huge_line,
    "eof": eof,
    "abort": abort,
    "garbage": garbage,
    "big-head": big_head,
    "json": whole,
    "sse": sse,
    "gzip": gzipped,
    "too-short": too_short,
    "too-long": too_long,
}
