"""Responses over WebSocket: one connection, one answer after another.

Each `response.create` message is a request, and begins a run like any other; each of its events is
one message. Answers are given in the order in which they were asked for, one at a time. When the
socket goes, so does the reader of the run under way, with all that follows from that.

The connection remembers its last request and answer, as OpenAI's servers do, so that the next
request may name the answer and bring new input alone, whatever its upstream keeps. That memory is
the client's to make anew, so it is the first to go when memory is short.

How events and errors are told is in `response_messages`.
Facts: https://developers.openai.com/api/docs/guides/websocket-mode, openai-python, and Codex's
`codex-api/src/endpoint/responses_websocket.rs`.
"""

from __future__ import annotations

import asyncio

from tidegate.core.errors import CursorEvicted, LedgerFull
from tidegate.core.formats import RESPONSES, conversation
from tidegate.core.formats.base import ErrorText
from tidegate.core.formats.conversation import ClientEvent, Turn
from tidegate.core.formats.framing import SSE
from tidegate.core.http.frames import CloseCode, Frame, Opcode
from tidegate.core.runs.ledger import Entry
from tidegate.core.runs.window import START
from tidegate.gateway import web
from tidegate.gateway.api import create
from tidegate.gateway.api.heads import no_room
from tidegate.gateway.api.response_messages import AnswerMessages, error_message, remembered
from tidegate.gateway.api.websocket_session import WebSocketSession
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import Subscriber
from tidegate.gateway.server.auth import Access, Caller
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.ids import new_id
from tidegate.gateway.server.websocket import text_frame
from tidegate.gateway.server.writer import AlreadySent

# Requests that may wait behind the one that is being answered: a client sends one when it has its
# answer, so even one is rare. Each is in the ledger.
MOST_WAITING = 8
LOOK_S = 0.5  # how soon a connection without requests learns that it is to go elsewhere


async def converse_responses(
    gateway: Gateway, request: web.BaseRequest, caller: Caller
) -> web.StreamResponse:
    """Serve `GET /v1/responses` as a WebSocket."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Refused(
            405,
            "only POST here, or GET as a WebSocket (Upgrade: websocket)",
            "bad_method",
            headers={"Allow": "POST"},
        )
    with _Dialogue(gateway, request, caller) as dialogue:
        dialogue.open()
        await dialogue.serve()
    return AlreadySent(close=True)


class _Dialogue(WebSocketSession):
    """One WebSocket, what was asked on it, and what its next request may go on from."""

    def __init__(self, gateway: Gateway, request: web.BaseRequest, caller: Caller) -> None:
        super().__init__(gateway, request, caller, gateway.settings.limits.max_body_bytes)
        self.socket.forget = self._forget
        self._gateway = gateway
        self._request = request
        self._asked: asyncio.Queue[bytes] = asyncio.Queue(MOST_WAITING)
        self._waiting_bytes = 0
        self._kept: Turn | None = None  # the last one, which may be under way
        self._kept_s = 0.0  # since when it is whole
        self._relay: Relay | None = None  # of the answer under way

    async def serve(self) -> None:
        """Answer until the client goes, or until this generation takes nothing new."""
        while not self._gateway.server.draining:
            relay = await self._next()
            if relay is not None:
                await self._answer(relay)
        await self.close(CloseCode.GOING_AWAY, "draining; connect again")

    # --- what is asked ------------------------------------------------------------------------

    def on_message(self, frame: Frame) -> ErrorText | None:
        """Queue a request, or say why not."""
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

    async def send_error(self, error: ErrorText) -> None:
        """Tell the client as OpenAI's servers do. Raises ConnectionError."""
        await self.socket.send(error_message(error))

    def _charge(self) -> None:
        """Charge what waits and is kept, but for the body that the run has. Raises LedgerFull."""
        held_bytes = self._waiting_bytes
        if self._kept is not None:
            held_bytes += self._kept.held_bytes - (len(self._kept.body) if self._is_needed else 0)
        self.socket.account.set(Entry.BODY, held_bytes)

    @property
    def _is_needed(self) -> bool:
        """Whether an attempt may still need what is kept, which is then the run's."""
        return self._relay is not None and bool(self._relay.run.body)

    async def _next(self) -> Relay | None:
        """Begin a run for the next request; None if there is none yet, or it has been answered."""
        try:
            async with asyncio.timeout(LOOK_S):
                message = await self._asked.get()
        except TimeoutError:
            self._forget_old()
            return None
        begun = self._begin(message)
        del message
        if isinstance(begun, bytes):
            self.socket.write(begun)
            await self.socket.drained()
            return None
        return begun

    async def _answer(self, relay: Relay) -> None:
        """Serve one turn: a run from its first event to its last."""
        self._gateway.registry.add(relay)
        subscriber = Subscriber(relay.run, START, self.socket.client)
        self.socket.reader = subscriber
        try:
            with self._gateway.reading(relay, subscriber):
                relay.begin()
                await self._send_events(relay, subscriber)
        finally:
            self._relay = self.socket.reader = None
            self.socket.count_outbound()
            if self._kept is not None and self._kept.response_id is None:
                self._forget()  # it came to nothing

    def _begin(self, message: bytes) -> Relay | bytes:
        """Make a run for this message, or the frames that answer it."""
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
        return text_frame(error_message(error))

    def _new_relay(self, message: bytes) -> Relay | bytes:
        """Make a run for this message, or answer it. Raises Refused and LedgerFull."""
        try:
            asked = conversation.read(message)
            if asked.type == "response.processed":  # Codex says what it has had
                return b""
            if asked.type != "response.create":
                raise Refused(
                    400, "the type of a message is response.create", "unknown_type", param="type"
                )
            # Anew: it may have been revoked since.
            owner = self._gateway.authenticate(self._request, Access.USE).owner
            create.check_welcome(self._gateway, self._request.headers)
            former = self._former(asked)
            turn = conversation.request(asked.fields, former)
        except ValueError as error:
            raise Refused(400, str(error), "bad_request") from None
        limits = self._gateway.settings.limits
        if len(turn.body) > limits.max_body_bytes:
            raise Refused(
                413,
                f"with what it goes on from the request is larger than {limits.max_body_bytes}"
                " bytes (limits.max_body); begin anew with less, or raise that limit",
                "body_too_large",
            )
        facts = create.read_facts(self._request.headers, RESPONSES)
        parsed = create.parse_request(facts, RESPONSES, turn.body, self._request.remote)
        if not asked.generates:
            return self._remember(turn, parsed.info.model)
        if asked.previous is not None and former is None:
            turn.start = 0  # only its upstream knows what it goes on from
        account = self._gateway.registry.ledger.open()
        try:
            targets = self._gateway.catalog.route(parsed.info.model)
            relay = create.new_relay(self._gateway, owner, parsed, targets, account=account)
        except BaseException:
            account.close()
            raise
        self._relay, self._kept = relay, turn
        return relay

    def _former(self, asked: ClientEvent) -> Turn | None:
        """Return what the request goes on from, if it is known here. Raises Refused.

        Otherwise its upstream may know it, where it keeps responses and the client lets it.
        """
        kept = self._kept
        if asked.previous is None:
            return None
        if kept is not None and kept.response_id == asked.previous:
            return kept
        if asked.stores and asked.generates:
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
        """Charge what has grown, or let go of it where there is no room, or no use for it."""
        if self._kept is not None and not self._kept.start:
            self._forget()
        try:
            self._charge()
        except LedgerFull:
            self._forget()

    def _forget(self) -> None:
        """Drop what the client can send again, unless an attempt may still need it."""
        if self._kept is not None and not self._is_needed:
            self._kept.drop()
            self._kept = None
            self._charge()

    def _forget_old(self) -> None:
        keep_s = self._gateway.settings.limits.keep_finished_s
        if self._kept is not None and self._gateway.loop.time() - self._kept_s >= keep_s:
            self._forget()

    def _remember(self, turn: Turn, model: str) -> bytes:
        """Keep a request that generates nothing, and return its answer. Raises Refused."""
        self._gateway.catalog.route(model)
        turn.response_id = new_id("resp")
        self._kept, self._kept_s = turn, self._gateway.loop.time()
        return remembered(turn.response_id, model)

    # --- what is answered ---------------------------------------------------------------------

    async def _send_events(self, relay: Relay, subscriber: Subscriber) -> None:
        """Send each event as one message, at the pace of the client, until the run is over."""
        run, socket = relay.run, self.socket
        messages = AnswerMessages(relay, self._kept)
        while True:
            try:
                frames, subscriber.cursor = messages.read(subscriber.cursor)
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
            if messages.is_over:
                break
            if subscriber.cursor == run.window.end:
                if run.is_over:
                    break
                await subscriber.wait()
        if (flat := messages.rest()) is not None:
            await socket.send(flat)
        self._kept_s = self._gateway.loop.time()
        run.delivered = True
