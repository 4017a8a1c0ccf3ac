"""The few fields of a form that routing needs: `multipart/form-data`, as audio is sent (RFC 7578).

Only the model's name and the wish for a stream are read, and only the former is ever replaced. The
rest of the form, files above all, passes as the bytes it is. What the form means beyond that is
its upstream's to judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_PARTS = 1000  # a form of an API has a dozen; a flood of empty ones is not worth the time
MAX_VALUE_BYTES = 1024  # a model's name

_BOUNDARY = re.compile(r'boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb'content-disposition:[^\r\n]*?[;\s]name="?([^";\r\n]*)"?', re.IGNORECASE)


class _Part(NamedTuple):
    name: str
    start: int
    end: int


def fields(body: bytes, content_type: str, names: tuple[str, ...]) -> dict[str, str]:
    """The values of these fields, as far as they are there. Raises ValueError."""
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


def with_fields(body: bytes, content_type: str, values: dict[str, str]) -> bytes:
    """The same form with these fields replaced where they are there. Raises ValueError."""
    pieces = []
    taken = 0
    for part in _parts(body, content_type):
        if part.name in values:
            pieces += [body[taken : part.start], values[part.name].encode("utf-8")]
            taken = part.end
    pieces.append(body[taken:])
    return b"".join(pieces)


def _parts(body: bytes, content_type: str) -> Iterator[_Part]:
    """Where each part's content lies. Raises ValueError."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise ValueError("the form's Content-Type has no usable boundary")
    delimiter = b"--" + boundary[1].rstrip().encode("ascii")
    if not body.startswith(delimiter):
        raise ValueError("the form does not begin with its boundary")
    at = len(delimiter)
    for _ in range(MAX_PARTS):
        if body.startswith(b"--", at):
            return
        head_end = body.find(b"\r\n\r\n", at)
        end = body.find(b"\r\n" + delimiter, head_end + 2)
        if head_end < 0 or end < 0:
            raise ValueError("the form breaks off")
        name = _NAME.search(body, at, head_end)
        yield _Part(name[1].decode("utf-8", "replace") if name else "", min(head_end + 4, end), end)
        at = end + 2 + len(delimiter)
    raise ValueError(f"the form has more than {MAX_PARTS} parts")
