r"""JSON of others: half a character is read and kept; everything else is as JSON has it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, Struct

from tidegate.core.formats.foreign_json import (
    JsonReader,
    OtherShape,
    UnreadableJson,
    as_object,
    is_json,
    members_of,
)


class Named(Struct):
    """As much of a request as routing needs."""

    model: str


read = JsonReader(Named)
HALVES = [
    rb"\ud83d",
    rb"\uDE00",
    rb"\uD83D\ud83d\ude00",
    rb"\ude00\ud83d",
    rb"\\\ud83d",
    rb"\\ud83d\ude00",
    rb"\ud83d\n\ude00",
    rb"\ud83d\u0041",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None, categories=None), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)  # fmt: skip


def refuse_constant(name: str) -> None:
    raise ValueError(name)


def is_strict_json(data: bytes) -> bool:
    """What the standard library says, without its own extras."""
    try:
        json.loads(data.decode(), parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("half", HALVES)
def test_half_a_character_is_json(half: bytes) -> None:
    """It is read with a stand-in, and every member keeps the bytes that it came in."""
    data = b'{"model":"m","x":["%b", "\xc3\xa9"] , "y":1e400}' % half
    assert is_json(data)
    assert read(data).model == "m"
    assert read(b'{"model":"%b"}' % half).model
    found = members_of(data)
    assert bytes(found["x"]) == b'["%b", "\xc3\xa9"]' % half
    assert bytes(found["y"]) == b"1e400"
    whole = as_object({**found, "model": Raw(b'"n"')})
    assert json.loads(whole) == {**json.loads(data), "model": "n"}


def test_half_a_character_may_stand_in_a_name() -> None:
    """An object that is taken apart and written again has it still."""
    data = rb'{"\ud83d":1,"a":{"\ude00":"\ud83d"}}'
    assert as_object(members_of(data)) == data


def test_a_pair_is_one_character() -> None:
    """Beside a half it is still read as what it is."""
    assert read(rb'{"model":"\ud83d\ude00","x":"\ud83d"}').model == "\U0001f600"
    assert read(rb'{"x":"\ud83d","model":"\\ud83d"}').model == r"\ud83d"


@pytest.mark.parametrize(
    "data",
    [b'{"a":"\xed\xa0\x80"}', b'{"a":"\xff\\ud83d"}', rb'{"a":"\ud83d}', rb'{"a":"\ud83g"}',
     rb'{"a":\ud83d}', rb'{"a":"\ud83d"}}', rb'{"a":"\ud83d\x"}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_what_is_no_json_remains_none(data: bytes) -> None:
    """Halves as bytes, half an escape, and mistakes beside a half."""
    assert not is_json(data)


@given(value=JSON, spaced=st.booleans(), escaped=st.booleans())
def test_whatever_a_json_text_says_is_taken(value: object, spaced: bool, escaped: bool) -> None:
    """All of Unicode and its halves, escaped or not, however it is spaced."""
    text = json.dumps(value, ensure_ascii=escaped, indent=1 if spaced else None)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = json.dumps(value).encode()
    assert is_json(data)
    assert as_object(members_of(b'{"a":%b}' % data)) == b'{"a":%b}' % data


PIECES = st.sampled_from([
    b"{", b"}", b"[", b"]", b",", b":", b'"', b'""', b'"a"', b"\\", b"\\u", b"\\ud83d", b"\\ude00",
    b"d83d", b"1", b"-", b".", b"e", b"E+", b"0", b"true", b"nul", b"l", b"NaN", b" ", b"\n", b"\r",
    b"\t", b"\0", b"\x0b", b"\xc3", b"\xa9", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"/", b"'",
])  # fmt: skip


@given(st.lists(PIECES, max_size=12).map(b"".join))
def test_what_is_taken_is_json_and_what_is_refused_is_none(data: bytes) -> None:
    """Another parser says the same of every text, in a string and outside of one."""
    for text in (data, b'"' + data + b'"', b'{"a":"' + data + b'"}', b"[" + data + b"]"):
        assert is_json(text) is is_strict_json(text), text


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnreadableJson),
        (b"[]", OtherShape),
        (b"{}", OtherShape),
        (rb'{"model":7,"x":"\ud83d"}', OtherShape),
        (b'{"model":"\xff"}', UnreadableJson),
        (b"[" * 100_000, OtherShape),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", UnreadableJson),
    ],
)
def test_every_other_text_is_refused_by_one_error(data: bytes, error: type[UnreadableJson]) -> None:
    """It says whether it is no JSON, or not what was looked for."""
    with pytest.raises(UnreadableJson) as told:
        read(data)
    assert type(told.value) is error
    assert str(told.value)


def test_a_mark_before_a_body_is_skipped() -> None:
    """Some programs on Windows write one."""
    assert read(b'\xef\xbb\xbf{"model":"m"}').model == "m"
    assert bytes(members_of(b'\xef\xbb\xbf{"a":1}')["a"]) == b"1"
