"""Canaries: texts that must come out nowhere, and the search for them in every form.

A canary is found whole, by either end of it (it may have been cut), and in what it becomes
when it is escaped or encoded.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from html import escape
from urllib.parse import quote

END = 16  # characters of an end that no other canary has


def forms(canary: str) -> Iterator[str]:
    """How a text may appear: plain, escaped, percent-encoded, hexadecimal, in base64."""
    data = canary.encode()
    yield canary
    yield json.dumps(canary)[1:-1]
    yield json.dumps(canary)[1:-1].replace("/", "\\/")
    yield escape(canary)
    yield quote(canary, safe="")
    yield quote(canary)
    yield canary.replace(" ", "+")
    yield canary.replace(" ", "-").lower()  # in a file's name
    yield data.hex()
    yield data.hex().upper()
    for shift in range(3):  # base64 of a longer text: without the ends, which neighbours change
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(shift) + data)[4:-4].decode()


def found(canaries: Mapping[str, str], texts: Mapping[str, str]) -> list[str]:
    """Which canary (name → text) is in which text, in which form."""
    wanted = {
        name: dict.fromkeys([*forms(canary), canary[:END], canary[-END:]])
        for name, canary in canaries.items()
    }
    return [
        f"{name} as {form!r} is in {place}: …{_around(text, form)}…"
        for place, text in texts.items()
        for name, every_form in wanted.items()
        for form in every_form
        if form in text
    ]


def _around(text: str, form: str) -> str:
    at = text.index(form)
    return text[max(0, at - 80) : at + len(form) + 40]
