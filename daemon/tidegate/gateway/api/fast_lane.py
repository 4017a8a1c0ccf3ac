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
import time
from typing import NamedTuple

from multidict import CIMultiDict, CIMultiDictProxy

from tidegate.core import formats
from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats.base import ErrorText, Format
from tidegate.core.http.plain_post import read_head, split_post
from tidegate.core.runs.ledger import Entry
from tidegate.gateway.api import create
from tidegate.gateway.api.create import MAX_HOPS, HeadFacts
from tidegate.gateway.api.delivery import Delivery
from tidegate.gateway.api.heads import answer_head, stream_head
from tidegate.gateway.api.responses import lacks_former
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.light import MOST_AGE_S, LightRun, may_be_light
from tidegate.gateway.relay.light_answers import KeptAnswer
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.request import ParsedRequest, light_request
from tidegate.gateway.relay.subscriber import LAST_CHUNK
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import SERVER_ERROR, closing_answer
from tidegate.gateway.server.ids import new_id
from tidegate.gateway.server.porch import Porch
from tidegate.gateway.server.writer import ResponseWriter
from tidegate.gateway.upstreams.choice import Target
from tidegate.gateway.upstreams.reply import Answer

log = logging.getLogger("tidegate.gateway")

_OURS = (SERVER_ERROR, "internal_error")
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


def _path_of(form: Format) -> str:
    return form.path if form.at_root else f"/v1{form.path}"


_BY_PATH = {_path_of(form): form for form in _FORMATS}


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
        self._is_watching = False  # that no light answer grows old

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
            targets = gateway.catalog.route(parsed.info.model)
        except Exception:  # also a fault of ours: the ordinary road meets it too, and tells
            return False
        owner = ticket.caller.owner
        return self._begin_light(porch, owner, parsed, targets) or (
            self._begin(porch, owner, parsed, targets)
        )

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

    # --- with a run -----------------------------------------------------------------------------

    def _begin(
        self, porch: Porch, owner: str, parsed: ParsedRequest, targets: list[Target]
    ) -> bool:
        """Begin a run; False where it may not be begun."""
        gateway, info = self._gateway, parsed.info
        if info.background or lacks_former(gateway, info, owner):
            return False
        porch.hold()
        account = gateway.registry.ledger.open()
        try:
            account.set(Entry.BODY, len(parsed.body))
            relay = create.new_relay(gateway, owner, parsed, targets, account=account)
            delivery = _FastDelivery(gateway, relay, porch, streams=info.stream)
        except Exception:
            account.close()
            return False
        gateway.registry.add(relay)
        delivery.start()
        relay.begin()
        return True

    # --- without one ----------------------------------------------------------------------------

    def _begin_light(
        self, porch: Porch, owner: str, parsed: ParsedRequest, targets: list[Target]
    ) -> bool:
        """Send the request, and see what comes of it; False where that would not be the same."""
        gateway, registry = self._gateway, self._gateway.registry
        now_s = gateway.loop.time()
        if not may_be_light(parsed, targets, now_s) or gateway.evictor.has_backpressure:
            return False
        try:
            head, body = light_request(targets[0], parsed)
        except (ValueError, UpstreamError):
            return False
        connection = targets[0].pool.take_at_once()
        if connection is None:
            return False
        light = LightRun(self, connection, parsed, targets, client=porch, owner=owner, now_s=now_s)
        porch.hold()
        try:
            registry.light.begin(light)
        except LedgerFull:
            connection.abort()
            targets[0].pool.release_slot()
            return False
        porch.begin(light)
        light.send(head, body)
        self._watch_age()
        return True

    def send_stream(self, light: LightRun, block: bytes, events: int) -> None:
        """Send a whole stream of events, and keep it for later readers."""
        run_id = new_id("run")
        head = stream_head(run_id, light.parsed.form.framing)
        self._send(light, b"".join((head, b"%x\r\n" % len(block), block, b"\r\n", LAST_CHUNK)))
        registry, target, ended_s = self._gateway.registry, light.target, self._gateway.loop.time()
        target.pool.note_first_output(target.model, ended_s - light.asked_s)
        registry.on_first_output(target.pool.name, ended_s - light.asked_s)
        registry.on_light_end(_as_kept(light, run_id, ended_s, events, block))

    def send_plain(self, light: LightRun, answer: Answer) -> None:
        """Send an answer in one piece."""
        run_id = new_id("run")
        status, content_type, body, headers = answer
        whole = Answer(status, content_type, body, (("Content-Length", str(len(body))), *headers))
        self._send(light, answer_head(run_id, whole) + body)
        ended_s = self._gateway.loop.time()
        self._gateway.registry.on_light_end(_as_kept(light, run_id, ended_s, 0, body))

    def _send(self, light: LightRun, data: bytes) -> None:
        """Write the whole answer; the request is over when the kernel has taken it."""
        self._gateway.registry.light.end(light)
        porch = light.client
        assert isinstance(porch, Porch)
        assert porch.transport is not None, "else it would have been promoted"
        porch.wrote_raw = True
        if not porch.transport.is_closing():
            porch.transport.write(data)
        if porch.transport.get_write_buffer_size():
            _Flush(porch, light.target.limits.stall_s)
        else:
            porch.answered()

    def promote(self, light: LightRun) -> Relay:
        """Make a run and its relay, with the client as its reader if it is still there."""
        gateway, registry, parsed = self._gateway, self._gateway.registry, light.parsed
        registry.light.end(light)
        account = registry.ledger.open_surely(len(parsed.body))
        began = create.Began(light.asked_s, light.created)
        relay = create.new_relay(
            gateway, light.owner, parsed, light.targets, account=account, began=began
        )
        registry.add(relay)
        porch = light.client
        assert isinstance(porch, Porch)
        if porch.transport is not None:
            _FastDelivery(gateway, relay, porch, streams=parsed.info.stream).start()
        else:
            relay.run.attach()
            relay.run.detach(gateway.loop.time())
        return relay

    def _watch_age(self) -> None:
        """See to it that runs are made of light answers that take longer."""
        if not self._is_watching:
            self._is_watching = True
            self._gateway.loop.call_later(MOST_AGE_S / 2, self._promote_old)

    def _promote_old(self) -> None:
        self._is_watching = False
        lights = self._gateway.registry.light
        lights.promote(self._gateway.loop.time() - MOST_AGE_S / 2)
        if lights.running:
            self._watch_age()


def _as_kept(
    light: LightRun, run_id: str, ended_s: float, next_seq: int, events: bytes
) -> KeptAnswer:
    """Give what is kept of a light answer that has been sent."""
    parsed, target = light.parsed, light.target
    return KeptAnswer(
        id=run_id,
        owner=light.owner,
        model=parsed.info.model,
        upstream=target.pool.name,
        upstream_model=target.model,
        path=parsed.form.path,
        keep_s=target.limits.keep_finished_s,
        created=light.created,
        ended=time.time(),
        began_s=light.asked_s,
        ended_s=ended_s,
        request_id=light.reply.request_id,
        request_bytes=len(parsed.body),
        next_seq=next_seq,
        events=events,
    )


class _FastDelivery(Delivery):
    """A run's answer on its way to a client on the porch."""

    __slots__ = ("_porch", "_task")

    def __init__(self, gateway: Gateway, relay: Relay, porch: Porch, *, streams: bool) -> None:
        super().__init__(gateway, relay, ResponseWriter(porch, porch.drain), streams=streams)
        self._porch = porch
        self._task: asyncio.Task[object] | None = None

    def start(self) -> None:
        """Attach the client. There is no task before it lags, or the answer is over."""
        self._porch.begin(self)
        self.begin()
        self._subscriber.on_wake = self._go_on

    def _go_on(self) -> None:
        if self._task is None:
            self._task = self._porch.loop.create_task(self.finish())
            self._task.add_done_callback(self._on_done)

    def client_left(self) -> None:
        """Take note that the client is gone."""
        if self._task is None:
            self.end()
        else:
            self._task.cancel()

    def end(self) -> None:
        """Detach the client, whatever became of it."""
        self._subscriber.on_wake = None
        super().end()

    def _on_done(self, task: asyncio.Task[object]) -> None:
        self.end()
        error = None if task.cancelled() else task.exception()
        if not (task.cancelled() or error):
            self._porch.answered(close=self._client.closes)
            return
        if error is not None and not isinstance(error, ConnectionError):
            run = self._relay.run
            log.error("run %s: its answer could not be sent", run.id, exc_info=error)
            if self._porch.transport is not None and not self._porch.wrote_raw:
                why = ErrorText(500, f"internal error; the log has it as run {run.id}", *_OURS)
                self._porch.transport.write(closing_answer(why, _path_of(run.format)))
                self._porch.force_close()
                return
        self._porch.abort()


class _Flush:
    """An answer that is written, and waits for its client to read it."""

    __slots__ = ("_porch", "_task")

    def __init__(self, porch: Porch, limit_s: float) -> None:
        self._porch = porch
        porch.begin(self)
        self._task = porch.loop.create_task(self._wait(limit_s))

    def client_left(self) -> None:
        """Take note that the client is gone."""
        self._task.cancel()

    async def _wait(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._porch.flush()
        except (TimeoutError, ConnectionError):
            self._porch.abort()
        else:
            self._porch.answered()
