"""A body in chunks is followed: where it ends, what it announces, what it costs besides."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.http.chunks import (
    MAX_EXTENSION_BYTES,
    MAX_SIZE_LINE_BYTES,
    MAX_TRAILER_BYTES,
    ChunkCounter,
    ChunksTooLarge,
)


def follow(*pieces: bytes) -> tuple[int | str | None, int]:
    """Where the body ends, None while it goes on, or why it is refused; and what it announced."""
    counter, before = ChunkCounter(), 0
    for piece in pieces:
        try:
            end = counter.feed(piece)
        except ChunksTooLarge as error:
            return str(error), counter.announced_bytes
        if end is not None:
            return before + end, counter.announced_bytes
        before += len(piece)
    return None, counter.announced_bytes


@pytest.mark.parametrize(
    ("data", "left", "announced"),
    [
        pytest.param(b"0\r\n\r\n", 0, 0, id="empty"),
        pytest.param(b"4\r\nabcd\r\n0\r\n\r\nGET /", 5, 4, id="something behind"),
        pytest.param(b"1;a=b\r\nx\r\n00A\r\n0123456789\r\n0\r\n\r\n", 0, 11, id="an extension"),
        pytest.param(b"2\r\n\r\n\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", 0, 2, id="a trailer"),
        pytest.param(b"2\r\nok\r\n0\r\n\r\n0\r\n\r\n", 5, 2, id="another end behind"),
    ],
)
def test_a_body_ends_behind_its_trailer(data: bytes, left: int, announced: int) -> None:
    """What is behind belongs to the next request."""
    assert follow(data) == (len(data) - left, announced)


def test_a_size_counts_when_it_is_announced() -> None:
    """What a chunk will hold is known before a byte of it has come, however large it is."""
    assert follow(b"7fffffff\r\n") == (None, 0x7FFFFFFF)
    assert follow(b"4\r\nabcd\r\n" + b"f" * 200 + b"\r\n")[1] == 4 + 0xFFFFFFFFFFFFFFFF
    assert follow(b"0" * 200 + b"5\r\n") == (None, 5)


@pytest.mark.parametrize("data", [b"zz\r\nabcd\r\n0\r\n\r\n", b"-1\r\n0\r\n\r\n", b"\r\n0\r\n\r\n"])
def test_what_is_no_chunk_has_no_end(data: bytes) -> None:
    """The parser says so; this only never tells an end."""
    assert follow(data) == (None, 0)


def test_lines_extensions_and_trailers_are_bounded() -> None:
    """No honest client sends a body of framing."""
    long = b"1;" + b"x" * MAX_SIZE_LINE_BYTES
    assert follow(long) == ("a chunk's first line is longer than 256 bytes", 0)
    line = b"1;" + b"x" * 200 + b"\r\n"
    enough = MAX_EXTENSION_BYTES // 201
    assert follow((line + b"y\r\n") * enough) == (None, enough)
    assert follow((line + b"y\r\n") * (enough + 1))[0] == (
        "chunk extensions are longer than 16384 bytes"
    )
    trailer = b"X: " + b"y" * (MAX_TRAILER_BYTES - 7) + b"\r\n"
    assert follow(b"0\r\n" + trailer + b"\r\n") == (3 + len(trailer) + 2, 0)
    assert follow(b"0\r\n" + trailer + b"z\r\n\r\n")[0] == "the trailer is longer than 8192 bytes"
    assert follow(b"0\r\n" + b"a:\r\n" * 3000)[0] == "the trailer is longer than 8192 bytes"


BODIES = st.lists(
    st.sampled_from(
        [b"0\r\n\r\n", b"0\r\n", b"\r\n", b"3\r\nabc\r\n", b"1;x\r\n\n\r\n", b"a:b\r\n"]
    )
    | st.integers(1, 400).map(lambda n: b"1;" + b"x" * n + b"\r\ny\r\n")
    | st.integers(1, 3000).map(lambda n: b"%x\r\n" % n + b"z" * n + b"\r\n")
    | st.binary(max_size=4),
    max_size=20,
).map(b"".join)


@given(BODIES, st.lists(st.integers(0, 20_000), max_size=12))
def test_any_cut_gives_the_same_verdict(data: bytes, cuts: list[int]) -> None:
    """Where the reads are cut changes nothing."""
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(at)]
    assert follow(*pieces) == follow(data)
