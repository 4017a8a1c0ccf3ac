r"""Where the members of a large JSON object lie: found without taking the object apart.

A decoder makes objects of each member, some 200 bytes for a member of nine: a body of 32 MiB that
holds nothing but members costs 700 MB that way. Here a member costs no more than a step, and its
value stays where it is. It takes 7 ns a byte, a decoder a tenth of that: so this is for texts
that may hold too many members to be decoded.

The text has been found to be JSON before; what is not is refused, at the latest by its upstream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec

MAX_MEMBERS = 1000  # of a request; those of any API have a few dozen
MAX_BRACKETS = 500_000  # a quarter of a second; the longest conversations have a tenth of it

# All up to the next bracket: what is between strings, and whole strings. No group goes back.
_FLAT = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+', re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(rb"[^\s,\]}]++")
_BLANK = re.compile(rb"[ \t\r\n]*+")
_text = msgspec.json.Decoder(str).decode


def members(text: bytes) -> Iterator[tuple[str, memoryview]]:
    """Find the name and the value of each member of an object, in order. Raises ValueError."""
    view = memoryview(text)
    at = _opened(text, b"{")
    for _ in range(MAX_MEMBERS):
        name = _STRING.match(text, at)
        if name is None:
            if text[at : at + 1] == b"}":
                return
            break
        start = _behind(text, name.end(), b":")
        end = _value_end(text, start)
        yield _name(name[0]), view[start:end]
        at = _BLANK.match(text, end).end()  # type: ignore[union-attr]  # it matches anywhere
        if text[at : at + 1] == b"}":
            return
        at = _behind(text, at, b",")
    raise ValueError(f"the request body is no object of at most {MAX_MEMBERS} members")


def has_several(array: memoryview) -> bool:
    """Say whether an array has more than one element. Raises ValueError."""
    end = _value_end(array, _opened(array, b"["))
    return bytes(array[_BLANK.match(array, end).end() :][:1]) == b","  # type: ignore[union-attr]


def count_texts(array: memoryview, most: int) -> int:
    """Count the strings of an array; more than `most` where it holds more, or others as well."""
    at = _opened(array, b"[")
    for number in range(1, most + 1):
        found = _STRING.match(array, at)
        if found is None:
            break
        at = _BLANK.match(array, found.end()).end()  # type: ignore[union-attr]
        if bytes(array[at : at + 1]) == b"]":
            return number
        at = _behind(array, at, b",")
    return most + 1


def _name(text: bytes) -> str:
    try:
        return _text(text)
    except msgspec.DecodeError:  # half a character, which no string of msgspec's holds
        return str(json.loads(text))


def _opened(text: bytes | memoryview, bracket: bytes) -> int:
    return _behind(text, 0, bracket)


def _behind(text: bytes | memoryview, at: int, mark: bytes) -> int:
    """Find the place behind this mark and the blanks around it. Raises ValueError."""
    at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] != mark:
        raise ValueError(f"the request body is not valid JSON at byte {at}")
    return _BLANK.match(text, at + 1).end()  # type: ignore[union-attr]


def _value_end(text: bytes | memoryview, at: int) -> int:
    """Find where the value ends that begins at `at`. Raises ValueError."""
    first = bytes(text[at : at + 1])
    if first not in (b"[", b"{"):
        found = (_STRING if first == b'"' else _SCALAR).match(text, at)
        if found is None:
            raise ValueError(f"the request body is not valid JSON at byte {at}")
        return found.end()
    depth = 0
    for _ in range(MAX_BRACKETS):
        at = _FLAT.match(text, at).end()  # type: ignore[union-attr]
        bracket = bytes(text[at : at + 1])
        if not bracket:
            raise ValueError("the request body is not valid JSON: it breaks off")
        depth += 1 if bracket in (b"[", b"{") else -1
        at += 1
        if not depth:
            return at
    raise ValueError(f"the request body has more than {MAX_BRACKETS} brackets")
