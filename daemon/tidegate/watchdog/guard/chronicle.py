"""What the watchdog did and saw, in plain words, for the page. The oldest is forgotten first.

Bounded, and left to the program that an upgrade becomes. Nothing in it names a client or a model.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from tidegate.core.protocol.news import Deed

KEPT = 200
MAX_TEXT = 300
# What sweeps release, as a person would say it; by step of reclaiming.
SWEPT = {
    "kept": "kept answers",
    "stale": "stale answers",
    "stalled": "answers with stuck readers",
    "finished": "finished answers",
    "background": "answers without readers",
    "windows": "windows of running answers",
    "ledger": "answers at the limit",
}


class Chronicle:
    """Keep the last deeds."""

    def __init__(self, deeds: Iterable[Deed] = (), clock: Callable[[], float] = time.time) -> None:
        """Begin with the `deeds` of a former program. `clock` gives Unix seconds."""
        self._deeds: deque[Deed] = deque(deeds, maxlen=KEPT)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Chronicle {len(self._deeds)} of {KEPT}>"

    def note(self, kind: str, text: str) -> None:
        """Add a deed of now."""
        self._deeds.append(Deed(at=self._clock(), kind=kind, text=text[:MAX_TEXT]))

    def deeds(self, since: float = 0.0) -> list[Deed]:
        """List those that are newer than `since`, oldest first."""
        return [deed for deed in self._deeds if deed.at > since]

    def last(self, kind: str) -> float | None:
        """Tell when a deed of that kind was noted last, in Unix seconds."""
        return next((deed.at for deed in reversed(self._deeds) if deed.kind == kind), None)
