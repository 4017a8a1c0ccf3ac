"""An upstream's pool by itself, without a gateway around it."""

from __future__ import annotations

from fakes.machine import until
from gateway.gateway_rig import DEADLINE_S, Peer, plain
from tidegate.core.settings import Limits, Upstream
from tidegate.gateway.upstreams.pool import UpstreamPool


def pool_of(url: str, secret: str | None = None, most: int = 0, **limits: object) -> UpstreamPool:
    """The pool of an upstream at `url`, with a key and a limit of its own."""
    values = {"connect_s": 2.0, **limits}
    return UpstreamPool(
        Upstream(name="box", url=url, max_concurrent=most), Limits(**values), secret
    )


async def none_left(pool: UpstreamPool) -> None:
    """Waits until it has no connection."""
    await until(lambda: not pool.status().connections, DEADLINE_S, "no connection is left")


async def let_go(pool: UpstreamPool) -> None:
    """Waits until no connection to the upstream is in use; the idle ones are closed."""

    def none_in_use() -> bool:
        pool.close_idle()
        return not pool.status().connections

    await until(none_in_use, DEADLINE_S, "the upstream is let go", 0.002)


async def closed(pool: UpstreamPool) -> None:
    """Closes it."""
    pool.close()
    await none_left(pool)


async def answers(peer: Peer) -> None:
    """What an upstream plays that answers every request with an empty object."""
    while True:
        await peer.request()
        await peer.send(plain(b"{}"))
