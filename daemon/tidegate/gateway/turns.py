"""Responses over WebSocket: one connection, one answer after another.

Each `response.create` message is a request, and begins a run like any other; each of its events is
one message. Answers are given in the order in which they were asked for, one at a time. When the
socket goes, so does the reader of the run under way, with all that follows from that.

Errors are told as OpenAI's servers do: what never began as `{"type": "error", "status", "error"}`,
what broke off in the middle by `response.failed`. The connection outlives both, so either is the
one last message of its answer: who stopped at the first of two took the second for the next one's.
Facts: https://developers.openai.com/api/docs/guides/websocket-mode and openai-python.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Raw

from tidegate.core.errors import CursorEvicted, LedgerFull
from tidegate.core.formats import RESPONSES
from tidegate.core.formats.base import ErrorText, Meaning
from tidegate.core.formats.openai import error_body
from tidegate.core.framing import SSE
from tidegate.core.ledger import Account, Entry
from tidegate.core.window import START
from tidegate.gateway import answers
from tidegate.gateway.client import Client
from tidegate.gateway.door import Caller
from tidegate.gateway.errors import Refused
from tidegate.gateway.relay import Relay
from tidegate.gateway.subscriber import Subscriber

if TYPE_CHECKING:
    from tidegate.gateway.app import Gateway

# Questions that may wait behind the one that is being answered: a client asks when it has its
# answer, so even one is rare. Each is in the ledger.
MOST_WAITING = 8
DRAIN_LOOK_S = 0.5  # how soon a connection that asks nothing learns that it is to go elsewhere

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


async def converse(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """`GET /v1/responses` as a WebSocket."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Refused(
            405,
            "only POST here, or GET as a WebSocket (Upgrade: websocket)",
            "bad_method",
            headers={"Allow": "POST"},
        )
    conversation = _Conversation(gateway, request, caller)
    try:
        await conversation.open()
        await conversation.serve()
    finally:
        conversation.drop()
    return conversation.socket


class _Conversation:
    """One WebSocket, what was asked on it, and who listens to it."""

    def __init__(self, gateway: Gateway, request: web.BaseRequest, caller: Caller) -> None:
        limits = gateway.settings.limits
        self._gateway = gateway
        self._request = request
        self._caller = caller
        self._client = Client(request)
        # aiohttp closes with 1009 above max_msg_size, and where its pings stay without answer.
        self.socket = web.WebSocketResponse(
            heartbeat=limits.keepalive_s, compress=False, max_msg_size=limits.max_body_bytes
        )
        self._asked: asyncio.Queue[tuple[Account, bytes]] = asyncio.Queue(MOST_WAITING)
        self._listener: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Shakes hands; from then on whoever opened it is cancelled when the client leaves."""
        await self.socket.prepare(self._request)
        owner = asyncio.current_task()
        assert owner is not None
        self._listener = asyncio.create_task(self._listen(owner))

    def drop(self) -> None:
        """Leaves nothing behind."""
        if self._listener is not None:
            self._listener.cancel()
        while not self._asked.empty():
            self._asked.get_nowait()[0].close()

    async def serve(self) -> None:
        """Answers until the client goes, or until this generation takes nothing new."""
        while not self._gateway.server.draining:
            try:
                async with asyncio.timeout(DRAIN_LOOK_S):
                    account, message = await self._asked.get()
            except TimeoutError:
                continue
            await self._answer(account, message)
        assert self._listener is not None
        self._listener.cancel()
        with suppress(asyncio.CancelledError):
            await self._listener
        await self.socket.close(code=WSCloseCode.GOING_AWAY, message=b"draining; connect again")

    # --- what is asked ------------------------------------------------------------------------

    async def _listen(self, owner: asyncio.Task[object]) -> None:
        """Takes what is asked. Pings are answered, and a close is seen, while it waits."""
        async for message in self.socket:
            try:
                if message.type is not WSMsgType.TEXT:
                    raise Refused(400, "a message is a text of JSON", "bad_request")
                self._take(message.data.encode("utf-8", "surrogatepass"))
            except Refused as refused:
                await self._tell(refused.error)
            del message  # it may be large, and is in no account
        owner.cancel()

    def _take(self, message: bytes) -> None:
        """Puts a question in the line. Raises Refused."""
        if self._asked.full():
            raise Refused(
                429,
                f"{MOST_WAITING} requests wait on this connection already",
                "too_many_waiting",
            )
        account = self._gateway.registry.ledger.open()
        try:
            account.set(Entry.BODY, len(message))
        except LedgerFull as full:
            account.close()
            raise answers.no_room(full) from None
        self._asked.put_nowait((account, message))

    async def _answer(self, account: Account, message: bytes) -> None:
        """One turn."""
        try:
            relay = self._begin(account, message)
        except Refused as refused:
            account.close()
            await self._tell(refused.error)
            return
        except LedgerFull as full:
            account.close()
            await self._tell(answers.no_room(full).error)
            return
        except BaseException:
            account.close()
            raise
        self._gateway.registry.add(relay)
        subscriber = Subscriber(relay.run, START, self._client)
        with self._gateway.reading(relay, subscriber):
            relay.begin()
            await self._send_events(relay, subscriber)

    def _begin(self, account: Account, message: bytes) -> Relay:
        """A run for this message. Raises Refused and LedgerFull."""
        answers.check_welcome(self._gateway, self._request)
        question = answers.understand(self._request, RESPONSES, _body(message))
        return answers.new_relay(self._gateway, self._caller, account, question)

    # --- what is answered ---------------------------------------------------------------------

    async def _send_events(self, relay: Relay, subscriber: Subscriber) -> None:
        """Each event as one message, until the run is over."""
        run, client = relay.run, self._client
        flat = b""  # an error after which only `response.failed` counts, or nothing
        while True:
            try:
                block, end = run.window.read(subscriber.cursor)
            except CursorEvicted as evicted:
                reason = run.reason if run.released else f"read too slowly: {evicted}"
                block = run.error_block(str(reason), "stream_error", evicted.code)
                await self._send(SSE.data(SSE.split(block)[-1]))
                return
            for number, event in enumerate(SSE.split(block), subscriber.cursor.seq):
                said = RESPONSES.meaning(event)
                if number == 0 and said is Meaning.ERROR:
                    answer = answers.failure(relay)  # it never began, so it has a status
                    await self._send(_error(answer.status, answer.body))
                    return
                if said is Meaning.ERROR and RESPONSES.is_error_open(event):
                    flat = event
                elif said is Meaning.ERROR or not flat:
                    await self._send(SSE.data(event))
                    flat = b""
            if block:
                subscriber.cursor = end
                subscriber.outbound_bytes = client.outbound_bytes
                subscriber.on_progress()
            elif run.is_over:
                if flat:
                    await self._send(SSE.data(flat))
                run.delivered = True
                return
            else:
                await subscriber.wait()

    async def _send(self, data: bytes) -> None:
        """One message, at the pace of whoever reads it."""
        if data != b"[DONE]":
            await self.socket.send_str(data.decode("utf-8", "replace"))
            self._client.wrote(len(data))

    async def _tell(self, error: ErrorText) -> None:
        await self._send(_error(error.status, error_body(error)))


def _body(message: bytes) -> bytes:
    """The request that a message stands for. Raises Refused."""
    try:
        fields = _fields(message)
        kind = msgspec.json.decode(fields.pop("type", b"null"))
        whole = msgspec.json.decode(fields.pop("generate", b"true"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Refused(400, "a message is an object in JSON", "bad_request") from None
    if kind != "response.create":
        raise Refused(400, "the type of a message is response.create", "unknown_type", param="type")
    if whole is False:
        raise Refused(
            400,
            "generate: false is not known here: an upstream is asked for an answer or for nothing",
            "unsupported_value",
            param="generate",
        )
    fields.pop("background", None)
    return _encode(fields | {"stream": Raw(b"true")})


def _error(status: int, body: bytes) -> bytes:
    """A body of an error, with its status, as a message."""
    try:
        error = _fields(body)["error"]
    except (KeyError, msgspec.MsgspecError):
        error = Raw(_encode({"message": body.decode("utf-8", "replace"), "type": "upstream_error"}))
    return _encode({"type": "error", "status": status, "error": error})
