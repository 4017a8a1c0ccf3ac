"""JSON as a client might write it: blanks, order, doubled keys and escapes at random."""

import json
from typing import Any

from hypothesis import strategies as st

from tidegate.core.formats.framing import NDJSON, Framing

_BLANKS = st.sampled_from(["", "", "", " ", "  ", "\t", " \t "])
_ENDS = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def _string(draw: st.DrawFn, text: str) -> str:
    written = json.dumps(text)[1:-1]
    if text.isascii() and text.isidentifier() and draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        digits = f"{ord(text[at]):04x}"
        written = f"{text[:at]}\\u{draw(st.sampled_from([digits, digits.upper()]))}{text[at + 1 :]}"
    return f'"{written}"'


@st.composite
def _value(draw: st.DrawFn, value: object) -> str:
    blanks = [draw(_BLANKS) for _ in range(4)]
    if isinstance(value, dict):
        items = draw(st.permutations(list(value.items())))
        doubled = [(key, type(each)()) for key, each in items]
        if draw(st.booleans()):
            items = [*doubled, *items]  # of two the last one counts
        members = [
            f"{draw(_string(key))}{draw(_BLANKS)}:{draw(_BLANKS)}{draw(_value(each))}"
            for key, each in items
        ]
        inner = f"{blanks[0]},{blanks[1]}".join(members)
        return f"{{{blanks[2]}{inner}{blanks[3]}}}"
    if isinstance(value, list):
        inner = f"{blanks[0]},{blanks[1]}".join(draw(_value(each)) for each in value)
        return f"[{blanks[2]}{inner}{blanks[3]}]"
    return draw(_string(value)) if isinstance(value, str) else json.dumps(value)


@st.composite
def event(draw: st.DrawFn, framing: Framing, payload: dict[str, Any], name: str = "") -> bytes:
    """One event that says this, as a strange upstream may send it."""
    data = draw(_value(payload)).encode()
    end = draw(_ENDS)
    if framing is NDJSON:
        return draw(_BLANKS).encode() + data + draw(_BLANKS).encode() + end
    lines = [b"data:" + draw(_BLANKS).encode() + data]
    if name and draw(st.booleans()):
        lines.insert(draw(st.integers(0, 1)), b"event: " + name.encode())
    return end.join(lines) + end * 2
