"""Responses over WebSocket: one connection, one answer after another.

Each `response.create` message is a request, and begins a run like any other; each of its events is
one message. Answers are given in the order in which they were asked for, one at a time. When the
socket goes, so does the reader of the run under way, with all that follows from that.

The connection remembers its last request and answer, as OpenAI's servers do, so that the next
request may name the answer and bring new input alone, whatever its upstream keeps. That memory is
the client's to make anew, so it is the first to go when memory is short.

Errors are told as OpenAI's servers do: what never began as `{"type": "error", "status", "error"}`,
what broke off in the middle by `response.failed`. The connection outlives both, so either is the
one last message of its answer: who stopped at the first of two took the second for the next one's.
Their codes are text whatever an upstream sends, for Codex reads no others.
Facts: https://developers.openai.com/api/docs/guides/websocket-mode, openai-python, and Codex's
`codex-api/src/endpoint/responses_websocket.rs`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import msgspec
from aiohttp import web
from msgspec import Raw

from tidegate.core.errors import CursorEvicted, LedgerFull
from tidegate.core.formats import RESPONSES, conversation
from tidegate.core.formats.base import About, ErrorText, Meaning
from tidegate.core.formats.conversation import Exchange, Message
from tidegate.core.formats.foreign_json import Unreadable, as_object, as_utf8, members_of
from tidegate.core.formats.framing import SSE
from tidegate.core.formats.openai import error_body
from tidegate.core.formats.responses import bare_response
from tidegate.core.http.frames import CloseCode, Frame, Opcode
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.window import START, Cursor
from tidegate.gateway.api import create
from tidegate.gateway.api.heads import failure, no_room
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import Subscriber
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.ids import new_id
from tidegate.gateway.server.websocket import WRITE_BYTES, SocketEnded, WebSocket, text_frame
from tidegate.gateway.server.writer import Written

# Questions that may wait behind the one that is being answered: a client asks when it has its
# answer, so even one is rare. Each is in the ledger.
MOST_WAITING = 8
LOOK_S = 0.5  # how soon a connection that asks nothing learns that it is to go elsewhere

_encode = msgspec.json.encode
_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


async def converse_responses(
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
    dialogue = _Dialogue(gateway, request, caller)
    try:
        dialogue.open()
        await dialogue.serve()
    finally:
        dialogue.drop()
    return Written(close=True)


class _Dialogue:
    """One WebSocket, what was asked on it, and what its next question may go on from."""

    def __init__(self, gateway: Gateway, request: web.BaseRequest, caller: Caller) -> None:
        self._gateway = gateway
        self._request = request
        self._caller = caller
        max_bytes = gateway.settings.limits.max_body_bytes
        self._socket = WebSocket(gateway, request, caller.owner, max_bytes)
        self._socket.forget = self._forget
        self._asked: asyncio.Queue[bytes] = asyncio.Queue(MOST_WAITING)
        self._waiting_bytes = 0
        self._kept: Exchange | None = None  # the last one, which may be under way
        self._kept_s = 0.0  # since when it is whole
        self._relay: Relay | None = None  # of the answer under way
        self._listener: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Shakes hands; from then on whoever opened it is cancelled when the client leaves."""
        self._socket.open()
        owner = asyncio.current_task()
        assert owner is not None
        self._listener = asyncio.create_task(self._listen(owner))

    def drop(self) -> None:
        """Leaves nothing behind."""
        listener, self._listener = self._listener, None  # how it ended holds us
        if listener is not None:
            listener.cancel()
        self._socket.drop()

    async def serve(self) -> None:
        """Answers until the client goes, or until this generation takes nothing new."""
        while not self._gateway.server.draining:
            relay = await self._next()
            if relay is not None:
                await self._answer(relay)
        assert self._listener is not None
        self._listener.cancel()
        with suppress(asyncio.CancelledError):
            await self._listener
        await self._socket.close(CloseCode.GOING_AWAY, "draining; connect again")

    # --- what is asked ------------------------------------------------------------------------

    async def _listen(self, owner: asyncio.Task[object]) -> None:
        """Takes what is asked. Pings are answered, and a close is seen, while it waits."""
        socket = self._socket
        with suppress(ConnectionError):
            try:
                while True:
                    error = self._take(await socket.receive())
                    if error is not None:
                        await self._tell(error)
            except SocketEnded as ended:
                if ended.error is not None:
                    await self._tell(ended.error)
                await socket.close(ended.code, ended.reason)
        owner.cancel()

    def _take(self, frame: Frame) -> ErrorText | None:
        """Puts a question in the line, or says why not.

        Its bytes are in no exception, whose traceback would hold them while the client is told.
        """
        if frame.opcode is not Opcode.TEXT:
            return Refused(400, "a message is a text of JSON", "bad_request").error
        if self._asked.full():
            message = f"{MOST_WAITING} requests wait on this connection already"
            return Refused(429, message, "too_many_waiting").error
        self._waiting_bytes += len(frame.data)
        try:
            self._charge()
        except LedgerFull as full:
            self._waiting_bytes -= len(frame.data)
            self._charge_kept()
            return no_room(full).error
        self._asked.put_nowait(frame.data)
        return None

    def _charge(self) -> None:
        """What waits and what is kept, but for the body that the run has. Raises LedgerFull."""
        held_bytes = self._waiting_bytes
        if self._kept is not None:
            held_bytes += self._kept.held_bytes - (len(self._kept.body) if self._is_needed else 0)
        self._socket.account.set(Entry.BODY, held_bytes)

    @property
    def _is_needed(self) -> bool:
        """Whether an attempt may still need what is kept, which is then the run's."""
        return self._relay is not None and bool(self._relay.run.body)

    async def _next(self) -> Relay | None:
        """The run of the next question; None when there is none yet, or it has been answered."""
        try:
            async with asyncio.timeout(LOOK_S):
                message = await self._asked.get()
        except TimeoutError:
            self._forget_old()
            return None
        begun = self._begin(message)
        del message
        if isinstance(begun, bytes):
            self._socket.write(begun)
            await self._socket.drained()
            return None
        return begun

    async def _answer(self, relay: Relay) -> None:
        """One turn."""
        self._gateway.registry.add(relay)
        subscriber = Subscriber(relay.run, START, self._socket.client)
        self._socket.reader = subscriber
        try:
            with self._gateway.reading(relay, subscriber):
                relay.begin()
                await self._send_events(relay, subscriber)
        finally:
            self._relay = self._socket.reader = None
            self._socket.count_outbound()
            if self._kept is not None and self._kept.response_id is None:
                self._forget()  # it came to nothing

    def _begin(self, message: bytes) -> Relay | bytes:
        """A run for this message, or the frames that answer it."""
        self._waiting_bytes -= len(message)
        self._charge_kept()
        try:
            return self._new_relay(message)
        except Refused as refused:
            error = refused.error
        except LedgerFull as full:
            error = no_room(full).error
        finally:
            self._charge_kept()
        return text_frame(_error(error.status, error_body(error)))

    def _new_relay(self, message: bytes) -> Relay | bytes:
        """The same. Raises Refused and LedgerFull."""
        try:
            said = conversation.read(message)
            if said.type == "response.processed":  # Codex says what it has had
                return b""
            if said.type != "response.create":
                raise Refused(
                    400, "the type of a message is response.create", "unknown_type", param="type"
                )
            create.check_welcome(self._gateway, self._request)
            former = self._former(said)
            exchange = conversation.request(said.fields, former)
        except ValueError as error:
            raise Refused(400, str(error), "bad_request") from None
        limits = self._gateway.settings.limits
        if len(exchange.body) > limits.max_body_bytes:
            raise Refused(
                413,
                f"with what it goes on from the request is larger than {limits.max_body_bytes}"
                " bytes (limits.max_body); begin anew with less, or raise that limit",
                "body_too_large",
            )
        question = create.understand(self._request, RESPONSES, exchange.body)
        if not said.generates:
            return self._remember(exchange, question.wanted.model)
        if said.previous is not None and former is None:
            exchange.start = 0  # only its upstream knows what it goes on from
        account = self._gateway.registry.ledger.open()
        try:
            relay = create.new_relay(self._gateway, self._caller, account, question)
        except BaseException:
            account.close()
            raise
        self._relay, self._kept = relay, exchange
        return relay

    def _former(self, said: Message) -> Exchange | None:
        """What the request goes on from, if it is known here. Raises Refused.

        Otherwise its upstream may know it, where it keeps responses and the client lets it.
        """
        kept = self._kept
        if said.previous is None:
            return None
        if kept is not None and kept.response_id == said.previous:
            return kept
        if said.stores and said.generates:
            return None
        raise Refused(
            400,
            "the response that previous_response_id names is not kept on this connection:"
            " send the whole input",
            "previous_response_not_found",
            param="previous_response_id",
        )

    # --- what is kept -------------------------------------------------------------------------

    def _charge_kept(self) -> None:
        """Charges what has grown, or lets go of it where there is no room, or no use for it."""
        if self._kept is not None and not self._kept.start:
            self._forget()
        try:
            self._charge()
        except LedgerFull:
            self._forget()

    def _forget(self) -> None:
        """Drops what the client can send again, unless an attempt may still need it."""
        if self._kept is not None and not self._is_needed:
            self._kept.drop()
            self._kept = None
            self._charge()

    def _forget_old(self) -> None:
        keep_s = self._gateway.settings.limits.keep_finished_s
        if self._kept is not None and self._gateway.loop.time() - self._kept_s >= keep_s:
            self._forget()

    def _remember(self, exchange: Exchange, model: str) -> bytes:
        """The answer to a request that is only to be remembered. Raises Refused."""
        self._gateway.catalog.route(model)
        exchange.response_id = new_id("resp")
        self._kept, self._kept_s = exchange, self._gateway.loop.time()
        about = About(b"", exchange.response_id, model, time.time())
        begun = bare_response(about, "in_progress")
        done = bare_response(about, "completed") | {"usage": _NO_USAGE}
        events = (("response.created", begun), ("response.completed", done))
        return b"".join(
            text_frame(_encode({"type": kind, "sequence_number": number, "response": response}))
            for number, (kind, response) in enumerate(events)
        )

    # --- what is answered ---------------------------------------------------------------------

    async def _send_events(self, relay: Relay, subscriber: Subscriber) -> None:
        """Each event as one message, at the pace of the client, until the run is over."""
        run, socket = relay.run, self._socket
        telling = _Telling(relay, self._kept)
        while True:
            try:
                frames, subscriber.cursor = telling.read(subscriber.cursor)
            except CursorEvicted as evicted:
                reason = run.reason if run.released else f"read too slowly: {evicted}"
                block = run.error_block(str(reason), "stream_error", evicted.code)
                await socket.send(SSE.data(SSE.split(block)[-1]))
                return
            if frames:
                keeps_up = socket.write(frames)
                del frames  # they may be waited with for long: they would be in no account
                self._charge_kept()
                subscriber.on_progress()
                if not keeps_up:
                    await socket.drained()
            if telling.is_over:
                break
            if subscriber.cursor == run.window.end:
                if run.is_over:
                    break
                await subscriber.wait()
        if (flat := telling.rest()) is not None:
            await socket.send(flat)
        self._kept_s = self._gateway.loop.time()
        run.delivered = True

    async def _tell(self, error: ErrorText) -> None:
        await self._socket.send(_error(error.status, error_body(error)))


class _Telling:
    """Makes messages of a run's events, and takes note of what the answer holds."""

    def __init__(self, relay: Relay, exchange: Exchange | None) -> None:
        self.is_over = False  # an error has been told that nothing follows
        self._relay = relay
        self._exchange = exchange
        self._flat = b""  # an error after which only `response.failed` counts, or nothing

    def read(self, cursor: Cursor) -> tuple[bytes, Cursor]:
        """The next events as frames, and where the reader stands behind them.

        Raises CursorEvicted.
        """
        block, _ = self._relay.run.window.read(cursor)
        frames: list[bytes] = []
        size = 0
        for event in SSE.split(block):
            data = self._take(event, cursor.seq)
            cursor = Cursor(cursor.seq + 1, cursor.offset + len(event))
            if data is not None:
                frames.append(text_frame(data))
                size += len(data)
            if self.is_over or size >= WRITE_BYTES:
                break
        return b"".join(frames), cursor

    def rest(self) -> bytes | None:
        """What is left to say when the run is over."""
        if not self._flat:
            return None
        told = RESPONSES.told_error(self._flat)
        return _error(told.status, told.body)

    def _take(self, event: bytes, seq: int) -> bytes | None:
        said = RESPONSES.meaning(event)
        if said is Meaning.ERROR and not seq:
            self.is_over = True
            answer = failure(self._relay)  # it never began, so it has a status
            return _error(answer.status, answer.body)
        if said is Meaning.ERROR and RESPONSES.is_error_open(event):
            self._flat = event
            return None
        if said is not Meaning.ERROR and self._flat:
            return None
        self._flat = b""
        data = SSE.data(event)
        if said is Meaning.ERROR:
            return _with_text_code(data)
        exchange = self._exchange
        if exchange is not None and exchange.start:
            exchange.add_item(event)
            name = RESPONSES.response_id(data) if said is Meaning.DONE else None
            if name is not None:
                exchange.finish(name, event)
        return None if data == b"[DONE]" else data


def _error(status: int, body: bytes) -> bytes:
    """A body of an error, with its status, as a message."""
    body = as_utf8(body)
    try:
        error = members_of(body)["error"]
        error = Raw(as_object(_texts(members_of(error))))
    except (KeyError, Unreadable):
        said = {"message": body.decode(), "type": "upstream_error", "code": None}
        error = Raw(_encode(said))
    return _encode({"type": "error", "status": status, "error": error})


def _with_text_code(data: bytes) -> bytes:
    """`response.failed`, with the code of its error as text."""
    try:
        event = members_of(data)
        response = members_of(event["response"])
        response["error"] = Raw(as_object(_texts(members_of(response["error"]))))
    except (KeyError, Unreadable):
        return data
    event["response"] = Raw(as_object(response))
    return as_object(event)


def _texts(error: dict[str, Raw]) -> dict[str, Raw]:
    """The members of an error; clients take no other kind than text for these."""
    for name in ("code", "message", "type"):
        value = bytes(error.get(name, Raw(b"null")))
        if value != b"null" and not value.startswith(b'"'):
            error[name] = Raw(_encode(value.decode()))
    return error
