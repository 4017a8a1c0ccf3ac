"""A row of the history: what is remembered of a run, and never a word of it."""

from __future__ import annotations

from typing import NamedTuple

from tidegate.core.records.usage import NO_USAGE, TokenUsage


class RunRow(NamedTuple):
    """One run that is over. Times are Unix seconds, durations seconds, sizes bytes."""

    id: str
    owner: str  # SHA-256 of the token, "" without one
    token: str  # its name, "" without one
    asked: str  # the model, as the client called it
    upstream: str  # "": none was asked
    model: str  # as the upstream calls it
    format: str  # its name
    streamed: bool
    outcome: str  # the value of a terminal `RunState`
    code: str  # of the reason, "" where it completed
    attempts: int
    began: float
    ended: float
    queued_s: float  # before the first upstream was asked
    first_output_s: float | None  # from the request; None: there was none, or it was not a stream
    request_bytes: int
    answer_bytes: int
    usage: TokenUsage = NO_USAGE

    @property
    def duration_s(self) -> float:
        """Give the time from the request to its end."""
        return max(0.0, self.ended - self.began)
