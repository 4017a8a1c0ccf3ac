"""Measured memory played again, second by second: a worker's first minutes, then minutes of them.

A recording is some minutes of a real worker under a load that breaks off, stalls and returns, far
above the other scenarios'. Its first minute is played only once a worker, as the start that it is.
Nothing is modelled on top: how far resident memory swings, what of it the ledger explains, and how
the two hang together are as they were read. What lasts hours, such as fragments that pile up or a
load that comes by day, is in no recording of minutes; the model has that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from simulated.worker import Habits, Pair, Worker
from tidegate.core.settings import MIB

RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"
START_S = 60.0
BLOCK_S = (60.0, 180.0)  # played in one piece, so that what belongs together stays together


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Of one worker, readings in order, in bytes."""

    period_s: float
    rss: list[int]
    unexplained: list[int]


@cache
def load(folder: Path = RECORDINGS) -> tuple[Recording, ...]:
    """Load all recordings. Raises FileNotFoundError if there are none."""
    recordings: list[Recording] = []
    for path in sorted(folder.glob("*.json")):
        read = json.loads(path.read_text())
        pairs = zip(read["rss_bytes"], read["ledger_bytes"], strict=True)
        unexplained = [rss - ledger for rss, ledger in pairs]
        recordings.append(
            Recording(
                period_s=float(read["period_s"]), rss=read["rss_bytes"], unexplained=unexplained
            )
        )
    if not recordings:
        raise FileNotFoundError(f"no recordings in {folder}")
    return tuple(recordings)


class Replayed(Worker):
    """A worker that uses memory as recorded ones did, and besides leaks if it is told to.

    Nothing is taken from it by relief: whether that would have helped is in no recording.
    """

    def __init__(self, habits: Habits, chance: Random, recordings: tuple[Recording, ...]) -> None:
        super().__init__(habits, chance)
        self._recordings = recordings
        self._playing = chance.choice(recordings)
        self._at, self._until = 0, len(self._playing.rss)
        self._ledger_bytes = 0
        self._least = Pair(0, 0)

    @property
    def ledger_bytes(self) -> int:
        """Return what its runs accounted for at the last second played."""
        return self._ledger_bytes

    @property
    def least(self) -> Pair:
        """Return the least of either figure in the seconds played last."""
        return self._least

    def _breathe(self, step_s: float) -> None:
        left_s, rss, unexplained = step_s, [], []
        while left_s > 0:
            if self._at >= self._until:
                self._turn()
            playing = self._playing
            count = min(self._until - self._at, max(1, round(left_s / playing.period_s)))
            rss += playing.rss[self._at : self._at + count]
            unexplained += playing.unexplained[self._at : self._at + count]
            self._at += count
            left_s -= count * playing.period_s
        leaked_bytes = int(self.leaked * MIB)
        self._rss = self._need = (rss[-1] + leaked_bytes) / MIB
        self._ledger_bytes = rss[-1] - unexplained[-1]
        least_bytes = min(rss)
        self._least = Pair(least_bytes + leaked_bytes, least_bytes - min(unexplained))

    def _turn(self) -> None:
        """Turn to some minutes of any recording."""
        self._playing = playing = self._chance.choice(self._recordings)
        start, end = round(START_S / playing.period_s), len(playing.rss)
        length = round(self._chance.uniform(*BLOCK_S) / playing.period_s)
        self._at = self._chance.randrange(start, max(start, end - length) + 1)
        self._until = min(end, self._at + length)
