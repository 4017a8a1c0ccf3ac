"""What is wrong in a config, for a screen: the file once, then each line with a caret under it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from tidegate.config.mistake import ConfigError, Spot
from tidegate.core.text import count

_COLUMNS = 80
_BEFORE = 30  # columns that are shown of a long line before the place


def mistakes_text(error: ConfigError) -> str:
    """Write the file's name, and of each mistake its text, its line and a caret.

    An error that tells no spots is its own text.
    """
    if not error.spots:
        return str(error)
    found = count(sum(1 for spot in error.spots if spot.line), "mistake")
    place = str(error.path) if error.path else "the configuration"
    blocks = ["\n".join(_block(spot)) for spot in error.spots]
    return "\n\n".join([f"{place}: {found}" if error.path else f"{place}:", *blocks])


def _block(spot: Spot) -> Iterator[str]:
    head = f"line {spot.line}: " if spot.line else ""
    yield from textwrap.wrap(
        f"{head}{spot.text}", _COLUMNS, break_long_words=False, break_on_hyphens=False
    )
    if not spot.line:
        return
    number = f"  {spot.line} | "
    width = _COLUMNS - len(number)
    excerpt, column = spot.excerpt, spot.column
    if len(excerpt) > width:
        cut = max(0, min(column - _BEFORE, len(excerpt) - width))
        left = "…" if cut else ""
        excerpt = left + excerpt[cut + len(left) :]
        column -= cut
        if len(excerpt) > width:
            excerpt = f"{excerpt[: width - 1]}…"
    yield f"{number}{excerpt}"
    yield f"{' ' * (len(number) - 2)}| {' ' * column}^"
