"""Bounds what a config's text may cost: looked at once, from beginning to end, before parsing.

tomllib takes a time that grows with the square of a dotted key's parts (30,000 of them took more
than a minute, which is what systemd gives the watchdog), and passes on a ValueError for a number of
more than 4,300 digits. The rest of what it does is linear, at up to 5 us an entry. So is this look:
each step goes on where the last one ended, and behind a string without an end there is nothing to
look at. Of files of 1 MiB the worst that was found takes 0.4 s to be judged, all in all.
"""

from __future__ import annotations

import re

from tidegate.core.decoding import Undecodable

MAX_DOTS = 20  # in a key; ours have three
MAX_WORD_LENGTH = 1000  # of a bare key or a number
MAX_ENTRIES = 20_000  # a thousand upstreams with ten settings are half of it

# One of these stands at each place. A string that does not end is none of the first four, and then
# begins with a quote all the same. `++` and `*+` never give back what they took.
_PIECE = re.compile(
    r"""(?P<string>
        "{3}(?:[^"\\]++|\\.|"(?!"")|""(?!"))*+"{3,5}
      | '{3}(?:[^']++|'(?!'')|''(?!'))*+'{3,5}
      | "(?!"")(?:[^"\\\n]++|\\.)*+"
      | '(?!'')[^'\n]*+'
    )
    | (?P<open>["'])
    | (?P<dot>\.)[A-Za-z0-9_\ \t-]*+
    | (?P<comment>(?:\#[^\n]*+\s*+)++)
    | (?P<other>[^"'.\#]++)""",
    re.VERBOSE | re.DOTALL,
)
_LONG_WORD = re.compile(rf"(?<![A-Za-z0-9_+-])[A-Za-z0-9_+-]{{{MAX_WORD_LENGTH + 1}}}")
_ENDS_KEY = re.compile(r"[^A-Za-z0-9_\ \t-]")


def check(text: str) -> None:
    """Refuse what would take too long to parse. Raises Undecodable, with the line."""
    at = dots = entries = 0
    while (piece := _PIECE.match(text, at)) is not None:
        kind, end = piece.lastgroup, piece.end()
        if kind == "open":
            return  # tomllib goes no further either
        if kind == "dot":
            dots += 1
            if dots > MAX_DOTS:
                raise Undecodable(f"a key has more than {MAX_DOTS} dots", _line(text, at))
        elif kind == "comment":
            dots = 0
        elif kind == "other" and _ENDS_KEY.search(text, at, end):
            dots = 0
            entries += sum(text.count(sign, at, end) for sign in "=,[{")
            if entries > MAX_ENTRIES:
                raise Undecodable(f"it has more than {MAX_ENTRIES} entries", _line(text, at))
        if kind != "string" and end - at > MAX_WORD_LENGTH and _LONG_WORD.search(text, at, end):
            what = f"a word or number has more than {MAX_WORD_LENGTH} characters"
            raise Undecodable(what, _line(text, at))
        at = end


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
