"""From a request to a run: one way for every format.

What differs between formats is in their descriptions (`tidegate.core.formats`).
"""

from __future__ import annotations

import time
from typing import NamedTuple

from multidict import CIMultiDictProxy

from tidegate.core.errors import LedgerFull
from tidegate.core.formats import RESPONSES
from tidegate.core.formats.base import Format, RequestInfo
from tidegate.core.runs.ledger import Account, Entry
from tidegate.core.runs.run import Run, RunRequest
from tidegate.gateway import web
from tidegate.gateway.api import responses
from tidegate.gateway.api.delivery import Delivery
from tidegate.gateway.api.demo import StuckRelay
from tidegate.gateway.api.heads import no_room
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.request import HOPS_HEADER, ParsedRequest, RequestExtras
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.body import read_body
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.ids import new_id
from tidegate.gateway.server.writer import ResponseWriter
from tidegate.gateway.upstreams.choice import Target

MAX_HOPS = 4  # one gateway before another is sensible; a longer row is a ring
_ON_DISCONNECT = {"": False, "cancel": False, "continue": True}


async def answer(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, form: Format
) -> web.StreamResponse:
    """Create a run and answer with it: as it grows, or whole, or not yet."""
    account = gateway.registry.ledger.open()
    try:
        relay, info = await _new_relay(gateway, request, caller, form, account)
        client = ResponseWriter.of(request)
    except LedgerFull as full:
        account.close()
        raise no_room(full) from None
    except BaseException:
        account.close()
        raise
    gateway.registry.add(relay)
    if info.background and not info.stream:
        return responses.begin(relay)
    delivery = Delivery(gateway, relay, client, streams=info.stream)
    delivery.begin()
    try:
        relay.begin()
        return await delivery.finish()
    finally:
        delivery.end()


async def _new_relay(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, form: Format, account: Account
) -> tuple[Relay, RequestInfo]:
    """Read and parse the request. Raises Refused and LedgerFull."""

    def charge(held_bytes: int) -> None:
        account.set(Entry.BODY, held_bytes)

    check_welcome(gateway, request.headers)
    limits = gateway.settings.limits
    body = await read_body(
        request,
        max_bytes=limits.max_body_bytes,
        deadline_s=limits.body_s,
        charge=charge,
        fits_bytes=gateway.registry.ledger.largest_body_bytes,
    )
    facts = read_facts(request.headers, form)
    parsed = parse_request(facts, form, body, request.remote)
    targets = gateway.catalog.route(parsed.info.model)
    if responses.lacks_former(gateway, parsed.info, caller.owner):
        await responses.bring_former(gateway, parsed.info, caller.owner)
    relay = new_relay(gateway, caller.owner, parsed, targets, account=account)
    return relay, parsed.info


class Began(NamedTuple):
    """When a request was made: on the loop's clock, and in Unix seconds."""

    now_s: float
    created: float


class HeadFacts(NamedTuple):
    """What the head of a request says of its answer."""

    content_type: str
    keep_running: bool | None  # when its client has gone; None: it says so in no known way
    header_lines: str  # for the upstream
    hops: int


def read_facts(headers: CIMultiDictProxy[str], form: Format) -> HeadFacts:
    """Read what concerns the answer from a request's headers."""
    content_type = headers.get("Content-Type", "application/json")
    if not content_type.lower().startswith("multipart/form-data"):
        content_type = "application/json"  # whatever it says, it is read as that
    lines = [
        f"{name}: {value}\r\n"
        for name in form.forwarded
        for value in headers.getall(name, ())
        if value.isascii() and value.isprintable()
    ]
    keep_running = _ON_DISCONNECT.get(headers.get("x-on-disconnect", "").lower())
    return HeadFacts(content_type, keep_running, "".join(lines), hops_of(headers))


def check_welcome(gateway: Gateway, headers: CIMultiDictProxy[str]) -> None:
    """Check that something new may begin. Raises Refused."""
    gateway.refuse_when_shedding()
    if hops_of(headers) >= MAX_HOPS:
        raise Refused(
            508,
            f"this request has come through {MAX_HOPS} tidegates: an [[upstream]] leads back here",
            "loop_detected",
            headers={"x-should-retry": "false"},
        )


def parse_request(
    facts: HeadFacts, form: Format, body: bytes, address: str | None
) -> ParsedRequest:
    """Find out what is asked for, and what its upstream has to know. Raises Refused."""
    try:
        form = form.of_request(body, facts.content_type)
        info = form.parse_request(body, facts.content_type)
    except ValueError as error:
        raise Refused(400, str(error), "bad_request") from None
    if facts.keep_running is None:
        raise Refused(400, "x-on-disconnect is cancel or continue", "bad_on_disconnect")
    if facts.keep_running and not info.stream:
        raise Refused(
            400,
            "x-on-disconnect: continue needs stream: true, for only a stream can be resumed",
            "bad_on_disconnect",
        )
    extras = RequestExtras(facts.content_type, facts.header_lines, hops=facts.hops)
    if facts.keep_running or info.background:
        info = info._replace(keep_running=True)
    return ParsedRequest(form, body, info, extras, address or "")


def new_relay(
    gateway: Gateway,
    owner: str,
    parsed: ParsedRequest,
    targets: list[Target],
    *,
    account: Account,
    began: Began | None = None,
) -> Relay:
    """Make a run for this request, ready to begin, now or then. Raises Refused and LedgerFull."""
    form, body, info, extras, address = parsed
    now_s, created = began or (gateway.loop.time(), time.time())
    run = Run(
        run_id=new_id("run"),
        owner=owner,
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
        now_s=now_s,
        created=created,
        format=form,
    )
    if form is RESPONSES:
        extras, targets = responses.prepare(gateway, run, info, extras, targets)
    kind = StuckRelay if gateway.catalog.is_stuck_demo(info.model) else Relay
    return kind(gateway.registry, run, targets, gateway.loop, extras, caller=address)


def hops_of(headers: CIMultiDictProxy[str]) -> int:
    """Read through how many tidegates a request has come."""
    text = headers.get(HOPS_HEADER, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else MAX_HOPS
