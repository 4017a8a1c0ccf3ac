"""The labels of counters: a bounded number, whatever a config has named by and by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

OTHER = "other"
MOST_UPSTREAMS = 10  # that have a label of their own


def own_label(name: str, known: Collection[str]) -> str:
    """Give the label of an upstream; `known` are those that there are already."""
    return name if name in known or len(known) < MOST_UPSTREAMS else OTHER


def by_label(values: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Add up the values of upstreams by their labels."""
    sums: Counter[str] = Counter()
    for name, value in values:
        sums[own_label(name, sums)] += value
    return sums
