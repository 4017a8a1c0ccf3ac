"""Words from elsewhere, before they reach a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` without what would steer a terminal: names and reasons may come from anybody."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
