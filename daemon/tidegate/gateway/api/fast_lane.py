"""The fast lane: the most frequent requests, answered past aiohttp's parser, tasks and router.

A POST to a model whose head is plain and which is there whole, in one read, is taken here, if it
may be made at all. Whatever is to be refused or is in any way out of the ordinary is declined, with
no trace, and the ordinary road tells about it. Both roads ask the same functions: who may come in
is `AccessControl`'s, what is asked for is `create`'s.

A client sends the same head again and again. What was found in it is remembered under its digest,
until the settings change; no key is kept.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from tidegate.core import formats
from tidegate.core.formats.base import Format
from tidegate.core.http.plain_post import read_head, split_post
from tidegate.core.runs.ledger import Entry
from tidegate.gateway.api import create
from tidegate.gateway.api.create import MAX_HOPS, HeadFacts, ParsedRequest
from tidegate.gateway.api.delivery import Delivery
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.porch import Porch
from tidegate.gateway.server.writer import ResponseWriter

log = logging.getLogger("tidegate.gateway")

MOST_REMEMBERED = 64  # heads: each program that calls has one or two

_FORMATS = (
    formats.CHAT,
    formats.COMPLETIONS,
    formats.MESSAGES,
    formats.RESPONSES,
    formats.EMBEDDINGS,
    formats.OLLAMA_CHAT,
    formats.OLLAMA_GENERATE,
)
_BY_PATH = {form.path if form.at_root else f"/v1{form.path}": form for form in _FORMATS}


class _Head(NamedTuple):
    """A head, as access control looks at it."""

    raw_path: str
    headers: CIMultiDictProxy[str]
    remote: str | None
    method: str = "POST"


class _Ticket(NamedTuple):
    """What was found in a head: whose it is, and what it asks for."""

    caller: Caller
    form: Format
    facts: HeadFacts


class FastLane:
    """Takes requests from the porch."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tickets: dict[bytes, _Ticket] = {}

    def __repr__(self) -> str:
        return f"<FastLane {len(self._tickets)} heads>"

    def forget(self) -> None:
        """Forget whom it let in: the settings have changed."""
        self._tickets.clear()

    def take(self, porch: Porch, data: bytes) -> bool:
        """Take the request that `data` is; False: it is for the ordinary road."""
        gateway = self._gateway
        settings = gateway.settings
        post = split_post(data)
        if post is None or not (settings.server.fast_lane and gateway.admits_all):
            return False
        ticket = self._tickets.get(post.key) or self._look(porch, post.key, bytes(post.head))
        if ticket is None or len(post.body) > settings.limits.max_body_bytes or porch.over_unix:
            return False
        try:
            address = None if ticket.caller.owner else porch.remote
            parsed = create.parse_request(ticket.facts, ticket.form, post.body, address)
        except Exception:  # refused, or a fault of ours: the ordinary road meets it too, and tells
            return False
        return self._begin(porch, ticket.caller, parsed)

    def _look(self, porch: Porch, key: bytes, head: bytes) -> _Ticket | None:
        """Look at a head that was not seen before."""
        read = read_head(head)
        form = None if read is None else _BY_PATH.get(read.path)
        if read is None or form is None:
            return None
        headers = CIMultiDictProxy(CIMultiDict(read.fields))
        caller = self._gateway.recognise(_Head(read.path, headers, porch.remote))
        facts = create.read_facts(headers, form)
        if caller is None or facts.hops >= MAX_HOPS:
            return None
        if len(self._tickets) >= MOST_REMEMBERED:
            self._tickets.clear()
        ticket = self._tickets[key] = _Ticket(caller, form, facts)
        return ticket

    def _begin(self, porch: Porch, caller: Caller, parsed: ParsedRequest) -> bool:
        """Begin a run; False where it may not be begun."""
        gateway, info = self._gateway, parsed.info
        if info.background:
            return False
        porch.hold()
        account = gateway.registry.ledger.open()
        try:
            account.set(Entry.BODY, len(parsed.body))
            relay = create.new_relay(gateway, caller, account, parsed)
            client = ResponseWriter(porch, porch.drain)
        except Exception:
            account.close()
            return False
        gateway.registry.add(relay)
        _Served(porch, relay.run.id, Delivery(gateway, relay, client, streams=info.stream), client)
        return True


class _Served:
    """A request that is being answered by a run."""

    __slots__ = ("_client", "_delivery", "_porch", "_run_id", "_task")

    def __init__(
        self, porch: Porch, run_id: str, delivery: Delivery, client: ResponseWriter
    ) -> None:
        self._porch = porch
        self._delivery = delivery
        self._run_id = run_id
        self._client = client
        porch.begin(self)
        delivery.begin()
        self._task = porch.loop.create_task(delivery.finish())
        self._task.add_done_callback(self._on_done)

    def client_left(self) -> None:
        """Take note that the client is gone."""
        self._task.cancel()

    def _on_done(self, task: asyncio.Task[object]) -> None:
        self._delivery.end()
        error = None if task.cancelled() else task.exception()
        if not (task.cancelled() or error):
            self._porch.answered(close=self._client.closes)
            return
        if error is not None and not isinstance(error, ConnectionError):
            log.error("run %s: its answer could not be sent", self._run_id, exc_info=error)
        self._porch.abort()
