"""Heads that are wrong in every way: refused with a reason, and never taken for another request."""

from __future__ import annotations

import pytest

from hostile.conftest import Tried
from hostile.exchange import try_all, try_one, willing
from hostile.mutate import every_byte, every_cut, mutants
from hostile.requests import HEAD_WORDS, HEADS, UPGRADE, request

MUTANTS = 4_000
LIMITS = {"header_s": 0.5, "body_s": 0.5, "first_output_s": 3.0, "total_s": 20.0}
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CHAT = b"POST /v1/chat/completions"


async def test_whatever_comes_is_answered_as_http_or_hung_up_on(
    rigs, raw_upstream, tried: Tried
) -> None:
    """No head makes the gateway fail, log an error, or hold anything afterwards."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    inputs = list(mutants(HEADS, HEAD_WORDS, "heads", MUTANTS))
    tried(len(await try_all(rig, inputs)))


async def test_every_byte_at_every_place_of_a_small_head(rigs, raw_upstream, tried: Tried) -> None:
    """Where a line begins, a name ends or a version stands, each byte is taken or refused."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    whole = b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n"
    tried(len(await try_all(rig, every_byte(whole))))


async def test_a_head_cut_at_every_byte(rigs, raw_upstream, tried: Tried) -> None:
    """Half a head is waited for, and given up when its client goes."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    tried(len(await try_all(rig, every_cut(request(b"GET /healthz", *UPGRADE)))))


AMBIGUOUS = {
    "length and chunks": (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
    "two lengths": (b"Content-Length: 0", b"Content-Length: 44"),
    "a list of lengths": (b"Content-Length: 0, 44",),
    "a signed length": (b"Content-Length: +0",),
    "a negative length": (b"Content-Length: -1",),
    "a hexadecimal length": (b"Content-Length: 0x0",),
    "an endless length": (b"Content-Length: " + b"9" * 5000,),
    "another coding last": (b"Transfer-Encoding: chunked, gzip",),
    "another coding first": (b"Transfer-Encoding: gzip, chunked",),
    "chunked twice": (b"Transfer-Encoding: chunked, chunked",),
    "a coding that is not one": (b"Transfer-Encoding: xchunked",),
    "a tab before it": (b"Transfer-Encoding: \x0bchunked",),
    "a blank in its name": (b"Transfer-Encoding : chunked",),
    "folded": (b"Transfer-Encoding:\r\n chunked",),
    "a bare line feed": (b"X: y\nTransfer-Encoding: chunked",),
    "a bare carriage return": (b"X: y\rTransfer-Encoding: chunked",),
    "a NUL": (b"X: \x00",),
    "two hosts": (b"Host: 127.0.0.1",),
    "no name": (b": x",),
}


@pytest.mark.parametrize("lines", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_two_servers_may_read_differently_is_refused(
    rigs, raw_upstream, tried: Tried, lines: tuple[bytes, ...]
) -> None:
    """Such a head is refused and the connection ends, so no second request hides behind it."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    sent = request(CHAT, *lines) + b"0\r\n\r\n" + SMUGGLED
    one = await try_one(rig.port, sent)
    assert not one.wrong, one
    assert [reply.status in {400, 501} for reply in one.replies] == [True], one.replies
    assert not rig.upstreams[0].peers
    tried(1)


VERSIONS = ("HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/9.9", "http/1.1", "HTTPS/1.1", "HTTP/1", "")


@pytest.mark.parametrize("version", VERSIONS)
async def test_another_version_is_refused(rigs, raw_upstream, tried: Tried, version: str) -> None:
    """Only HTTP/1.0 and 1.1 are spoken here, and no answer claims to be of another version."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    one = await try_one(rig.port, f"GET / {version}\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert not one.wrong, one
    assert all(reply.status in {400, 505} for reply in one.replies), one.replies
    tried(1)


BOUNDS = {
    "a line": (b"X: " + b"y" * 9_000,),
    "a target": (),
    "many lines": (b"a: b",) * 200,
    "many bytes": tuple(b"a%d: %b" % (number, b"b" * 4_000) for number in range(60)),
}


@pytest.mark.parametrize("lines", BOUNDS.values(), ids=BOUNDS)
async def test_a_large_head_is_refused_by_its_size(
    rigs, raw_upstream, tried: Tried, lines: tuple[bytes, ...]
) -> None:
    """A line, their number and their sum have bounds, each told as what it is."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    start = b"GET /" if lines else b"GET /" + b"x" * 9_000
    one = await try_one(rig.port, request(start, *lines))
    assert not one.wrong, one
    assert [reply.status in {400, 414, 431} for reply in one.replies] == [True], one.replies
    tried(1)


async def test_a_good_request_before_a_broken_one_is_answered(
    rigs, raw_upstream, tried: Tried
) -> None:
    """What came whole is served though what came in the same write is refused."""
    rig = await rigs(await raw_upstream(willing), **LIMITS)
    one = await try_one(rig.port, request(b"GET /healthz") + b"NONSENSE\r\n\r\n")
    assert not one.wrong, one
    assert [reply.status for reply in one.replies] == [200, 400], one.replies
    tried(1)
