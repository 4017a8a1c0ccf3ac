"""A head is counted while it arrives: where it ends, and when it is too large, in any cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.http.head import MAX_FIELDS, MAX_HEAD_BYTES, HeadCounter, HeadTooLarge

START = b"GET /v1/models?limit=3 HTTP/1.1\r\n"
HOST = b"Host: a\r\n"


def verdict(*pieces: bytes) -> int | str | None:
    """Where the head ends in all of `pieces`, None while it goes on, or why it is refused."""
    counter, before = HeadCounter(), 0
    for piece in pieces:
        try:
            end = counter.feed(piece)
        except HeadTooLarge as error:
            return str(error)
        if end is not None:
            assert counter.size == before + end
            return before + end
        before += len(piece)
        assert counter.size == before
    return None


@pytest.mark.parametrize(
    ("data", "end"),
    [
        pytest.param(START + HOST + b"\r\n", 0, id="nothing behind"),
        pytest.param(START + HOST + b"\r\nbody\r\n\r\nmore", -12, id="a body behind"),
        pytest.param(START + b"\r\n" + START + b"\r\n", -len(START) - 2, id="a request behind"),
        pytest.param(b"\r\n\r\n" + START + b"\r\n", 0, id="empty lines before"),
        pytest.param(b"\n\n\r\r\n" + START + HOST + b"\r\n", 0, id="any line ends before"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\nx", -1, id="bare LF"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\r\nx", -1, id="mixed"),
        pytest.param(START + HOST + b"X: y\r\r\n\r\nx", -1, id="CR in a value"),
        pytest.param(START + HOST + b"\r\r\n\r\n", 0, id="a line that is a CR"),
    ],
)
def test_a_head_ends_with_an_empty_line(data: bytes, end: int) -> None:
    """What is behind is not counted, empty lines before the request line are no end."""
    assert verdict(data) == len(data) + end


@pytest.mark.parametrize(
    "data",
    [b"", b"\r\n\r\n\r\n", b"GET", START, START + HOST, START + HOST + b"\r", START + b"\rX\n"],
)
def test_a_head_without_an_empty_line_goes_on(data: bytes) -> None:
    """There is no end yet."""
    assert verdict(data) is None


def test_the_sum_is_bounded_exactly() -> None:
    """A head of 32 KiB passes and one byte more does not, however short its lines are."""
    lines = [b"X: " + b"y" * 300 + b"\r\n"] * 100
    whole = START + b"".join(lines)
    rest = MAX_HEAD_BYTES - len(whole) - 7
    longest = whole + b"Z: " + b"z" * rest + b"\r\n\r\n"
    assert verdict(longest) == len(longest) == MAX_HEAD_BYTES
    too_long = longest.replace(b"Z: ", b"Z: z")
    assert (
        verdict(too_long)
        == verdict(too_long[:-3], too_long[-3:])
        == ("the head is longer than 32768 bytes")
    )
    assert verdict(b"\r\n" * 50 + b"GET " + b"/" * MAX_HEAD_BYTES) == verdict(too_long)


def test_the_number_of_fields_is_bounded() -> None:
    """Many small fields cost more than their bytes."""
    most = START + b"a:b\r\n" * MAX_FIELDS + b"\r\n"
    assert verdict(most) == len(most)
    assert verdict(START + b"a:b\r\n" * (MAX_FIELDS + 1) + b"\r\n") == (
        "the head has more than 128 fields"
    )


def test_bytes_behind_the_end_are_never_refused() -> None:
    """A body may be as large as it likes."""
    assert verdict(START + b"\r\n" + b"\n" * 10 * MAX_HEAD_BYTES) == len(START) + 2


HEADS = st.lists(
    st.sampled_from([b"\r\n", b"\n", b"\r", b"GET / HTTP/1.1\r\n", b"a: b\r\n", b"a:b\n", b"x"])
    | st.integers(1, 12).map(lambda n: b"y" * n * 1000)
    | st.integers(1, 60).map(lambda n: b"a:\r\n" * n),
    max_size=20,
).map(b"".join)


@given(HEADS, st.lists(st.integers(0, 60_000), max_size=12))
def test_any_cut_gives_the_same_verdict(data: bytes, cuts: list[int]) -> None:
    """Where the reads are cut changes nothing."""
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(at)]
    assert verdict(*pieces) == verdict(data)


@given(st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b"a", b"GET / x\r\n"]), max_size=12))
def test_bytes_one_by_one_give_the_same_verdict(parts: list[bytes]) -> None:
    """The smallest reads give the verdict of the largest one."""
    data = b"".join(parts)
    assert verdict(*(data[n : n + 1] for n in range(len(data)))) == verdict(data)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"\r\nPOST /v1/messages?beta=true HTTP/1.1\r\n", "/v1/messages"),
        (b"GET /" + b"a" * 500, "/" + "a" * 123),
        (b"GET", ""),
        (b"GET /api/tags", "/api/tags"),
        (b"\xff\xfe \xff", "ÿ"),
    ],
)
def test_the_path_is_known_as_far_as_it_has_come(data: bytes, path: str) -> None:
    """An error has the shape of its route though the head was never whole, whatever the cuts."""
    for size in (1, 7, 1000):
        counter = HeadCounter()
        for n in range(0, len(data), size):
            counter.feed(data[n : n + size])
        assert counter.path == path
