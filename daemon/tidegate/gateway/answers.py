"""`POST /v1/chat/completions`: from a request to a run, and from a run to its creator."""

from __future__ import annotations

import os
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from tidegate.core import chat
from tidegate.core.errors import LedgerFull
from tidegate.core.ledger import Account, Entry
from tidegate.core.run import Run, State
from tidegate.core.window import START
from tidegate.gateway.body import read_body
from tidegate.gateway.client import Client, Written
from tidegate.gateway.door import Caller
from tidegate.gateway.errors import Refused, error_body
from tidegate.gateway.relay import HOPS_HEADER, Answer, Relay, Target
from tidegate.gateway.server import KEEPALIVE_S
from tidegate.gateway.subscriber import STREAM_HEADERS, StreamSubscriber, Subscriber

if TYPE_CHECKING:
    from tidegate.gateway.app import Gateway

RETRY_AFTER_S = 5
MAX_HOPS = 4  # one gateway before another is sensible; a longer row is a ring
_BUSY = frozenset({"memory_limit", "queue_full", "queue_s"})
_CLOSE = "Connection: close\r\n"
_KEEP = f"Keep-Alive: timeout={KEEPALIVE_S:.0f}\r\n"
_ON_DISCONNECT = {"": False, "cancel": False, "continue": True}
_STATUS = {State.FAILED: 502, State.EXPIRED: 504, State.CANCELLED: 409, State.COMPLETED: 502}


async def chat_completions(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Creates a run and answers with it: as it grows, or whole."""
    account = gateway.registry.ledger.open()
    try:
        run, targets = await _new_run(gateway, request, caller, account)
        client = Client(request)
    except LedgerFull as full:
        account.close()
        raise no_room(full) from None
    except BaseException:
        account.close()
        raise
    relay = Relay(gateway.registry, run, targets, gateway.loop, _hops(request))
    gateway.registry.add(relay)
    if run.streamed:
        return await _stream(gateway, relay, client)
    return await _answer(gateway, relay, client)


async def _new_run(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, account: Account
) -> tuple[Run, list[Target]]:
    """Reads and understands the request. Raises Refused and LedgerFull."""

    def charge(size: int) -> None:
        account.set(Entry.BODY, account.entries[Entry.BODY] + size)

    gateway.refuse_when_shedding()
    if _hops(request) >= MAX_HOPS:
        raise Refused(
            508,
            f"this request has come through {MAX_HOPS} tidegates: an [[upstream]] leads back here",
            "loop_detected",
            headers={"x-should-retry": "false"},
        )
    limits = gateway.settings.limits
    body = await read_body(
        request, max_bytes=limits.max_body_bytes, deadline_s=limits.body_s, charge=charge
    )
    try:
        wanted = chat.parse_request(body)
    except ValueError as error:
        raise Refused(400, str(error), "bad_request") from None
    targets = gateway.catalog.route(wanted.model)
    keep_running = _ON_DISCONNECT.get(request.headers.get("x-on-disconnect", "").lower())
    if keep_running is None:
        raise Refused(400, "x-on-disconnect is cancel or continue", "bad_on_disconnect")
    if keep_running and not wanted.stream:
        raise Refused(
            400,
            "x-on-disconnect: continue needs stream: true, for only a stream can be resumed",
            "bad_on_disconnect",
        )
    run = Run(
        run_id=new_run_id(),
        owner=caller.owner,
        model=wanted.model,
        body=body,
        limits=targets[0].limits,
        account=account,
        now_s=gateway.loop.time(),
        created=time.time(),
        streamed=bool(wanted.stream),
        keep_running=keep_running,
    )
    run.end_disabled = gateway.catalog.is_stuck_demo(wanted.model)
    return run, targets


def new_run_id() -> str:
    """128 bits that cannot be guessed. Randomness is fetched for many ids at once."""
    if not _random_bytes:
        _random_bytes[:] = os.urandom(16 * 64)
    drawn = bytes(_random_bytes[-16:])
    del _random_bytes[-16:]
    return f"run_{drawn.hex()}"


_random_bytes = bytearray()


def _hops(request: web.BaseRequest) -> int:
    """Through how many tidegates a request has come."""
    text = request.headers.get(HOPS_HEADER, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else MAX_HOPS


async def _stream(gateway: Gateway, relay: Relay, client: Client) -> web.StreamResponse:
    """The answer as it grows."""
    subscriber = StreamSubscriber(relay.run, client, stream_head(relay.run, client))
    with gateway.reading(relay, subscriber):
        relay.begin()
        await subscriber.serve()
        if not subscriber.is_committed:
            return await _write(gateway, relay, subscriber, client, _failure(relay))
        return Written(close=client.closes)


async def _answer(gateway: Gateway, relay: Relay, client: Client) -> web.StreamResponse:
    """The answer in one piece."""
    subscriber = Subscriber(relay.run, START, client)
    with gateway.reading(relay, subscriber):
        relay.begin()
        while not relay.run.is_over:
            await subscriber.wait()
        return await _write(gateway, relay, subscriber, client, relay.answer or _failure(relay))


async def _write(
    gateway: Gateway, relay: Relay, subscriber: Subscriber, client: Client, answer: Answer
) -> web.StreamResponse:
    """Writes a whole answer in one go, and waits until it has been read."""
    relay.answer = None
    more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
    ending = _CLOSE if client.closes else _KEEP
    head = (
        f"HTTP/1.1 {answer.status} {_phrase(answer.status)}\r\n"
        f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n"
        f"x-run-id: {relay.run.id}\r\n{more}{ending}\r\n"
    )
    subscriber.outbound_bytes = client.write(head.encode("latin-1") + answer.body)
    if subscriber.outbound_bytes:
        relay.count_outbound()
        gateway.registry.look_soon(subscriber, subscriber.check(gateway.loop.time()))
        await client.flushed()
        subscriber.outbound_bytes = 0
    return Written(close=client.closes)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"  # 529, say


def stream_head(run: Run, client: Client) -> bytes:
    """The head of every stream of events."""
    framing = "" if client.http10 else "Transfer-Encoding: chunked\r\n"
    ending = _CLOSE if client.closes else _KEEP
    return (
        f"HTTP/1.1 200 OK\r\n{STREAM_HEADERS}{framing}{ending}x-run-id: {run.id}\r\n\r\n"
    ).encode("ascii")


def _failure(relay: Relay) -> Answer:
    """Why there is no answer, for a creator that has not been sent any of it."""
    run = relay.run
    if relay.answer is not None:
        return relay.answer
    code = run.error_code or "no_answer"
    status = 503 if code in _BUSY else _STATUS.get(run.state, 502)
    headers: tuple[tuple[str, str], ...] = ()
    if status == 503:
        headers = (("Retry-After", str(RETRY_AFTER_S)),)
    elif run.state is State.CANCELLED:
        headers = (("x-should-retry", "false"),)
    kind = "cancelled" if run.state is State.CANCELLED else "upstream_error"
    body = error_body(run.reason or "there was no answer", type=kind, code=code)
    return Answer(status, "application/json", body, headers)


def no_room(full: LedgerFull) -> Refused:
    """The ledger is full: come again."""
    return Refused(
        503,
        str(full),
        full.code,
        type="server_error",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
