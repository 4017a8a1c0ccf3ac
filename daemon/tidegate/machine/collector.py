"""Keeps Python's cyclic garbage collector from stopping the event loop for long.

A full collection looks at every object there is: with 50,000 finished answers that took 0.5 s, in
which no stream moved. Yet almost everything here is freed by reference counting alone, and what the
collector has to find is little. So whatever outlives a full collection is *frozen*: later ones look
only at what has come since, some 18,000 objects at most, which takes 10 ms. What is frozen is freed
by reference counting as before.

A cycle that is lost after it was frozen waits for a *whole look*, which unfreezes everything. That
takes place while little is held, and if possible while no answer is under way. Where much is held
for ever, lost cycles stay: then they are growth that the ledger does not explain, and the guard
replaces the worker.

What was tried instead: no automatic full collections (cycles of what lived for a minute, such as a
connection of plain asyncio's, then stay until a look), fewer objects for each run (there are 14;
with 6 it still took 0.2 s).
"""

from __future__ import annotations

import gc

# New objects, then collections of the generation below, beyond which the next one is of this. What
# is kept is looked at by each generation in turn: three times with CPython's own, which are 700 or
# 2,000, 10 and 10, and twice on average with these. A full collection finds at most 18,000 objects.
THRESHOLDS = (6_000, 0, 0)
# Runs and connections, each some 20 objects of 0.5 us; those of an idle worker take 20 ms.
MOST_HELD = 1_000
LOOK_EVERY_S = 60.0  # while no answer is under way
LOOK_WHEN_BUSY_S = 3600.0


class Collector:
    """This process's only collector. Times are on the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._looked_s = 0.0
        self._has_moved = False  # what has come since the last look may have been frozen and lost

    def start(self, now_s: float) -> None:
        """Freeze the present objects, and from now on those that outlive a full collection."""
        self._looked_s = now_s
        gc.callbacks.append(self._note)
        gc.set_threshold(*THRESHOLDS)
        self._look()

    def look(self, now_s: float, *, held: int, is_quiet: bool) -> bool:
        """Collect over all objects, if it is time and little is held; whether it was done.

        `held` is the number of runs and connections; `is_quiet`: no answer is under way.
        """
        every_s = LOOK_EVERY_S if is_quiet else LOOK_WHEN_BUSY_S
        if held > MOST_HELD or not self._has_moved or now_s - self._looked_s < every_s:
            return False
        self._looked_s = now_s
        self._look()
        return True

    def clear_free_lists(self) -> None:
        """Give back the freed tuples and the like that Python keeps for the next ones.

        It keeps up to 2,000 of each size, and a burst leaves them everywhere in the memory that it
        took: a dozen in each 16 KiB, all of which they hold. A full collection drops them.
        """
        gc.collect()

    def _look(self) -> None:
        gc.unfreeze()
        gc.collect()
        # CPython waits with the next full collection until a quarter of what this one found has
        # come anew. Once more, now that it is frozen: this finds nothing.
        gc.collect()
        self._has_moved = False

    def _note(self, phase: str, about: dict[str, int]) -> None:
        if phase != "stop" or not about["generation"]:
            return
        self._has_moved = True
        if about["generation"] == 2:
            gc.freeze()
