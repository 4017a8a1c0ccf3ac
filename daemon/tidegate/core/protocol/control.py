"""The request of the command line and the watchdog's reply: one JSON line each way."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from tidegate.core.decoding import Decoder


class ControlRequest(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One line from `tidegate status`, `runs`, `recycle`, `stop` and the other asking verbs.

    What stands at its default is not sent, so that a watchdog of before understands the rest.
    """

    verb: str
    wait: bool = True  # recycle, upgrade: until the former worker is gone; stop: until it is over
    finished: bool = False  # sweep: finished runs too
    all: bool = False  # runs: those that only the journal or the history knows, too
    by: str = "token"  # usage: one of `core.records.usage.GROUPS`
    since_s: float = 7 * 86400.0  # usage: how far back
    run: str | None = None  # forget: which; None: all
    to: str | None = None  # notify-test: which receiver; None: every one


class TestedReceiver(Struct, frozen=True, kw_only=True):
    """What one receiver answered to a test: `notify-test` gives `receivers`, a list of them."""

    name: str
    ok: bool
    answer: str  # without a part of its address


class ControlReply(Struct, frozen=True, kw_only=True):
    """The one line that answers."""

    ok: bool
    error: str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")


_request = Decoder(ControlRequest)
_reply = Decoder(ControlReply)


def decode_request(line: bytes) -> ControlRequest:
    """Decode a line that the command line sent. Raises Undecodable."""
    return _request.decode(line)


def decode_reply(line: bytes) -> ControlReply:
    """Decode a line that the watchdog answered. Raises Undecodable."""
    return _reply.decode(line)
