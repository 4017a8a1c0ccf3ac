"""What the journal keeps of a run beside its events: all that a later reader may ask for."""

from __future__ import annotations

from typing import NamedTuple


class JournaledRun(NamedTuple):
    """A run as it was last written. Times are Unix seconds. Never a prompt."""

    id: str
    owner: str  # SHA-256 of the token, "" without one
    token: str  # its name
    path: str  # its format's
    model: str  # as the client calls it
    upstream_model: str  # of the last attempt, as that upstream calls it
    upstreams: tuple[str, ...]  # one for each attempt
    state: str  # the value of a `RunState`; one that is not terminal: it ran when it was written
    reason: str | None
    code: str | None
    created: float
    ended: float | None
    first_seq: int  # of the events that are kept
    next_seq: int
    response_id: str | None
    upstream_response_id: str | None
    streamed: bool
    background: bool
    stored: bool
