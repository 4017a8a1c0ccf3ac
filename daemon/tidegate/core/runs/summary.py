"""Runs and their attempts, as listings show them."""

from __future__ import annotations

from msgspec import Struct


class RunSummary(Struct, frozen=True, kw_only=True):
    """One run as `/v1/runs` and `tidegate runs` show it. Times are Unix seconds."""

    id: str
    object: str = "run"
    state: str
    reason: str | None
    model: str
    upstream: str | None
    attempts: int
    created: float
    ended: float | None
    first_seq: int
    next_seq: int
    bytes: int
    subscribers: int
    place: str = "memory"  # or "journal", "history": where it is known from
    token: str | None = None  # the name of whose it is; None: without a token, or revoked since


class AttemptSummary(Struct, frozen=True, kw_only=True):
    """One try at one upstream, as `/v1/runs/{id}` shows it."""

    number: int
    upstream: str
    model: str
    tries: int  # more than one where it was asked to come again
    outcome: str | None  # None: under way
    seconds: float
    upstream_request_id: str | None = None
