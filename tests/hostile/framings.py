"""Bytes of streams and bodies, whole and in pieces: where they are cut changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fakes.wire import wire_for
from tidegate.core import formats
from tidegate.core.decoding import Undecodable
from tidegate.core.errors import UpstreamError
from tidegate.core.formats.base import Format, with_values
from tidegate.core.formats.ndjson import NdjsonFramer
from tidegate.core.formats.sse import SseFramer
from tidegate.core.runs.ledger import Ledger
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.settings import Limits

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat")
WORDS = [
    *(b"\n\n", b"\r\n\r\n", b"\r\r", b"\r", b"data: ", b"data:", b"data", b": x\n", b"id: 7\n"),
    *(b"event: error\n", b"event: ping\n", b"retry: 1\n", b"data: [DONE]\n\n", b"data: [1\n\n"),
    *(b"\xef\xbb\xbf", b"\x00", b"{}\n", b'{"done":true}\n', b"[" * 2_000, b"\\ud83d", b"\xff"),
    *(b'"error":{"message":"x"}', b'"finish_reason":"stop"', b'{"type":"error"}', b"1" * 5_000),
]


def _stream(path: str) -> bytes:
    wire = wire_for(path, "m")
    events = [*wire.opening(), wire.word("one"), *wire.usage(), *wire.finish(), *wire.done()]
    return b"".join(events)


CORPUS = [_stream(path) for path in PATHS]
MOST_BYTES = 4_000  # a byte at a time takes long
CUTS = (1, 3, 17, MOST_BYTES)


def check(data: bytes) -> None:
    """A framer and a run of each format make the same of it however it is cut."""
    data = data[:MOST_BYTES]
    for framer in (SseFramer, NdjsonFramer):
        made = {cut: _framed(framer(), data, cut) for cut in CUTS}
        assert len(set(made.values())) == 1, (
            f"{framer.__name__} depends on where it was cut: {made}"
        )
    for form in (formats.CHAT, formats.MESSAGES, formats.RESPONSES):
        ends = {cut: _run(form, data, cut) for cut in CUTS[1:]}
        whole = [end for end in ends.values() if end[0] is None]
        assert len(set(whole)) <= 1, f"{form.path} depends on where it was cut: {ends}"


def _framed(framer: SseFramer | NdjsonFramer, data: bytes, cut: int) -> tuple[bytes, int]:
    made, events = b"", 0
    try:
        for at in range(0, len(data), cut):
            block, count = framer.feed(data[at : at + cut])
            made, events = made + block, events + count
        block, count = framer.finish()
    except UpstreamError as error:
        return f"refused: {error.code}".encode(), -1
    return made + block, events + count


def _run(form: Format, data: bytes, cut: int) -> tuple[str | None, bytes, str]:
    """The error if there was one, what a reader was sent, and how it ended."""
    run = Run(
        run_id="run", owner="", request=RunRequest("m"), body=b"{}", limits=Limits(),
        account=Ledger().open(), now_s=0.0, created=0.0, format=form,
    )  # fmt: skip
    run.begin_attempt("box", "m", 0.0)
    sent = b""
    try:
        for at in range(0, len(data), cut):
            sent += run.feed(data[at : at + cut], 0.0)
        block, said = run.feed_end(0.0)
    except UpstreamError as error:
        return error.code, sent, ""
    return None, sent + block, said.name


def check_body(sent: bytes) -> None:
    """Every format reads a body and names another model in it, or refuses it with a ValueError."""
    head, _, body = sent.partition(b"\r\n\r\n")
    multipart = b"multipart/form-data" in head.lower()
    kind = "multipart/form-data; boundary=edge" if multipart else "application/json"
    for form in formats.ALL:
        try:
            wanted = form.of_request(body, kind).parse_request(body, kind)
        except ValueError:
            continue
        try:
            changed = with_values(body, kind, {"model": msgspec.Raw(b'"another"')})
        except ValueError:  # its caller is told so
            continue
        again = form.parse_request(b"".join(changed), kind)
        assert again.model == "another", f"{form.path}: {wanted.model!r} became {again.model!r}"


def refused(decode: Callable[[bytes], object], line: bytes) -> None:
    """Decode it, or refuse it with the one error that is caught where it is called."""
    try:
        decode(line)
    except Undecodable:
        return
