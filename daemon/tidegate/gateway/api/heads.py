"""How an answer begins on the wire: its head, and the status of one that failed."""

from __future__ import annotations

import re
from http import HTTPStatus

from tidegate.core.errors import LedgerFull
from tidegate.core.formats.framing import Framing
from tidegate.core.runs.state import RunState
from tidegate.gateway.relay.relay import Relay
from tidegate.gateway.relay.subscriber import stream_headers
from tidegate.gateway.server.connection_table import KEEPALIVE_S
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.writer import ResponseWriter
from tidegate.gateway.upstreams.reply import Answer

RETRY_AFTER_S = 5
_BUSY = frozenset({"memory_limit", "queue_full", "queue_s"})
# Asking again does not help before the config has been changed.
_NO_USE = frozenset({"upstream_key_refused", "upstream_model_missing"})
_STATUS_IN_CODE = re.compile(r"upstream_([45][0-9]{2})")
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_UNKNOWN = "Unknown"  # 529, say
_CLOSE = "Connection: close\r\n"
_KEEP = f"Keep-Alive: timeout={KEEPALIVE_S:.0f}\r\n"


def raw_head(relay: Relay, client: ResponseWriter) -> tuple[bytes, bool]:
    """Make the head of an answer that passes as it comes; say whether it announces chunks."""
    head = relay.raw_head
    has_length = any(name == "content-length" for name, _ in head.headers)
    is_chunked = not (client.http10 or has_length)
    chunks = (("Transfer-Encoding", "chunked"),) if is_chunked else ()
    answer = head._replace(headers=(*head.headers, *chunks))
    head_bytes = answer_head(relay.run.id, answer, closes=client.closes, fields=client.fields)
    return head_bytes, is_chunked


def answer_head(run_id: str, answer: Answer, *, closes: bool = False, fields: str = "") -> bytes:
    """Make the head of an answer in one piece; `fields` are whole lines that it has besides."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
    return (
        f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, _UNKNOWN)}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"{_ids(run_id)}{lines}{fields}{_CLOSE if closes else _KEEP}\r\n"
    ).encode("latin-1")


def stream_head(
    run_id: str,
    framing: Framing,
    *,
    http10: bool = False,
    closes: bool = False,
    fields: str = "",
) -> bytes:
    """Make the head of a stream of events; `fields` are whole lines that it has besides."""
    chunks = "" if http10 else "Transfer-Encoding: chunked\r\n"
    ending = _CLOSE if closes else _KEEP
    lines = f"{stream_headers(framing)}{chunks}{ending}{_ids(run_id)}{fields}"
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode("ascii")


def _ids(run_id: str) -> str:
    """Name the run; its id is its request's too, so that a log line with the one has the other."""
    return f"x-run-id: {run_id}\r\nx-request-id: {run_id}\r\nrequest-id: {run_id}\r\n"


def failure(relay: Relay) -> Answer:
    """Tell why there is no answer, for a creator that has not been sent any of it."""
    run = relay.run
    if relay.answer is not None:
        return relay.answer
    error = run.error()
    headers: tuple[tuple[str, str], ...] = ()
    if error.code in _BUSY:
        error = error._replace(status=503)
        headers = (("Retry-After", str(RETRY_AFTER_S)),)
    elif found := _STATUS_IN_CODE.fullmatch(run.error_code or ""):
        error = error._replace(status=int(found[1]))
    elif run.state is RunState.CANCELLED or run.error_code in _NO_USE:
        headers = (("x-should-retry", "false"),)
    return Answer(error.status, "application/json", run.format.error_body(error), headers)


def no_room(full: LedgerFull) -> Refused:
    """Refuse because the ledger is full: come again."""
    return Refused(
        503,
        str(full),
        full.code,
        type="server_error",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
