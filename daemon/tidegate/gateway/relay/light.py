"""A light answer: one that is expected to come whole, in one read, and mostly does.

A request to one healthy upstream with a free slot and an idle connection needs no run, relay or
subscriber while nothing is known of its answer. Is the answer whole and plainly good at once, it is
written, and kept as a tuple of values (`LightAnswers`). Anything else *promotes* it: an odd answer,
a second read, a lost connection, a client that leaves, a second of age, a look at the runs. Then a
run and its relay are made, as for any other request, and hear the same bytes, so that every ending
stays in one place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from tidegate.core.errors import EventTooLarge
from tidegate.core.formats import RESPONSES
from tidegate.core.formats.base import (
    OUTPUT,
    TAIL_EVENTS,
    Format,
    Meaning,
    Piece,
    may_say,
    may_say_any,
)
from tidegate.core.formats.foreign_json import BOM, is_json
from tidegate.core.formats.framing import RAW
from tidegate.core.runs.transcript import TROUBLE
from tidegate.core.secret import NO_SECRET, Secret
from tidegate.core.settings import Limits
from tidegate.gateway.relay.attempt import Attempt
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.request import ParsedRequest
from tidegate.gateway.upstreams.choice import Target
from tidegate.gateway.upstreams.connection import UpstreamConnection
from tidegate.gateway.upstreams.reply import Answer, Reply

MOST_AGE_S = 1.0  # a run is made for what takes longer; no limit that is longer than twice this is
_KEEP_ALIVE, _ERROR, _DONE = Meaning.KEEP_ALIVE, Meaning.ERROR, Meaning.DONE
_LEAST_LIMIT_S = 2 * MOST_AGE_S  # missed by that


class LightHost(Protocol):
    """Who began a light answer, and sends it."""

    def send_stream(self, light: LightRun, block: bytes, events: int) -> None:
        """Send a whole stream of events, and keep it for later readers."""

    def send_plain(self, light: LightRun, answer: Answer) -> None:
        """Send an answer in one piece."""

    def promote(self, light: LightRun) -> Relay:
        """Make a run and its relay for it, with the client as its reader."""


class LightRun:
    """A request that an upstream was sent, and no run so far. Times are the event loop's."""

    __slots__ = (
        "_connection", "_held", "_host", "_is_sent", "_relay", "asked_s", "client", "created",
        "is_over", "owner", "parsed", "reply", "targets",
    )  # fmt: skip

    def __init__(
        self,
        host: LightHost,
        connection: UpstreamConnection,
        parsed: ParsedRequest,
        targets: list[Target],
        *,
        client: object,
        owner: str,
        now_s: float,
    ) -> None:
        """Use a connection of the first target, where a slot has been taken."""
        self.client = client  # the host's
        self.owner = owner
        self.parsed = parsed
        self.targets = targets
        self.asked_s = now_s
        self.created = time.time()
        self.is_over = False  # answered, or promoted
        self._host = host
        self._connection = connection
        self.reply = Reply()  # the head that came
        self._held = b""  # of an answer in one piece
        self._is_sent = False
        self._relay: Relay | None = None  # once it is promoted

    @property
    def held_bytes(self) -> int:
        """The memory of its body: as it came, and as it is being sent."""
        return 2 * len(self.parsed.body)

    @property
    def target(self) -> Target:
        """Where it was sent."""
        return self.targets[0]

    def send(self, head: bytes, body: Sequence[Piece]) -> None:
        """Send the request."""
        self._connection.send(head, self, body, self._on_sent)

    def _on_sent(self) -> None:
        self._is_sent = True
        if self._relay is not None:
            self._relay.run.sent()

    # --- the upstream answers -------------------------------------------------------------------

    def on_head(self, status: int, headers: dict[str, str]) -> None:
        self.reply = reply = Reply(status, headers)
        is_stream = self.parsed.info.stream
        framing = self.parsed.form.framing
        expected = framing.takes(reply.content_type) if is_stream else "json" in reply.content_type
        if status != 200 or not expected or reply.is_compressed:
            self.promote()

    def on_body(self, data: bytes) -> None:
        if not self.parsed.info.stream and not self._held:
            self._held = data
            return
        form, info, secret = self.parsed.form, self.parsed.info, self.target.pool.secret
        events = whole_events(form, data, secret) if info.stream else 0
        if events:
            self._finish_stream(data, events)
        else:
            self.promote().on_body(data)

    def on_end(self) -> None:
        held = self._held
        # What says "error" nowhere reports none, so that the kind of an answer is all there is to
        # check of it; here that is JSON.
        is_odd = self.parsed.info.stream or may_say_any(TROUBLE, held)
        if is_odd or not is_json(held.removeprefix(BOM)):
            self.promote(is_connected=False).on_end()
            return
        reply, secret = self.reply, self.target.pool.secret
        if secret:
            reply = Reply(reply.status, secret.hide_values(dict(reply.headers)))
        self.is_over = True
        self._leave(is_plain=True)
        self._host.send_plain(self, reply.pass_on(held))

    def client_left(self) -> None:
        """Take note that the client is gone; whether its answer goes on, the run's clocks say."""
        self.promote()

    def on_lost(self, reason: str, *, answered: bool) -> None:
        self.promote(is_connected=False).on_lost(reason, answered=answered)

    def _finish_stream(self, block: bytes, events: int) -> None:
        """Send the answer, which is whole, and let go of its upstream."""
        self.is_over = True
        self._host.send_stream(self, block, events)
        self._connection.let_go()
        self._leave(is_plain=False)

    def _leave(self, *, is_plain: bool) -> None:
        """Give the slot back, and tell the upstream's health of the whole answer."""
        pool, model = self.target.pool, self.target.model
        pool.succeeded(model, is_plain=is_plain)
        pool.release_slot()

    # --- what it becomes ------------------------------------------------------------------------

    def promote(self, *, is_connected: bool = True) -> Attempt:
        """Go on as any other request; returns what hears the upstream from now on.

        What came so far is told again. `is_connected`: the connection is still this request's.
        """
        self.is_over = True
        self._relay = relay = self._host.promote(self)
        if not self._is_sent:
            relay.run.sending(self.held_bytes)
        assert relay.failover is not None, "the run has just begun"
        attempt = relay.failover.go_on(self.target, self._connection, self.asked_s)
        if is_connected:
            self._connection.pass_to(attempt)
        if self.reply.status:
            attempt.on_head(self.reply.status, dict(self.reply.headers))
        if self._held:
            attempt.on_body(self._held)
        return attempt


def whole_events(form: Format, data: bytes, secret: Secret = NO_SECRET) -> int:
    """Count the events of a stream that is whole and says nothing odd; 0 for any other.

    An upstream that reports an error may repeat `secret`, which a run hides.
    """
    framer = form.framing.framer()
    try:
        block, events = framer.feed(data)
    except EventTooLarge:
        return 0
    if block != data or not form.may_end(data):
        return 0
    if secret and may_say_any(TROUBLE, data):
        return 0
    if form.whole_events(data, events, framer.payloads) != events:
        return 0
    for event in form.framing.each(data):  # what says nothing before the answer may be left out
        said = form.meaning(event)
        if said in OUTPUT:
            break
        if said is _KEEP_ALIVE or said is _ERROR:
            return 0
    tail = framer.payloads[-TAIL_EVENTS:] or form.framing.last(data, TAIL_EVENTS)
    if may_say(b"error", b"".join(tail)):
        said = form.verdict(form.framing.last(data, TAIL_EVENTS))
    else:
        said = form.meaning(form.framing.last(data, 1)[0])
    return events if said is _DONE else 0


def may_be_light(parsed: ParsedRequest, targets: list[Target], now_s: float) -> bool:
    """Say whether a request may begin without a run: an ordinary one, to a free upstream in order.

    Its answer needs nothing but to be passed on, and no limit is so short that it could be missed.
    """
    form, _, info, _, _ = parsed
    pool, model, limits, *_ = targets[0]
    is_plain_request = not (info.keep_running or form is RESPONSES or form.framing is RAW)
    is_passed_on = form.choices == 1 and not (info.stream and pool.upstream.ask_usage)
    return (
        is_plain_request
        and is_passed_on
        and pool.is_free
        and pool.health.is_in_order(model, now_s)
        and _shortest_s(limits) >= _LEAST_LIMIT_S
    )


def _shortest_s(limits: Limits) -> float:
    return min(
        limits.first_output_s,
        limits.idle_s,
        limits.total_s,
        limits.hold_s,
        limits.keepalive_s,
        limits.stall_s,
        limits.plain_s or _LEAST_LIMIT_S,
    )
