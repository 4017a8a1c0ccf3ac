"""What steers a terminal is shown, and what is JSON says the same as before."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.text import visible, visible_json

STEERING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("qwen3:8b ü 日本 🙂", "qwen3:8b ü 日本 🙂"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\x7fb\0", "a\\x7fb\\x00"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud83d", "\\ud83d"),
        ("a\r\n\tb", "a\\x0d\\x0a\\x09b"),
    ],
)
def test_what_does_not_print_is_shown_by_its_number(text: str, shown: str) -> None:
    """C0, C1, DEL, line ends, directions, what has no width, halves of characters."""
    assert visible(text) == shown


def test_what_is_to_stay_stays() -> None:
    """Lines of a page, and tabs, where several lines are printed."""
    assert visible("a\n\tb\r\x9b", keep="\n\t") == "a\n\tb\\x0d\\x9b"


@given(st.text(alphabet=st.characters(codec=None)))
def test_nothing_is_left_that_steers(text: str) -> None:
    """Of any text; and a text without such characters stays as it is."""
    shown = visible(text)
    assert not {unicodedata.category(char) for char in shown} & STEERING
    assert (shown == text) == text.isprintable()


@pytest.mark.long
@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_says_the_same(value: object) -> None:
    """Read again it is equal, indented or not, and nothing in it steers a terminal."""
    for indent in (None, 2):
        shown = visible_json(json.dumps(value, ensure_ascii=False, indent=indent))
        assert json.loads(shown) == value
        assert not {unicodedata.category(char) for char in shown.replace("\n", "")} & STEERING
