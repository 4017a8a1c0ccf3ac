"""Members are found where they lie, and a flood of them costs no memory."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tidegate.core.formats import CHAT
from tidegate.core.formats.base import MOST_DECODED, with_values
from tidegate.core.formats.foreign_json import is_utf8
from tidegate.core.formats.members import (
    MAX_BRACKETS,
    MAX_MEMBERS,
    count_texts,
    has_several,
    members,
)

MIB = 1024 * 1024
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def found(text: bytes) -> dict[str, object]:
    return {name: json.loads(bytes(value)) for name, value in members(text)}


def peak_bytes(body: bytes) -> int:
    """What replacing the model's name in it takes beside the body."""
    tracemalloc.start()
    try:
        with_values(body, "", {"model": Raw(b'"other"')})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.long
@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_what_lies_there_is_what_a_decoder_finds(
    document: dict[str, object], indent: int | str | None, plain: bool
) -> None:
    """Whatever the values are, and however they are spelled and spaced."""
    text = json.dumps(document, indent=indent, ensure_ascii=plain).encode()
    assert found(text) == document
    assert [name for name, _ in members(text)] == list(document)


@given(st.lists(VALUES), st.sampled_from([None, 2]))
def test_several_elements_are_told_from_one(array: list[object], indent: int | None) -> None:
    """Only the first one is looked at."""
    text = memoryview(json.dumps(array, indent=indent).encode())
    if array:
        assert has_several(text) == (len(array) > 1)


@given(st.lists(st.text()), st.sampled_from([None, 2]), st.integers(1, 5))
def test_texts_are_counted_up_to_a_bound(texts: list[str], indent: int | None, most: int) -> None:
    """However they are spaced; with anything else among them the number is not known."""
    text = memoryview(json.dumps(texts, indent=indent).encode())
    mixed = memoryview(json.dumps([*texts, 1]).encode())
    if texts:
        assert count_texts(text, most) == min(len(texts), most + 1)
        assert count_texts(mixed, 1000) == 1001


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":1',
        b'{"a":1,',
        b'{"a":[',
        b'{"a":"',
        b'{"a":"\\"}',
        b'{"a" 1}',
        b'{"a":1 "b":2}',
        b"{1:2}",
        b"{" + b",".join(b'"%d":1' % n for n in range(MAX_MEMBERS + 1)) + b"}",
        b'{"a":[' + b"[],[]," * (MAX_BRACKETS // 4) + b"1]}",
    ],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    """So is one with more members or brackets than any request has."""
    with pytest.raises(ValueError, match="the request body"):
        list(members(text))


@pytest.mark.parametrize("name", ["model", "mod\\u0065l"])
def test_a_name_is_replaced_however_it_is_spelled_and_as_often(name: str) -> None:
    """A parser that takes the first of two must not see the other model."""
    padding = b'"x":"' + b": " * (MOST_DECODED + 1) + b'"'
    body = b'{"model":"a",%b,"%b":"b"}' % (padding, name.encode())
    changed = b"".join(with_values(body, "", {"model": Raw(b'"c"'), "stream": None}))
    assert json.loads(changed, object_pairs_hook=list) == [
        ("model", "c"),
        ("x", ": " * (MOST_DECODED + 1)),
    ]


def test_a_large_value_is_not_copied() -> None:
    """What replaces the model's name in 16 MiB takes next to nothing."""
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 16 * MIB + b'"}]}'
    assert peak_bytes(body) < MIB


def test_a_flood_of_members_is_refused_before_it_is_decoded() -> None:
    """4 MiB of nothing but members would be 90 MiB of objects."""
    body = b'{"model":"m",' + b",".join(b'"%06x":0' % n for n in range(400_000)) + b"}"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="members"):
            with_values(body, "", {"model": Raw(b'"n"')})
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("element", [b'"",', b"[1],", b"1,"])
def test_a_flood_of_prompts_is_not_decoded(element: bytes) -> None:
    """They are counted as far as they can be told apart."""
    body = b'{"model":"m","prompt":[' + element * 300_000 + element[:-1] + b"]}"
    tracemalloc.start()
    try:
        CHAT.of_request(body, "")
        assert tracemalloc.get_traced_memory()[1] < len(body) // 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ("", {"include_usage": True}),
        (',"stream_options":null', {"include_usage": True}),
        (',"stream_options":{"include_usage":false,"x":1}', {"include_usage": True, "x": 1}),
        (',"stream_options":{"include_usage":true}', None),
        (',"stream_options":{"x":"' + "y" * 5000 + '"}', None),
    ],
)
def test_usage_is_asked_for_where_that_is_sensible(options: str, asked: object) -> None:
    """What the client says of its stream stays, and what no API has is left alone."""
    values = CHAT.asking_usage(f'{{"model":"m"{options}}}'.encode())
    if asked is None:
        assert values is None
    else:
        assert values is not None
        assert json.loads(bytes(values["stream_options"] or b"")) == asked


def test_text_is_told_from_other_bytes_without_decoding_it_as_a_whole() -> None:
    """Decoded at once, a text with one emoji takes four times as much."""
    text = b"x" * 65535 + "é".encode() + b"y" * 8 * MIB + "\U0001f600".encode()
    tracemalloc.start()
    try:
        assert is_utf8(text)
        assert not is_utf8(text + b"\xc3")
        assert not is_utf8(text[:-1])
        assert tracemalloc.get_traced_memory()[1] < len(text) * 3
    finally:
        tracemalloc.stop()
