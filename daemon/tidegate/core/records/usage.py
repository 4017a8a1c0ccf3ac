"""What an answer cost in tokens, and sums of it. What no upstream said is None, never guessed."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

GROUPS = ("token", "model", "upstream", "day", "format")


class TokenUsage(NamedTuple):
    """The tokens of one answer, as its upstream counted them."""

    input: int | None = None  # what was cached is part of it
    output: int | None = None  # what was thought is part of it
    cached: int | None = None  # of the input
    reasoning: int | None = None  # of the output


NO_USAGE = TokenUsage()


class UsageLine(Struct, frozen=True, kw_only=True):
    """What was used by one token, model, upstream, day or format."""

    key: str
    runs: int
    failed: int  # of them: not completed
    unknown: int  # of them: no upstream said how many tokens
    input: int
    output: int
    cached: int
    reasoning: int
    seconds: float  # from the request to its end, all together
    bytes: int  # of answers
    last: float  # when the newest one began, Unix seconds
    cost: float | None = None  # None: no price is set for any of it
    unpriced: int = 0  # runs with tokens of which no price is set, where `cost` is a number
