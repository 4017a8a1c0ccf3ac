"""What is counted of runs that are over, for Prometheus.

A counter has a bounded number of label sets, whatever models and upstreams a config has named by
and by: what comes beyond them is counted as "other".
"""

from __future__ import annotations

from collections import Counter

from tidegate.core.histogram import Histogram
from tidegate.core.labels import OTHER, own_label
from tidegate.core.records.history import RunRow
from tidegate.core.records.usage import NO_USAGE, TokenUsage

NO_UPSTREAM = "none"  # none was asked
MOST_KINDS = 80  # of requests, by upstream, format and outcome
# From an embedding (tens of milliseconds) to the longest answer that is allowed.
RUN_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 3600)


class RunTally:
    """Counts the runs of a generation that are over."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()  # by upstream, format, outcome
        self.tokens: Counter[tuple[str, str]] = Counter()  # by upstream, direction
        self.seconds = Histogram(RUN_BOUNDS_S)
        self._upstreams: set[str] = set()

    def __repr__(self) -> str:
        return f"<RunTally {self.requests.total()} runs>"

    def count(self, row: RunRow) -> None:
        """Count one more."""
        upstream = row.upstream or NO_UPSTREAM
        kind = (upstream, row.format, row.outcome)
        if kind not in self.requests and len(self.requests) >= MOST_KINDS:
            kind = (OTHER, OTHER, row.outcome)
        self.requests[kind] += 1
        self.seconds.observe(row.duration_s)
        if row.usage is NO_USAGE:
            return
        upstream = own_label(upstream, self._upstreams)
        self._upstreams.add(upstream)
        for direction, tokens in zip(TokenUsage._fields, row.usage, strict=True):
            if tokens is not None:
                self.tokens[upstream, direction] += tokens
