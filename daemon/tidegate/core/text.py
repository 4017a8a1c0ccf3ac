"""Words from elsewhere, before they reach a terminal, a log or a service manager.

Names of models, reasons and errors come from clients and upstreams. What steers a terminal (C0 and
C1), ends a line for some readers only (U+2028), turns the direction of what follows (U+202E) or is
not seen at all (U+200B) is shown by its number: `\\x9b`, `\\u202e`. What Unicode calls printable
stays, in every script.
"""

from __future__ import annotations

import re

# Printing characters are by far the most, so the rest is looked for one by one only where
# `str.isprintable`, which is quick, has said that there is some.
_NOT_ASCII = re.compile(r"[^ -~]")


def count(number: int, noun: str) -> str:
    """Count a noun that takes an s: "1 run", "3 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def visible(text: str, keep: str = "") -> str:
    """Write every character of `text` that does not print as an escape, but for those to `keep`."""
    if text.isprintable():
        return text
    return _NOT_ASCII.sub(lambda found: _shown(found[0], keep), text)


def visible_json(text: str) -> str:
    """Write a JSON text that says the same, with such characters as JSON's own escapes.

    Outside of its strings there are none but white space, which stays.
    """
    if text.isprintable():
        return text
    return _NOT_ASCII.sub(lambda found: _escaped(found[0]), text)


def _shown(char: str, keep: str) -> str:
    if char.isprintable() or char in keep:
        return char
    number = ord(char)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _escaped(char: str) -> str:
    if char.isprintable() or char in "\n\r\t":
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))
