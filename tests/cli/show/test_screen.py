"""Sizes and times as people read them."""

from __future__ import annotations

import pytest

from tidegate.cli.show.screen import duration_text, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (999 * 1024 + 1000, "1000 KiB"),
        (1000 * 1024, "0.977 MiB"),
        (212 << 20, "212 MiB"),
        (5 << 40, "5120 GiB"),
        (-(3 << 20), "-3 MiB"),
    ],
)
def test_sizes(size, text):
    """A size has about three digits and a binary unit."""
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (9 * 86400 + 3 * 3600 + 59, "9 d 3 h"),
    ],
)
def test_durations(seconds, text):
    """A duration has the two units that matter."""
    assert duration_text(seconds) == text
