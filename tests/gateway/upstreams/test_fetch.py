"""Small answers kept whole: over a kept connection, over a stale one, and with a limit."""

from __future__ import annotations

import asyncio

import pytest

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, HEAD, Peer, plain
from gateway.pool_rig import answers, closed, none_left, pool_of
from tidegate.core.errors import UpstreamError
from tidegate.gateway.upstreams.fetch import MAX_FETCH_BYTES, fetch

ON_BOTH_LOOPS = True


async def test_a_fetch_keeps_the_connection(raw_upstream) -> None:
    """Status and body; the next one goes over the same connection."""
    upstream = await raw_upstream(answers)
    pool = pool_of(upstream.url)
    assert await fetch(pool, "/models", 2.0) == (200, b"{}")
    assert await fetch(pool, "/models", 2.0) == (200, b"{}")
    assert len(upstream.peers) == 1
    await closed(pool)


async def test_a_fetch_over_a_stale_connection_is_tried_afresh(raw_upstream) -> None:
    """That a kept connection died of idleness says nothing about the upstream."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(plain(b"{}"))
        await peer.request()

    upstream = await raw_upstream(play)
    pool = pool_of(upstream.url)
    for _ in range(3):
        assert await fetch(pool, "/models", 2.0) == (200, b"{}")
    assert len(upstream.peers) == 3
    await closed(pool)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed the connection"),
        (plain(b"x" * 100)[:-1], "closed the connection"),
        (b"\x00\x01\x02\r\n\r\n", "not HTTP"),
        (HEAD + b"%x\r\n" % (16 * MAX_FETCH_BYTES) + b"x" * 3 * MAX_FETCH_BYTES, "too long"),
    ],
    ids=["nothing", "cut", "garbage", "long"],
)
async def test_a_fetch_that_fails_says_why(raw_upstream, answer: bytes, reason: str) -> None:
    """And leaves no connection."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    pool = pool_of((await raw_upstream(play)).url)
    with pytest.raises(UpstreamError, match=reason):
        await fetch(pool, "/models", 5.0)
    await none_left(pool)


async def test_a_fetch_has_a_limit(raw_upstream) -> None:
    """An upstream that does not answer is let go."""

    async def play(peer: Peer) -> None:
        await peer.hang()

    upstream = await raw_upstream(play)
    pool = pool_of(upstream.url)
    with pytest.raises(UpstreamError, match=r"did not answer within 0\.1 s"):
        await fetch(pool, "/models", 0.1)
    await none_left(pool)
    await until(lambda: not upstream.open_connections, DEADLINE_S, "the upstream sees that")


async def test_a_cancelled_fetch_leaves_nothing(raw_upstream) -> None:
    """The connection goes with the task that asked."""

    async def play(peer: Peer) -> None:
        await peer.hang()

    upstream = await raw_upstream(play)
    pool = pool_of(upstream.url)
    task = asyncio.ensure_future(fetch(pool, "/models", 5.0))
    await until(lambda: upstream.peers, DEADLINE_S, "it is connected")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await none_left(pool)
