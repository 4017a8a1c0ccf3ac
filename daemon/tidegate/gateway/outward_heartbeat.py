"""The heartbeat that goes out: an address is asked every so often, as long as this worker is ready.

What is at the other end (Uptime Kuma, Healthchecks, Beszel) tells the owner when it stays away. So
nothing is sent while tidegate cannot serve, and a failed try is not repeated before its time.
The answer does not matter beyond its status; its connection is an upstream's, with all its limits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tidegate.core.errors import UpstreamError
from tidegate.core.notices.address import parse_heartbeat_url, words_in
from tidegate.core.secret import Secret
from tidegate.core.settings import Limits, OutwardHeartbeat, Upstream
from tidegate.gateway.upstreams.fetch import fetch
from tidegate.gateway.upstreams.pool import UpstreamPool

ANSWER_LIMIT_S = 10.0
log = logging.getLogger("tidegate.heartbeat")


class HeartbeatSender:
    """Sends it. `why_not_ready` is empty while this worker can serve. Needs a running loop."""

    def __init__(self, why_not_ready: Callable[[], list[str]]) -> None:
        self._why_not_ready = why_not_ready
        self._url: str | None = None
        self._pool: UpstreamPool | None = None
        self._target = ""
        self._secret = Secret()
        self._every_s = OutwardHeartbeat().every_s
        self._is_new = asyncio.Event()
        self._trouble: str | None = None  # as it was last logged

    def __repr__(self) -> str:
        return f"<HeartbeatSender every_s={self._every_s if self._url else None}>"

    def configure(self, settings: OutwardHeartbeat, url: str | None) -> None:
        """Send it there from now on; None: nowhere. The address was checked with the config."""
        if (url, settings.every_s) == (self._url, self._every_s):
            return
        if self._pool is not None:
            self._pool.close()
        self._url, self._every_s, self._pool, self._trouble = url, settings.every_s, None, None
        if url is not None:
            address = parse_heartbeat_url(url)
            scheme = "https" if address.url.is_tls else "http"
            place = Upstream(name="heartbeat", url=f"{scheme}://{address.url.authority}")
            self._pool = UpstreamPool(place, Limits(), None)
            self._target = address.target
            self._secret = Secret(*words_in(url))
        self._is_new.set()

    async def run(self) -> None:
        """Send it until cancelled: at once where it is new, then every `every_s`."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            wait_s = None if self._pool is None else max(0.0, due_s - loop.time())
            try:
                async with asyncio.timeout(wait_s):
                    await self._is_new.wait()
            except TimeoutError:
                pass
            else:
                self._is_new.clear()
                due_s = loop.time()
                continue
            due_s = loop.time() + self._every_s
            if not self._why_not_ready():
                await self._send()

    def close(self) -> None:
        """Close its connection."""
        if self._pool is not None:
            self._pool.close()

    async def _send(self) -> None:
        pool = self._pool
        assert pool is not None, "it is due only with an address"
        limit_s = min(ANSWER_LIMIT_S, self._every_s)
        try:
            status, _ = await fetch(pool, self._target, limit_s, at_root=True)
            trouble = None if status < 300 else f"it answered {status}"
        except UpstreamError as error:
            trouble = self._secret.hide(str(error))
        except Exception as error:  # of a library, over what came back: the next one may be better
            trouble = f"a fault of tidegate's own ({type(error).__name__})"
        if pool is self._pool:
            self._log_new(trouble)

    def _log_new(self, trouble: str | None) -> None:
        """Log a trouble once, until it is over."""
        if trouble is not None and self._trouble is None:
            log.warning("the heartbeat does not arrive: %s", trouble)
        elif trouble is None and self._trouble is not None:
            log.info("the heartbeat arrives again")
        self._trouble = trouble
