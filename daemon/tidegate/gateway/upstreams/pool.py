"""An upstream: its pool of connections, its slots, and how it fares.

The pool keeps idle connections only as long as the upstream surely does. A slot is what
`max_concurrent` counts: without a free one a relay waits in a queue that is fair (first come, first
served) and bounded.

What is known of how it fares, and of how each of its models does, is in `core.upstreams.health`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Protocol

from msgspec import Struct

from tidegate import __version__
from tidegate.core.errors import UpstreamError
from tidegate.core.secret import HIDDEN, Secret
from tidegate.core.settings import Limits, Upstream
from tidegate.core.upstreams.address import address_of
from tidegate.core.upstreams.blame import Held
from tidegate.core.upstreams.breaker import Witness
from tidegate.core.upstreams.health import Health
from tidegate.core.upstreams.summary import ModelAside, UpstreamRefusal, UpstreamStatus
from tidegate.gateway.upstreams.connection import UpstreamConnection
from tidegate.gateway.upstreams.tls import trusting

log = logging.getLogger("tidegate.upstream")

MAX_IDLE = 64  # idle connections kept per upstream: a burst's worth, a few KiB each
MAX_OBJECTS = 100_000  # in a list of models, with some five for each: 20 MB while it is read
MAX_MODELS_NOTED = 256  # whose last figures are kept: more than a house uses, some 60 KiB
MAX_NAME_NOTED = 200  # characters; some servers answer to any name, and a name may be a novel
# Clouds' edges refuse requests that do not say whose they are.
USER_AGENT = f"tidegate/{__version__}"
MOST_TOLD = 8  # models that are set aside, and refusals: a heartbeat a second carries them
_KEY_NAMES = {"authorization": "Authorization", "x-api-key": "x-api-key"}  # as they are sent


class Waiter(Protocol):
    """A relay that waits for a slot."""

    def on_slot(self, pool: UpstreamPool) -> None:
        """Take a slot at `pool`, which is free and now yours."""


class ModelFigures(Struct, frozen=True):
    """How a model did the last time. None: not known."""

    first_output_s: float | None = None
    per_s: float | None = None
    unit: str = "tokens/s"  # or "events/s", where the upstream does not count tokens


class UpstreamPool:
    """One upstream as the gateway uses it."""

    def __init__(
        self,
        upstream: Upstream,
        limits: Limits,
        secret: str | None,
        headers: Mapping[str, str] | None = None,
        authority: str | None = None,
    ) -> None:
        """`headers` are those whose values are as secret as the key; `authority` are the
        certificates of a `ca_file`. What is wrong with any of it makes the upstream failing.
        """
        self.upstream = upstream
        self.name = upstream.name
        self.limits = limits
        self.active = 0
        self._active_elsewhere = 0
        self.health = Health()
        self.figures: dict[str, ModelFigures] = {}  # by model; the one used last is the last
        self._loop = asyncio.get_running_loop()
        self._idle: list[UpstreamConnection] = []
        self._reaper: asyncio.TimerHandle | None = None
        self._fault = ""
        self._open: set[UpstreamConnection] = set()
        self._queue: deque[Waiter] = deque()
        self.key_header = upstream.api_key_header or "authorization"
        self._shown = HIDDEN if "@" in upstream.url else upstream.url  # what is before it is a key
        self.secret = Secret(secret, *(headers or {}).values())
        self._endpoint: _Endpoint | None = None
        try:
            self._endpoint = _Endpoint(upstream, secret, headers or {}, authority)
            self.key_header = self._endpoint.address.key_header
        except Exception as error:  # whatever is wrong with it, the others serve
            self._fault = f"cannot be used as it is configured: {error or type(error).__name__}"
            self.unreached(f'upstream "{self.name}" {self._fault}')
            log.error("upstream %s %s", self.name, self._fault)

    def status(self) -> UpstreamStatus:
        """Show it as `status` does."""
        return UpstreamStatus(
            name=self.name,
            url=self._shown,
            state=self.state,
            active=self.active,
            queued=len(self._queue),
            connections=len(self._open),
            last_error=self.last_error,
            aside=[
                ModelAside(
                    model=each.model,
                    left_s=round(each.left_s, 1),
                    why="retry-after" if each.was_asked_for else "failures",
                )
                for each in islice(self.health.aside(self._loop.time()), MOST_TOLD)
            ],
            refusals=[
                UpstreamRefusal(model=each.model, text=each.text)
                for each in islice(self.health.refusals(), MOST_TOLD)
            ],
        )

    # --- its health -----------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """ "ok", "failing", "set aside" or "unknown"."""
        return "set aside" if self.health.is_aside else self.health.state

    @property
    def last_error(self) -> str | None:
        """Why its last request failed, or why it could not be reached."""
        return self.health.last_error

    @property
    def reachable(self) -> bool | None:
        """Whether it answers at all; None: not tried yet."""
        return self.health.reachable

    @property
    def key_name(self) -> str:
        """Where the config has its key, for people; never the key."""
        if self.upstream.api_key_env is not None:
            return f"api_key_env {self.upstream.api_key_env}"
        if self.upstream.api_key_file is not None:
            return f"api_key_file {self.upstream.api_key_file.rpartition('/')[2]}"
        return "neither api_key_env nor api_key_file is set"

    def succeeded(self, model: str, *, is_plain: bool = False) -> None:
        """Note that a request was answered."""
        if self.health.succeeded(model, self._loop.time(), is_plain=is_plain):
            self._log_back(model)

    def began(self, model: str) -> None:
        """Note a request's first output. Only a whole answer makes good for former failures."""
        if self.health.began(model, self._loop.time()):
            self._log_back(model)

    def failed(
        self, model: str, reason: str, held: Held = Held.NOTHING, witness: Witness | None = None
    ) -> None:
        """Note that a request was not answered. `held` says against whom that counts."""
        now_s = self._loop.time()
        was_aside = self.health.is_aside
        if news := self.health.failed(model, reason, held, now_s, witness):
            log.warning("upstream %s: %s", self.name, news)
        elif held is Held.ALIVE and was_aside and not self.health.is_aside:
            self._log_back(model)

    def alive(self, model: str) -> None:
        """Note that a request was refused with a reason."""
        if self.health.alive(model, self._loop.time()):
            self._log_back(model)

    def reached(self, *, is_well: bool) -> None:
        """Note that it answered a question of ours, which promises nothing for a request."""
        self.health.reached(self._loop.time(), is_well=is_well)

    def unreached(self, reason: str) -> None:
        """Note that it did not even answer that."""
        self._log_news(self.health.unreached(reason, self._loop.time()))

    def confirm(self, reason: str) -> None:
        """Note that a question of ours found it broken as well, as requests seem to."""
        self._log_news(self.health.confirm(reason, self._loop.time()))

    def _log_news(self, news: list[str]) -> None:
        for each in news:
            log.warning("upstream %s: %s", self.name, each)

    def _log_back(self, model: str) -> None:
        log.info("upstream %s answers again, asked for %s", self.name, model[:MAX_NAME_NOTED])

    def note_first_output(self, model: str, seconds: float) -> None:
        """Note how long the model's last answer took to begin."""
        known = self.figures.get(model, ModelFigures())
        self._note(model, ModelFigures(seconds, known.per_s, known.unit))

    def note_speed(self, model: str, per_s: float, unit: str) -> None:
        """Note how fast the model's last answer came, in "tokens/s" or "events/s"."""
        known = self.figures.get(model, ModelFigures())
        self._note(model, ModelFigures(known.first_output_s, per_s, unit))

    def _note(self, model: str, figures: ModelFigures) -> None:
        if len(model) > MAX_NAME_NOTED:
            return
        self.figures.pop(model, None)
        self.figures[model] = figures
        if len(self.figures) > MAX_MODELS_NOTED:
            del self.figures[next(iter(self.figures))]

    # --- slots ----------------------------------------------------------------------------------

    @property
    def is_free(self) -> bool:
        """Whether a request would have a slot at once."""
        return not self._queue and self._has_slot()

    def take_slot(self, waiter: Waiter, max_queued: int | None = None) -> bool:
        """Take a slot. True: go on. False: wait for `on_slot`. UpstreamError: too many do.

        Without `max_queued` the upstream's own limit holds; a model may have another.
        """
        most = self.limits.max_queued if max_queued is None else max_queued
        if self.is_free:
            self.active += 1
            return True
        if len(self._queue) >= most:
            raise UpstreamError(
                f"is busy: {self.active} active, {len(self._queue)} waiting", code="queue_full"
            )
        self._queue.append(waiter)
        return False

    def take_at_once(self) -> UpstreamConnection | None:
        """Take a slot and an idle connection; None, and neither, where one of them is lacking."""
        connection = self.take_idle() if self.is_free else None
        if connection is not None:
            self.active += 1
        return connection

    def release_slot(self) -> None:
        """Release a slot; the longest waiter gets it."""
        self.active -= 1
        self._admit()

    def share(self, active_elsewhere: int) -> None:
        """Respect the limit together with the other generation, which has so many slots."""
        self._active_elsewhere = active_elsewhere
        self._admit()

    def _has_slot(self) -> bool:
        most = self.upstream.max_concurrent
        return not most or self.active + self._active_elsewhere < most

    def _admit(self) -> None:
        while self._queue and self._has_slot():
            self.active += 1
            self._queue.popleft().on_slot(self)

    def leave_queue(self, waiter: Waiter) -> None:
        """Wait no longer."""
        self._queue.remove(waiter)

    # --- connections ----------------------------------------------------------------------------

    @property
    def endpoint(self) -> _Endpoint:
        """Where it is and what is sent there. Raises UpstreamError where that cannot be used."""
        if self._endpoint is None:
            raise UpstreamError(self._fault, code="connect_failed")
        return self._endpoint

    def request_head(
        self,
        method: str,
        path: str,
        body_bytes: int,
        *,
        stream: bool,
        more: str = "",
        content_type: str = "application/json",
        accept: str = "",
        at_root: bool = False,
    ) -> bytes:
        """Write the head of a request. Nothing of the client's own head is ever copied.

        Raises UpstreamError where the upstream cannot be used. `more` are whole header lines.
        `accept` is said instead of what `stream` asks for. With `at_root` the path counts from
        where the server begins and not from its /v1.
        """
        endpoint = self.endpoint
        accept = accept or ("text/event-stream" if stream else "application/json")
        if method != "POST":
            return endpoint.opening(method, path, accept, at_root) + f"{more}\r\n".encode("latin-1")
        asked = (path, accept, at_root)
        opening = endpoint.openings.get(asked)
        if opening is None:
            opening = endpoint.openings[asked] = endpoint.opening(method, *asked)
        content = f"Content-Type: {content_type}\r\nContent-Length: {body_bytes}\r\n"
        return opening + f"{more}{content}\r\n".encode("latin-1")

    def take_idle(self) -> UpstreamConnection | None:
        """Take a connection that is open and surely still wanted by the other side."""
        now_s = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and connection.idle_until_s > now_s:
                return connection
            connection.abort()
        return None

    async def connect(self, connect_s: float | None = None) -> UpstreamConnection:
        """Open a fresh connection, within the upstream's own limit or another.

        Raises UpstreamError naming what is wrong.
        """
        limit_s = self.limits.connect_s if connect_s is None else connect_s
        loop, endpoint = self._loop, self.endpoint
        url = endpoint.address.url
        try:
            async with asyncio.timeout(limit_s):
                if url.socket_path:
                    _, made = await loop.create_unix_connection(self._new, url.socket_path)
                else:
                    _, made = await loop.create_connection(
                        self._new, url.host, url.port, ssl=endpoint.tls
                    )
        except TimeoutError:
            raise UpstreamError(
                f"did not accept a connection within connect_s = {limit_s:g} s",
                code="connect_timeout",
            ) from None
        except OSError as error:
            why = error.strerror or str(error)
            raise UpstreamError(
                f"cannot be reached at {self._shown}: {why}", code="connect_failed"
            ) from None
        except Exception as error:  # a resolver's or a TLS library's own: it costs this upstream
            log.exception("upstream %s: internal error while connecting", self.name)
            raise UpstreamError(
                f"cannot be reached at {self._shown}: {type(error).__name__}", code="connect_failed"
            ) from error
        if not made.is_usable:
            raise UpstreamError("hung up at once", code="upstream_disconnected")
        self._open.add(made)
        return made

    def close_idle(self) -> None:
        """Close what is not in use."""
        while self._idle:
            self._idle.pop().abort()
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None

    def close(self) -> None:
        """Close every connection."""
        self.close_idle()
        for connection in list(self._open):
            connection.abort()

    def _new(self) -> UpstreamConnection:
        # Not ours to count yet: uvloop makes one even where the connection is not accepted.
        return UpstreamConnection(self._loop, self._on_free)

    def _on_free(self, connection: UpstreamConnection) -> None:
        if connection.is_usable and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
            if self._reaper is None:
                self._reaper = self._loop.call_at(connection.idle_until_s, self._reap)
        else:
            connection.abort()
            self._open.discard(connection)

    def _reap(self) -> None:
        """Close what has been idle for too long, before the upstream does."""
        now_s = self._loop.time()
        overdue = [each for each in self._idle if each.idle_until_s <= now_s]
        self._idle = [each for each in self._idle if each.idle_until_s > now_s]
        for connection in overdue:
            connection.abort()
        self._reaper = (
            self._loop.call_at(min(each.idle_until_s for each in self._idle), self._reap)
            if self._idle
            else None
        )


class _Endpoint:
    """An upstream's address with what only a connection needs, worked out once."""

    def __init__(
        self,
        upstream: Upstream,
        secret: str | None,
        headers: Mapping[str, str],
        authority: str | None,
    ) -> None:
        """Raises ValueError or OSError where they cannot be used."""
        self.address = address = address_of(upstream, headers)
        self.tls = trusting(authority) if address.url.is_tls else None
        fields = [] if address.names_agent else [("User-Agent", USER_AGENT)]
        fields += address.headers.items()
        if secret:
            fields.append((_KEY_NAMES[address.key_header], address.key_value(secret)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        self._lines = f"Host: {address.url.authority}\r\n{lines}"
        # How each kind of POST begins: few, for the formats have fixed paths.
        self.openings: dict[tuple[str, str, bool], bytes] = {}

    def opening(self, method: str, path: str, accept: str, at_root: bool) -> bytes:
        """Write the part of a head that is the same each time."""
        prefix = self.address.root if at_root else self.address.prefix
        line = f"{method} {prefix}{path} HTTP/1.1\r\n"
        return f"{line}{self._lines}Accept: {accept}\r\n".encode("latin-1")
