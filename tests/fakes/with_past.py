"""tidegate with two hours behind it: `python with_past.py run …`, and everything else as it ships.

Its samples and deeds are made up where it begins; what an upgrade hands on is left as it is.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence

from tidegate.cli.main import main
from tidegate.core.protocol.news import Deed
from tidegate.watchdog import parts
from tidegate.watchdog.guard.chronicle import Chronicle
from tidegate.watchdog.guard.samples import EVERY_S, KEPT, Samples

MIB = 1024 * 1024
BASE = 70 * MIB
RECYCLED, SWEPT = 250, 520  # at which of the 720 samples


def past_rows(now: float) -> list[Sequence[float]]:
    """Two hours: a leak that a recycle ends, waves of answers, some of them stuck until a sweep."""
    rows: list[Sequence[float]] = []
    for n in range(KEPT):
        wave = 26 + 18 * math.sin(n / 23) + 7 * math.sin(n / 5.3) + 4 * math.sin(n / 1.7)
        stuck = (n - 380) * 0.85 if 380 < n < SWEPT else 0
        ends = min(1.0, (KEPT - n) / 30)  # to where the running one begins
        ledger = max(0, wave + stuck) * ends * MIB
        unexplained = max(0, (n - 40) * 0.55) * MIB if n < RECYCLED else 2 * MIB * ends
        used = BASE + ledger + unexplained
        at = now - (KEPT - n) * EVERY_S
        rows.append((at, round(used), round(used), round(ledger), 0, round(unexplained)))
    return rows


def past_deeds(now: float) -> list[Deed]:
    """What a watchdog would have noted on the way."""
    told = (
        (RECYCLED, "recycle", "worker 1 recycled: 112 MiB that no answer explains"),
        (SWEPT, "sweep", "swept 31 stuck answers, 118 MiB back"),
    )
    return [Deed(at=now - (KEPT - n) * EVERY_S, kind=kind, text=text) for n, kind, text in told]


def samples(rows: Iterable[Sequence[float]] = ()) -> Samples:
    """Samples as they were, or made up."""
    return Samples(list(rows) or past_rows(time.time()))


def chronicle(deeds: Iterable[Deed] = ()) -> Chronicle:
    """Deeds as they were, or made up."""
    return Chronicle(list(deeds) or past_deeds(time.time()))


if __name__ == "__main__":
    parts.Samples, parts.Chronicle = samples, chronicle  # type: ignore[assignment,misc]
    sys.exit(main(sys.argv[1:]))
