"""Framing of lines: whole lines come out, bytes unchanged, wherever the input was cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.formats.framing_rig import framed, in_pieces
from tidegate.core.errors import EventTooLarge
from tidegate.core.formats.ndjson import NdjsonFramer, split_lines

ROWS = [
    (b"", []),
    (b'{"a":1}\n', [b'{"a":1}\n']),
    (b'{"a":1}\n{"b":2}\n', [b'{"a":1}\n', b'{"b":2}\n']),
    (b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}\r\n', b'{"b":2}\r\n']),
    (b'\n\n{"a":1}\n \n\r\n\t\n{"b":2}\n\n', [b'{"a":1}\n', b'{"b":2}\n']),
    (b'{"a":1}\n{"b":2}', [b'{"a":1}\n', b'{"b":2}\n']),
    (b'{"a":1}\n{"b":2}\r', [b'{"a":1}\n', b'{"b":2}\r\n']),
    (b'{"a":1}\n{"b":', [b'{"a":1}\n']),
    (b'{"a":1}\n  ', [b'{"a":1}\n']),
    (b"not json\n{\n", [b"not json\n", b"{\n"]),
    (b'{"a":"\\n"}\n', [b'{"a":"\\n"}\n']),
    ('{"a":"\u2028🌊"}\n'.encode(), ['{"a":"\u2028🌊"}\n'.encode()]),
    (b'{"a":"\x85\x0b\x0c"}\n', [b'{"a":"\x85\x0b\x0c"}\n']),
]


def frame(pieces: list[bytes]) -> list[bytes]:
    return framed(NdjsonFramer(), split_lines, pieces)


@pytest.mark.parametrize(("stream", "lines"), ROWS, ids=range(len(ROWS)))
def test_a_cut_at_every_byte_does_not_show(stream: bytes, lines: list[bytes]) -> None:
    """Fed whole, cut in two anywhere, or byte by byte, the lines are the same."""
    assert frame([stream]) == lines
    assert frame([stream[i : i + 1] for i in range(len(stream))]) == lines
    for cut in range(len(stream)):
        assert frame([stream[:cut], stream[cut:]]) == lines


@given(
    st.lists(st.sampled_from([b"{}", b'{"a":1}', b"{", b" ", b"\r", b"\n", b"\r\n"]), max_size=30),
    st.lists(st.integers(1, 7), min_size=1, max_size=20),
)
def test_any_mixture_frames_the_same_however_it_is_cut(
    parts: list[bytes], sizes: list[int]
) -> None:
    """Blank lines, halves and line ends, mixed at random, never make the cut visible."""
    stream = b"".join(parts)
    assert frame(in_pieces(stream, sizes)) == frame([stream])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=9), st.booleans())
def test_values_survive(values: list[object], last_line_ends: bool) -> None:
    """What was sent is what is read, whether or not the last line has its end."""
    stream = b"\n".join(json.dumps(value).encode() for value in values)
    if values and last_line_ends:
        stream += b"\n"
    assert [json.loads(line) for line in frame([stream])] == values


def test_a_line_is_complete_at_once() -> None:
    """Nothing waits for the next byte."""
    framer = NdjsonFramer()
    assert framer.feed(b'{"a":1}\n{"b"') == (b'{"a":1}\n', 1)
    assert framer.feed(b":2}\n") == (b'{"b":2}\n', 1)


def test_a_giant_line_is_refused_in_pieces_and_whole() -> None:
    """The bound holds for the unfinished tail as for a line that arrives complete."""
    framer = NdjsonFramer(limit_bytes=100)
    for _ in range(100):
        framer.feed(b"x")
    with pytest.raises(EventTooLarge):
        framer.feed(b"x")
    for data in (b"x" * 100 + b"\n", b"{}\n" + b"x" * 101, b"{}\n" + b"x" * 101 + b"\n{}\n"):
        with pytest.raises(EventTooLarge):
            NdjsonFramer(limit_bytes=100).feed(data)
    framer = NdjsonFramer(limit_bytes=100)
    framer.feed(b"x" * 99)
    with pytest.raises(EventTooLarge):
        framer.feed(b"x\n")


def test_the_tail_is_charged_and_given_back() -> None:
    """An unfinished line takes memory, a finished one none."""
    framer = NdjsonFramer()
    framer.feed(b"x" * 1000)
    assert framer.partial_bytes >= 1000
    framer.feed(b"\n")
    assert framer.partial_bytes == 0
