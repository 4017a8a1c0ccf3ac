"""Figures as people say them."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """ "1 run", "3 runs": for nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
