"""The last two hours of memory, for the bundles: one entry for each ten seconds.

Plain arrays, because 720 objects of five numbers would cost the watchdog ten times as much as the
25 KiB that they are. Of each ten seconds the sample with the highest use stays.
"""

from __future__ import annotations

from array import array

EVERY_S = 10.0
KEPT = 720  # two hours
COLUMNS = ("at", "used_bytes", "worker_rss_bytes", "ledger_bytes", "level")


class Samples:
    """A ring of samples. `rows` gives them oldest first, in the order of COLUMNS."""

    def __init__(self) -> None:
        self._at = array("d", bytes(8 * KEPT))
        self._used = array("Q", bytes(8 * KEPT))
        self._rss = array("Q", bytes(8 * KEPT))
        self._ledger = array("Q", bytes(8 * KEPT))
        self._level = array("B", bytes(KEPT))
        self._count = 0  # entries ever begun
        self._next_s = float("-inf")  # when the next one begins

    def __repr__(self) -> str:
        return f"<Samples {len(self)} of {KEPT}>"

    def __len__(self) -> int:
        return min(self._count, KEPT)

    def add(
        self,
        now_s: float,
        at: float,
        *,
        used_bytes: int,
        worker_rss_bytes: int,
        ledger_bytes: int,
        level: int,
    ) -> None:
        """Add a sample. `now_s` is monotonic, `at` Unix seconds."""
        if now_s >= self._next_s or now_s < self._next_s - EVERY_S:
            self._next_s = now_s + EVERY_S
            self._count += 1
        elif used_bytes <= self._used[(self._count - 1) % KEPT]:
            return
        place = (self._count - 1) % KEPT
        self._at[place] = at
        self._used[place] = used_bytes
        self._rss[place] = worker_rss_bytes
        self._ledger[place] = ledger_bytes
        self._level[place] = level

    def rows(self) -> list[tuple[float, int, int, int, int]]:
        """List every entry, oldest first."""
        first = self._count - len(self)
        return [
            (
                round(self._at[place], 1),
                self._used[place],
                self._rss[place],
                self._ledger[place],
                self._level[place],
            )
            for place in (n % KEPT for n in range(first, self._count))
        ]
