"""From a request to a run, and from a run to its creator: one way for every format.

What differs between formats is in their descriptions (`tidegate.core.formats`).
"""

from __future__ import annotations

import time
from typing import NamedTuple

from aiohttp import web

from tidegate.core.errors import LedgerFull
from tidegate.core.formats import RESPONSES
from tidegate.core.formats.base import Format, RequestInfo
from tidegate.core.formats.framing import RAW
from tidegate.core.runs.ledger import Account, Entry
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.window import START
from tidegate.gateway.api import responses
from tidegate.gateway.api.demo import StuckRelay
from tidegate.gateway.api.heads import answer_head, failure, no_room, raw_head, stream_head
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.request import HOPS_HEADER, RequestExtras
from tidegate.gateway.relay.subscriber import (
    RawSubscriber,
    StreamSubscriber,
    Subscriber,
)
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.body import read_body
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.ids import new_id
from tidegate.gateway.server.writer import SLICE_BYTES, AlreadySent, ResponseWriter
from tidegate.gateway.upstreams.reply import Answer

MAX_HOPS = 4  # one gateway before another is sensible; a longer row is a ring
_ON_DISCONNECT = {"": False, "cancel": False, "continue": True}


async def answer(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, form: Format
) -> web.StreamResponse:
    """Create a run and answer with it: as it grows, or whole, or not yet."""
    account = gateway.registry.ledger.open()
    try:
        relay, info = await _new_relay(gateway, request, caller, form, account)
        client = ResponseWriter(request)
    except LedgerFull as full:
        account.close()
        raise no_room(full) from None
    except BaseException:
        account.close()
        raise
    gateway.registry.add(relay)
    run = relay.run
    if info.stream:
        head = stream_head(run, client, run.format.framing)
        return await _stream(gateway, relay, StreamSubscriber(run, client, head), client)
    if run.request.background:
        return responses.begin(relay)
    if run.format.framing is RAW:
        subscriber = RawSubscriber(run, client, lambda: raw_head(relay, client))
        return await _stream(gateway, relay, subscriber, client)
    return await _answer(gateway, relay, client)


async def _new_relay(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, form: Format, account: Account
) -> tuple[Relay, RequestInfo]:
    """Read and parse the request. Raises Refused and LedgerFull."""

    def charge(held_bytes: int) -> None:
        account.set(Entry.BODY, held_bytes)

    check_welcome(gateway, request)
    limits = gateway.settings.limits
    body = await read_body(
        request,
        max_bytes=limits.max_body_bytes,
        deadline_s=limits.body_s,
        charge=charge,
        fits_bytes=gateway.registry.ledger.largest_body_bytes,
    )
    parsed = parse_request(request, form, body)
    return new_relay(gateway, caller, account, parsed), parsed.info


class ParsedRequest(NamedTuple):
    """A request, and what it means."""

    form: Format
    body: bytes
    info: RequestInfo
    extras: RequestExtras
    address: str = ""  # whose it is where there are no tokens


def check_welcome(gateway: Gateway, request: web.BaseRequest) -> None:
    """Check that something new may begin. Raises Refused."""
    gateway.refuse_when_shedding()
    if _hops(request) >= MAX_HOPS:
        raise Refused(
            508,
            f"this request has come through {MAX_HOPS} tidegates: an [[upstream]] leads back here",
            "loop_detected",
            headers={"x-should-retry": "false"},
        )


def parse_request(request: web.BaseRequest, form: Format, body: bytes) -> ParsedRequest:
    """Find out what is asked for, and what its upstream has to know. Raises Refused."""
    content_type = request.headers.get("Content-Type", "application/json")
    if not content_type.lower().startswith("multipart/form-data"):
        content_type = "application/json"  # whatever it says, it is read as that
    try:
        form = form.of_request(body, content_type)
        info = form.parse_request(body, content_type)
    except ValueError as error:
        raise Refused(400, str(error), "bad_request") from None
    keep_running = _ON_DISCONNECT.get(request.headers.get("x-on-disconnect", "").lower())
    if keep_running is None:
        raise Refused(400, "x-on-disconnect is cancel or continue", "bad_on_disconnect")
    if keep_running and not info.stream:
        raise Refused(
            400,
            "x-on-disconnect: continue needs stream: true, for only a stream can be resumed",
            "bad_on_disconnect",
        )
    lines = [
        f"{name}: {value}\r\n"
        for name in form.forwarded
        for value in request.headers.getall(name, ())
        if value.isascii() and value.isprintable()
    ]
    extras = RequestExtras(content_type, "".join(lines), hops=_hops(request))
    info = info._replace(keep_running=keep_running or info.background)
    return ParsedRequest(form, body, info, extras, request.remote or "")


def new_relay(gateway: Gateway, caller: Caller, account: Account, parsed: ParsedRequest) -> Relay:
    """Make a run for this request, ready to begin. Raises Refused and LedgerFull."""
    form, body, info, extras, address = parsed
    targets = gateway.catalog.route(info.model)
    run = Run(
        run_id=new_id("run"),
        owner=caller.owner,
        request=RunRequest(
            info.model,
            streamed=info.stream or info.background,
            keep_running=info.keep_running,
            background=info.background,
            stored=info.store,
        ),
        body=body,
        limits=targets[0].limits,
        account=account,
        now_s=gateway.loop.time(),
        created=time.time(),
        format=form,
    )
    if form is RESPONSES:
        extras, targets = responses.prepare(gateway, run, info, extras, targets)
    kind = StuckRelay if gateway.catalog.is_stuck_demo(info.model) else Relay
    return kind(gateway.registry, run, targets, gateway.loop, extras, caller=address)


def _hops(request: web.BaseRequest) -> int:
    """Read through how many tidegates a request has come."""
    text = request.headers.get(HOPS_HEADER, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else MAX_HOPS


async def _stream(
    gateway: Gateway, relay: Relay, subscriber: StreamSubscriber, client: ResponseWriter
) -> web.StreamResponse:
    """Send the answer as it grows, or in one piece where nothing of it could be streamed."""
    with gateway.reading(relay, subscriber):
        relay.begin()
        await subscriber.serve()
        if not subscriber.is_committed:
            return await _write(gateway, relay, subscriber, client, failure(relay))
        return AlreadySent(close=client.closes)


async def _answer(gateway: Gateway, relay: Relay, client: ResponseWriter) -> web.StreamResponse:
    """Send the answer in one piece."""
    subscriber = Subscriber(relay.run, START, client)
    with gateway.reading(relay, subscriber):
        relay.begin()
        while not relay.run.is_over:
            await subscriber.wait()
        return await _write(gateway, relay, subscriber, client, relay.answer or failure(relay))


async def _write(
    gateway: Gateway, relay: Relay, subscriber: Subscriber, client: ResponseWriter, answer: Answer
) -> web.StreamResponse:
    """Write a whole answer, and wait until it has been read."""
    relay.answer = None
    body = memoryview(answer.body)
    length = ("Content-Length", str(len(body)))
    head = answer_head(relay, client, answer._replace(headers=(length, *answer.headers)))
    first = body[:SLICE_BYTES]
    client.kept_bytes = len(body) if len(body) > len(first) else 0  # else it is in what is written
    subscriber.outbound_bytes = client.write(b"".join((head, first)))
    if subscriber.outbound_bytes or client.kept_bytes:
        gateway.registry.look_soon(subscriber, subscriber.check(gateway.loop.time()))
        relay.count_outbound()
        for at in range(SLICE_BYTES, len(body), SLICE_BYTES):
            await client.drained()
            client.write(body[at : at + SLICE_BYTES])
        await client.flushed()
        client.kept_bytes = subscriber.outbound_bytes = 0
    return AlreadySent(close=client.closes)
