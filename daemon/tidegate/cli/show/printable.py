"""The only way to the terminal: what is printed steers nothing there, wherever it comes from.

A test holds the verbs to it: none calls `print` itself. Tables are rich's, whose cells go through
`printable` one by one; what only programs read (completions, the manual page) is our own text.
"""

from __future__ import annotations

import sys
from typing import TextIO

import msgspec

from tidegate.core.text import visible, visible_json


def printable(text: str) -> str:
    """Return `text` as a part of one line, with nothing in it that steers a terminal."""
    return visible(text)


def say(text: object = "", *, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line, to stdout unless another file is given."""
    print(visible(str(text), keep="\t"), file=file or sys.stdout, flush=flush)


def say_lines(text: str, *, file: TextIO | None = None) -> None:
    """Print several lines, where their ends are our own."""
    print(visible(text, keep="\n\t"), file=file or sys.stdout)


def say_json(value: object) -> None:
    """Print a value, or what already is JSON (`msgspec.Raw`), for programs."""
    print(visible_json(msgspec.json.encode(value).decode()))
