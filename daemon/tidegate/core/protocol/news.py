"""What a page shows of the watchdog: how memory was, and what was done."""

from __future__ import annotations

from msgspec import Struct

# What a chart of memory has marks for; the other kinds of a deed only stand in the list.
MARKS = ("recycle", "restart", "sweep", "upgrade")


class Deed(Struct, frozen=True, kw_only=True):
    """Something that was done or seen, in plain words. `at` is Unix seconds."""

    at: float
    kind: str  # one of MARKS, "level" or "growth"
    text: str


class MemoryPoint(Struct, frozen=True, array_like=True):
    """Memory at one moment, in bytes. `at` is Unix seconds."""

    at: float
    used: int  # of the budget, by all processes
    explained: int  # held by runs and connections, by the ledger
    unexplained: int  # grown in the workers beside that; the rest of `used` is their base
