"""What is kept deflated comes back as it was, and never as more."""

import random

import pytest

from tidegate.core.runs.deflated import LEAST_BYTES, MOST_BYTES, deflate, inflate, is_worth


@pytest.mark.parametrize("data", [b"x" * MOST_BYTES, b"0123456789" * 200, bytes(LEAST_BYTES)])
def test_what_repeats_itself_is_small_and_comes_back(data: bytes) -> None:
    """Byte for byte."""
    small = deflate(data)
    assert small is not None
    assert len(small) < len(data) / 10
    assert inflate(small, len(data)) == data


def test_what_saves_too_little_is_left() -> None:
    """Noise, of which it would be a waste to keep another form."""
    assert deflate(random.Random(1).randbytes(50_000)) is None


def test_no_more_comes_back_than_went_in() -> None:
    """Whatever stands there: a size that is told too small is the end."""
    small = deflate(b"x" * MOST_BYTES)
    assert small is not None
    assert inflate(small, 1000) == b"x" * 1000


def test_neither_small_nor_large_is_tried() -> None:
    """It would save nothing, or hold the loop up."""
    sizes = (0, LEAST_BYTES - 1, LEAST_BYTES, MOST_BYTES, MOST_BYTES + 1)
    assert list(map(is_worth, sizes)) == [False, False, True, True, False]
