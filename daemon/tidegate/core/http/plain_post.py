"""A request of the most frequent kind, recognised without a parser: one POST, whole, in one read.

What is recognised here is read alike by every HTTP parser. Anything else (a body that is still to
come, chunks, a field that comes twice or that changes how a body is read, a byte out of the
ordinary) is nothing of ours, for a parser to judge.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple

MAX_HEAD_BYTES = 8 * 1024  # aiohttp's bound for one line
MAX_FIELDS = 64
_MAX_DIGITS = 7

_HEAD = re.compile(
    rb"POST (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+)\r\n"
)
# These change how a request is read or answered, or say that a page sent it.
_ODD = frozenset({
    "transfer-encoding", "content-encoding", "expect", "upgrade", "te", "trailer", "origin",
    "http2-settings", "proxy-connection", "keep-alive",
})  # fmt: skip
_ODD_PREFIXES = ("sec-",)


class PlainPost(NamedTuple):
    """Where the parts of a request are."""

    key: bytes  # equal for heads that differ only in the length of the body; no secret is in it
    head: memoryview
    body: bytes


class PlainHead(NamedTuple):
    """What a head says."""

    path: str  # with a query, if there is one
    fields: dict[str, str]  # by name in lower case


def split_post(data: bytes) -> PlainPost | None:
    """Divide one read into head and body, if it is a whole POST with a length."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
    at = data.find(b"ength: ", 0, end)
    if end < 4 or at < 0 or data[at - 11 : at].lower() != b"\r\ncontent-l":
        return None
    at += 7
    stop = data.find(b"\r", at)
    digits = data[at:stop]
    if not digits.isdigit() or len(digits) > _MAX_DIGITS or int(digits) != len(data) - end:
        return None
    key = sha256(data[:at] + data[stop:end]).digest()
    return PlainPost(key, memoryview(data)[:end], data[end:])


def read_head(head: bytes) -> PlainHead | None:
    """Read a head that is plain throughout; None for any other."""
    found = _HEAD.fullmatch(head)
    if found is None:
        return None
    lines = found[2].decode("ascii").split("\r\n")[:-1]
    fields = {}
    for name, _, value in (line.partition(":") for line in lines):
        fields[name.lower()] = value.strip(" \t")
    keeps_alive = fields.get("connection", "keep-alive").lower() == "keep-alive"
    is_odd = not _ODD.isdisjoint(fields) or any(name.startswith(_ODD_PREFIXES) for name in fields)
    is_whole = "host" in fields and len(lines) <= MAX_FIELDS and len(fields) == len(lines)
    if is_odd or not keeps_alive or not is_whole:
        return None
    return PlainHead(found[1].decode("ascii"), fields)
