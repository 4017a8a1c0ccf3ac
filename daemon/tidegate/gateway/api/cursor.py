"""Where in a run a reader starts, and reading on from there."""

from __future__ import annotations

from tidegate.core.errors import CursorEvicted
from tidegate.core.formats.framing import SSE
from tidegate.core.runs.window import Cursor
from tidegate.gateway import web
from tidegate.gateway.api.heads import stream_head
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import StreamSubscriber
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.writer import AlreadySent, ResponseWriter

_MAX_SEQ = 2**53


async def follow(
    gateway: Gateway, relay: Relay, client: ResponseWriter, cursor: Cursor, *, ids: bool
) -> web.StreamResponse:
    """Send a run to its end from `cursor` on."""
    framing = SSE if ids else relay.run.format.framing
    head = stream_head(
        relay.run.id,
        framing,
        http10=client.http10,
        closes=client.closes,
        fields=client.fields,
    )
    subscriber = StreamSubscriber(relay.run, client, head, cursor=cursor, ids=ids)
    with gateway.reading(relay, subscriber):
        subscriber.commit()
        await subscriber.serve()
    return AlreadySent(close=client.closes)


def starting_after(request: web.BaseRequest) -> int:
    """Read the last seq that the client has; -1 for none. Raises Refused: 400."""
    text = request.query.get("starting_after") or request.headers.get("Last-Event-ID") or "-1"
    return -1 if text == "-1" else whole_number(text, "starting_after")


def whole_number(text: str, name: str) -> int:
    """Read a number of a query. Raises Refused: 400."""
    if not (text.isascii() and text.isdigit() and int(text[:17]) < _MAX_SEQ and len(text) < 17):
        raise Refused(400, f"{name} is a whole number", "bad_number", param=name)
    return int(text)


def cursor_after(relay: Relay, after: int) -> Cursor:
    """Find where reading starts. Raises Refused: 400 in the future, 410 when it is gone.

    One that is over and kept without its text has no beginning that could be read.
    """
    run = relay.run
    if not run.request.streamed:
        raise Refused(400, "this run is not a stream: its answer comes in one piece", "no_stream")
    window = run.window
    if after >= window.next_seq:
        raise Refused(
            400, f"there is no event {after} yet; the next one is {window.next_seq}", "cursor_ahead"
        )
    if after < 0 and run.is_over and window.first_seq == window.next_seq > 0:
        raise Refused(410, "no event of this answer is kept any more", CursorEvicted.code)
    try:
        return window.cursor(after + 1 if after >= 0 else window.first_seq)
    except CursorEvicted as evicted:
        raise Refused(410, str(evicted), evicted.code, param="starting_after") from None
