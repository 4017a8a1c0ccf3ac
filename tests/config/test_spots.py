"""What of a wrong line is shown, and where the caret belongs in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.config.document import Document
from tidegate.config.mistake import Mistake


def spot(text: str, key: str, what: str = "must be something else"):
    """The only one of a text with one mistake."""
    [found] = Document(path=None, text=text, table={}).error([Mistake(key, what)]).spots
    return found


@pytest.mark.parametrize(
    ("line", "key", "excerpt"),
    [
        ('listen = "somewhere.lan:8433"', "listen", 'listen = "somewhere.lan:8433"'),
        ('name = "somewhere-else"', "name", 'name = "**************"'),
        ('idle_s = "2x"  # for now', "idle_s", 'idle_s = "2x"  # for now'),
        ("idle_s = 'a b c d e f'", "idle_s", "idle_s = '***********'"),
    ],
)
def test_a_longer_word_is_veiled_in_its_length(line: str, key: str, excerpt: str) -> None:
    """But for values that are never a secret; nothing in it steers a terminal."""
    assert spot(line, key).excerpt == excerpt


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_line_has_a_caret_within_it(line: str) -> None:
    """Whatever is written behind a key, with directions, escapes and quotes."""
    found = spot(f"idle_s ={line}", "idle_s")
    assert found.line == 1
    assert 0 <= found.column <= len(found.excerpt)
    assert found.excerpt.isprintable()
