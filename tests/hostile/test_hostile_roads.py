"""The same hostile bytes with the fast lane and without it: no client and no upstream can tell."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable

import pytest

from gateway.gateway_rig import Rigs
from hostile import roads
from hostile.conftest import Tried
from hostile.mutate import every_byte, every_cut, mutants
from hostile.requests import (
    BODIES,
    BODY_WORDS,
    CHAT,
    HEAD_WORDS,
    HEADS,
    lengthen,
    post,
    request,
)
from hostile.test_hostile_bodies import LIMITS, ODD_JSON, PATHS
from hostile.test_hostile_heads import AMBIGUOUS, SMUGGLED
from hostile.test_hostile_hosts_and_origins import AT_HOME, ORIGINS, OURS, STRANGE
from tidegate.gateway.api.fast_lane import FastLane
from tidegate.gateway.server.porch import Porch

pytestmark = pytest.mark.parametrize("rigs", ["fast"], indirect=True)

MUTANTS = 2_000
AT_ONCE = 100
TAKE = FastLane.take
START = CHAT.partition(b"\r\n")[0]
BODY = CHAT.partition(b"\r\n\r\n")[2]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The requests that the lane has taken."""
    requests: list[bytes] = []

    def count(lane: FastLane, porch: Porch, data: bytes) -> bool:
        was_taken = TAKE(lane, porch, data)
        requests.extend([data] * was_taken)
        return was_taken

    monkeypatch.setattr(FastLane, "take", count)
    return requests


def ask_for_another(lane: FastLane, porch: Porch, data: bytes) -> bool:
    return TAKE(lane, porch, data.replace(b"hello", b"hallo"))


def hang_up(lane: FastLane, porch: Porch, data: bytes) -> bool:
    if TAKE(lane, porch, data):
        porch.force_close()
        return True
    return False


def log_it(lane: FastLane, porch: Porch, data: bytes) -> bool:
    logging.getLogger("tidegate").error("planted")
    return TAKE(lane, porch, data)


@pytest.mark.parametrize("fault", [ask_for_another, hang_up, log_it])
async def test_a_planted_fault_is_found(
    rigs, raw_upstream, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., bool]
) -> None:
    """By what a client is told, by what an upstream is asked, or by the log."""
    monkeypatch.setattr(roads, "LONG_SILENCE_S", 0.3)
    both = await roads.Roads.open(rigs, raw_upstream, **LIMITS)
    assert await both.differing([*HEADS[:3], CHAT]) == {}
    monkeypatch.setattr(FastLane, "take", fault)
    assert CHAT in await both.differing([CHAT, SMUGGLED])


async def agree(
    rigs: Rigs, raw_upstream, inputs: Iterable[bytes], tried: Tried, first: bytes = b""
) -> None:
    """Fails on what differs, and on what is logged as an error."""
    both = await roads.Roads.open(rigs, raw_upstream, **LIMITS)
    both.first = first
    rest = iter(dict.fromkeys(inputs))
    while batch := list(itertools.islice(rest, AT_ONCE)):
        differing = await both.differing(batch)
        assert not differing, "\n".join(f"{one[:300]!r}: {said}" for one, said in differing.items())
        tried(2 * len(batch))


async def test_changed_bodies(rigs, raw_upstream, tried: Tried, taken: list[bytes]) -> None:
    """With their true length, as a client would send them; many of them are taken still."""
    parted = [each.partition(b"\r\n\r\n") for each in BODIES[:12]]
    heads = itertools.cycle(head for head, _, _ in parted)
    contents = mutants([content for _, _, content in parted], BODY_WORDS, "roads", MUTANTS)
    inputs = [lengthen(next(heads) + b"\r\n\r\n" + content) for content in contents]
    await agree(rigs, raw_upstream, inputs, tried)
    assert len(taken) > MUTANTS / 10


async def test_changed_heads(rigs, raw_upstream, tried: Tried, taken: list[bytes]) -> None:
    """Of requests that the lane would take; some of them are taken still."""
    words = [*HEAD_WORDS, b"Content-Length: 2\r\n", b"X: y\r\n", b"Connection: close\r\n"]
    corpus = [*BODIES[:6], *HEADS]
    await agree(rigs, raw_upstream, mutants(corpus, words, "roads", MUTANTS), tried)
    assert len(taken) > MUTANTS / 50


async def test_changed_requests_on_a_connection_that_was_taken(
    rigs, raw_upstream, tried: Tried, taken: list[bytes]
) -> None:
    """What was found in a head holds for that head and no other."""
    words = [*HEAD_WORDS, *BODY_WORDS, b"Content-Length: 2\r\n", b"Connection: close\r\n"]
    inputs = map(lengthen, mutants([CHAT, CHAT], words, "again", MUTANTS // 4))
    await agree(rigs, raw_upstream, inputs, tried, first=CHAT)
    assert taken.count(CHAT) > MUTANTS // 5
    assert len(set(taken)) > MUTANTS // 50


async def test_every_byte_of_the_first_fields(rigs, raw_upstream, tried: Tried, taken) -> None:
    """Where a name ends, a value begins or a line ends, another byte has one meaning."""
    whole = START + b"\r\nX: y\r\nHost: ::\r\nContent-Length: 2\r\n\r\n{}"
    head, end, behind = whole.partition(b"X: y\r\n")
    inputs = [head + each + behind for each in every_byte(end)]
    await agree(
        rigs, raw_upstream, [each.replace(b"::", b"127.0.0.1", 1) for each in inputs], tried
    )


async def test_cut_requests_and_what_is_behind_them(
    rigs, raw_upstream, tried: Tried, taken: list[bytes]
) -> None:
    """Half a request waits for the rest, and what is behind a whole one is a request of its own."""
    behind = (
        b"\r\n",
        b"x",
        b"\x00",
        CHAT,
        CHAT[:-3],
        SMUGGLED,
        b"0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    )
    inputs = [*itertools.islice(every_cut(CHAT), 0, None, 5), *(CHAT + each for each in behind)]
    await agree(rigs, raw_upstream, inputs, tried)
    assert len(taken) == 0


async def test_what_two_servers_may_read_differently(
    rigs, raw_upstream, tried: Tried, taken: list[bytes]
) -> None:
    """Ambiguous framings, in front of a body that would be a request of its own."""
    inputs = [
        request(b"POST /v1/chat/completions", *lines, body=body)
        for lines in AMBIGUOUS.values()
        for body in (BODY, b"0\r\n\r\n" + SMUGGLED)
    ]
    await agree(rigs, raw_upstream, inputs, tried)
    assert not taken


async def test_odd_json(rigs, raw_upstream, tried: Tried, taken: list[bytes]) -> None:
    """On every path; what is refused is refused in the same words."""
    inputs = [post(path, body) for path in PATHS for body in ODD_JSON.values()]
    await agree(rigs, raw_upstream, inputs, tried)
    assert taken


async def test_hosts_and_origins(rigs, raw_upstream, tried: Tried, taken: list[bytes]) -> None:
    """Whatever name we are called by, and whatever page a request says it comes from."""
    head = [b"POST /v1/chat/completions HTTP/1.1", b"Content-Length: %d" % len(BODY)]
    named = [[*head, b"Host: " + host.encode()] for host in (*OURS, *AT_HOME, *STRANGE)]
    marks = [b"Origin: " + origin.encode() for origin in ORIGINS]
    marks += [b"Sec-Fetch-Site: " + site for site in (b"cross-site", b"none", b"")]
    marked = [[*head, b"Host: 127.0.0.1", mark] for mark in marks]
    inputs = [b"\r\n".join([*lines, b"", BODY]) for lines in named + marked]
    await agree(rigs, raw_upstream, inputs, tried)
    assert len(taken) == len([*OURS, *AT_HOME, "localhost\t"])
