r"""JSON that others wrote: read as strictly as clients read it, and passed on as it came.

JSON allows an escape for one half of a surrogate pair (RFC 8259, 8.2): half an emoji, where a text
was cut. Nothing in Python's own strings, and so nothing in msgspec, can hold one. So what is only
looked at is read with U+FFFD in its place, and what is sent on keeps its very bytes. Halves that
are written as bytes (ED A0 80) are no UTF-8, and no JSON.

A byte order mark before a body is no JSON either, but its readers may skip it, and most do.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

import msgspec
from msgspec import Raw

from tidegate.core.formats.members import members

T = TypeVar("T")

SLICE_BYTES = 64 * 1024
_utf8 = codecs.getincrementaldecoder("utf-8")
BOM = b"\xef\xbb\xbf"
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F][0-9a-fA-F])\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_UNKNOWN = rb"\ufffd"
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_any = msgspec.json.Decoder(Raw).decode
_members = msgspec.json.Decoder(dict[str, Raw]).decode


class UnreadableJson(ValueError):
    """Raised when bytes are not JSON in UTF-8, or cannot be read here; the message says why."""


class OtherShape(UnreadableJson):
    """Raised when the JSON holds another kind of value than is looked for."""


class JsonReader(Generic[T]):
    """Reads values of one kind; what the kind does not name is not judged."""

    __slots__ = ("_decode",)

    def __init__(self, kind: type[T]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def __call__(self, data: bytes | Raw) -> T:
        """Read one value. Raises UnreadableJson."""
        try:
            return self._decode(data)
        except _REFUSED as error:
            return _again(self._decode, bytes(data), error)


def is_json(data: bytes) -> bool:
    """Say whether it is one JSON value, in UTF-8."""
    try:
        _any(data)
    except _REFUSED as error:
        if not _is_json_with_halves(data, error):
            return False
    return data.isascii() or is_utf8(data)


def are_json(values: Iterable[bytes]) -> bool:
    """Say whether each is a JSON value with nothing odd; if not, `is_json` may see it otherwise."""
    try:
        deque(map(_any, values), maxlen=0)  # a loop in C
    except _REFUSED:
        return False
    return True


def is_object(raw: Raw) -> bool:
    """Say whether a value that is known to be JSON is an object."""
    return bytes(memoryview(raw)[:1]) == b"{"


def is_utf8(data: bytes) -> bool:
    """Say whether it is text. In slices: as a whole it may be four times as large when decoded."""
    decoder, view = _utf8(), memoryview(data)
    try:
        for at in range(0, len(data), SLICE_BYTES):
            decoder.decode(view[at : at + SLICE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def as_utf8(data: bytes) -> bytes:
    """Write U+FFFD for what is not UTF-8; for what becomes part of an answer of ours."""
    return data if is_utf8(data) else data.decode("utf-8", "replace").encode()


def members_of(data: bytes | Raw) -> dict[str, Raw]:
    """Read an object's members, each in the bytes that it came in. Raises UnreadableJson."""
    try:
        return _members(data)
    except _REFUSED as error:
        text = bytes(data)
        _again(_members, text, error)
    try:
        return {name: Raw(value) for name, value in members(text.removeprefix(BOM))}
    except ValueError as error:
        raise UnreadableJson(str(error)) from None


def as_object(values: Mapping[str, Raw]) -> bytes:
    """Write the object that has these members."""
    named = [b"%b:%b" % (as_name(name), value) for name, value in values.items()]
    return b"{" + b",".join(named) + b"}"


def as_name(name: str) -> bytes:
    """Write the name of a member as JSON."""
    try:
        return msgspec.json.encode(name)
    except UnicodeEncodeError:  # half a character in it
        return json.dumps(name).encode()


def _again(decode: Callable[[bytes | bytearray], T], data: bytes, refused: Exception) -> T:
    """Read once more, without what msgspec alone stumbles over. Raises UnreadableJson."""
    try:
        if isinstance(refused, msgspec.ValidationError):
            raise refused
        readable = _without_halves(data.removeprefix(BOM))
        if readable is data:
            raise refused
        return decode(readable)
    except msgspec.ValidationError as error:
        raise OtherShape(str(error)) from None
    except RecursionError:
        raise UnreadableJson("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableJson(str(error)) from None
    finally:
        del refused  # raised again it holds this frame, and the callers' with the body


def _is_json_with_halves(data: bytes, refused: Exception) -> bool:
    readable = _without_halves(data)
    if readable is data or not isinstance(refused, msgspec.DecodeError):
        return False
    try:
        _any(readable)
    except _REFUSED:
        return False
    return True


def _without_halves(data: bytes) -> bytes | bytearray:
    """Write U+FFFD for each half; returns `data` itself where it has none."""
    if b"\\u" not in data:
        return data
    escapes = data.replace(b"\\\\", b"__")  # every backslash that is left begins an escape
    covered: bytearray | None = None
    for half in _HALF.finditer(escapes):
        covered = covered or bytearray(data)
        covered[half.start() : half.end()] = _UNKNOWN
    return data if covered is None else covered
