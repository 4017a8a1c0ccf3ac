r"""The few fields of a form that routing needs: `multipart/form-data`, as audio is sent (RFC 7578).

Only what routing asks for is read, and only the model's name is ever replaced. The rest of the
form, files above all, passes as the bytes it is. What the form means beyond that is its upstream's
to judge.

A line that only begins with the boundary divides nothing, although RFC 2046 would have it so: the
parsers of Go, Python and Node all want it whole, and a file may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_PARTS = 1000  # a form of an API has a dozen; a flood of empty ones is not worth the time
MAX_VALUE_BYTES = 1024  # a model's name
MAX_HEAD_BYTES = 16 * 1024  # of a part: three lines, one of which holds a file's name
MAX_FALSE_LINES = 100  # within a part; a boundary is chosen so that there is none

_BOUNDARY = re.compile(
    r""";[ \t]*boundary=(?:"([0-9A-Za-z'()+_,./:=? -]{1,70})"|([^\s;,"]{1,70})(?=[\s;]|$))""",
    re.IGNORECASE,
)
_DISPOSITION = re.compile(rb"\r\ncontent-disposition:([^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb';[ \t]*([a-z*]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;"]*))', re.I)


class _Part(NamedTuple):
    name: str
    start: int
    end: int


def fields(body: bytes, content_type: str, names: tuple[str, ...]) -> dict[str, str]:
    """Read the values of these fields, as far as they are there. Raises ValueError."""
    found: dict[str, str] = {}
    for part in _parts(body, content_type):
        if part.name not in names:
            continue
        if part.name in found:
            raise ValueError(f"the form has more than one field `{part.name}`")
        if part.end - part.start > MAX_VALUE_BYTES:
            raise ValueError(f"the form's field `{part.name}` is too long")
        try:
            found[part.name] = body[part.start : part.end].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the form's field `{part.name}` is not UTF-8") from None
    return found


def with_fields(body: bytes, content_type: str, values: dict[str, str]) -> list[bytes | memoryview]:
    """Replace these fields of a form where they are there; returns it in pieces.

    What is not replaced is a view of `body`. Raises ValueError.
    """
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    taken = 0
    for part in _parts(body, content_type):
        if part.name in values:
            pieces += [view[taken : part.start], values[part.name].encode("utf-8")]
            taken = part.end
    return [*pieces, view[taken:]]


def _parts(body: bytes, content_type: str) -> Iterator[_Part]:
    """Find where each part's content lies. Raises ValueError."""
    delimiter = b"\r\n--" + _boundary(content_type)
    # The first one stands at the very beginning; some writers put its line end there all the same.
    at = len(delimiter) - (0 if body.startswith(delimiter) else 2)
    if body[at - len(delimiter) + 2 : at] != delimiter[2:] or not _is_whole(body, at):
        raise ValueError("the form does not begin with its boundary")
    for _ in range(MAX_PARTS):
        if body.startswith(b"--", at):
            return
        end = _next(body, delimiter, at)
        head_end = body.find(b"\r\n\r\n", at, min(end + 2, at + MAX_HEAD_BYTES))
        if head_end < 0:
            raise ValueError("a part of the form has a head without an end, or too long a one")
        yield _Part(_name(body, at, head_end), min(head_end + 4, end), end)
        at = end + len(delimiter)
    raise ValueError(f"the form has more than {MAX_PARTS} parts")


def _boundary(content_type: str) -> bytes:
    found = _BOUNDARY.search(content_type)
    boundary = (found[1] or found[2]) if found else ""
    if not boundary.isascii() or not boundary.strip():
        raise ValueError("the form's Content-Type has no usable boundary")
    return boundary.rstrip().encode("ascii")


def _next(body: bytes, delimiter: bytes, at: int) -> int:
    """Find where the next delimiter begins."""
    for _ in range(MAX_FALSE_LINES):
        end = body.find(delimiter, at)
        if end < 0:
            raise ValueError("the form breaks off")
        at = end + len(delimiter)
        if _is_whole(body, at):
            return end
    raise ValueError("the form has too many lines that begin with its boundary")


def _is_whole(body: bytes, at: int) -> bool:
    """Say whether a delimiter that ends at `at` is one: the form ends there, or the line does."""
    line_end = body.find(b"\r\n", at, at + MAX_VALUE_BYTES)
    return body.startswith(b"--", at) or (line_end >= 0 and not body[at:line_end].strip(b" \t"))


def _name(body: bytes, start: int, end: int) -> str:
    """Read the field's name in the head of a part; empty where it has none."""
    disposition = _DISPOSITION.search(body, start, end)
    for name, quoted, token in _PARAMETER.findall(disposition[1]) if disposition else ():
        if name.lower() == b"name":
            value = re.sub(rb"\\(.)", rb"\1", quoted) if quoted else token.strip()
            return bytes(value).decode("utf-8", "replace")
    return ""
