"""What the watchdog does about a fault of its own: it costs one event, never the watchdog.

An event is a readable descriptor, a line, a signal, a tick's part, a worker's exit. Each is
handled through `Faults.attempt`, the one place that catches everything: what goes wrong is logged
with its stack, counted for the repair, and the loop goes on. The client or worker that the failed
handler served is told or let go by the caller of `attempt`, for only there it is known.

Some events must not fail for ever: a watchdog that cannot tick, sample memory or see a worker
end is worse than none. Three times in a row of one of these, and it is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

TICK, SAMPLE, EXIT = "the tick", "the sample of memory", "a worker's exit"
WAIT, CLOCK = "the wait", "the clock"
VITAL = (TICK, SAMPLE, EXIT, WAIT, CLOCK)
MOST_IN_A_ROW = 3
PAUSE_S = 0.05  # a loop that fails at every turn walks, and does not spin
STACK_EVERY_S = 60.0  # of one kind; those between are counted
KEPT_S = 3600.0  # for so long after the last one it is a repair
_log = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Handler:
    """What the selector keeps for a descriptor: what to do when it is ready, and when that fails.

    `give_up` says what it costs: it unregisters and closes the descriptor, and lets go or renews
    what it was for.
    """

    what: str
    turn: Callable[[int], object]
    give_up: Callable[[], object]

    def __call__(self, mask: int) -> None:
        """Act on what the selector saw."""
        self.turn(mask)


@dataclass(slots=True)
class _Kind:
    """Faults of one kind of event."""

    in_a_row: int = 0
    untold: int = 0  # since their stack was last logged
    told_s: float = float("-inf")


class Faults:
    """All that went wrong in handlers since the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self.last = ""  # as text
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}  # as many as there are calls of `attempt`
        self._last_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Faults total={self.total} last={self.last!r}>"

    def attempt(self, what: str, act: Callable[[], object]) -> bool:
        """Do it; return False, and log it, when it failed. `what` is one of few names."""
        try:
            act()
        except Exception as error:
            self.note(what, error)
            return False
        if (kind := self._kinds.get(what)) is not None:
            kind.in_a_row = 0
        return True

    def handle(self, handler: Handler, mask: int) -> None:
        """Act on a descriptor that is ready; if that fails, give it up."""
        if not self.attempt(handler.what, lambda: handler(mask)):
            self.attempt(f"{handler.what}, given up", handler.give_up)

    def note(self, what: str, error: Exception) -> None:
        """Log a fault that was caught elsewhere, and count it."""
        now_s = self._clock()
        kind = self._kinds.setdefault(what, _Kind())
        kind.in_a_row += 1
        kind.untold += 1
        self.total += 1
        self.last = f"{what}: {type(error).__name__}: {error}"[:300]
        self._last_s = now_s
        if now_s - kind.told_s >= STACK_EVERY_S:
            often = f" ({kind.untold} times)" if kind.untold > 1 else ""
            _log.error("a fault of tidegate's own in %s%s", what, often, exc_info=error)
            kind.told_s, kind.untold = now_s, 0

    @property
    def is_fresh(self) -> bool:
        """Tell whether there was one just now."""
        return self._clock() - self._last_s < PAUSE_S

    @property
    def recent(self) -> str | None:
        """Return the last one, while it is a repair."""
        return self.last if self._clock() - self._last_s < KEPT_S else None

    @property
    def fatal(self) -> str | None:
        """Say which vital kind has failed too often to go on, if any."""
        for what in VITAL:
            kind = self._kinds.get(what)
            if kind is not None and kind.in_a_row >= MOST_IN_A_ROW:
                return (
                    f"{what} failed {kind.in_a_row} times in a row; the last fault was {self.last}"
                )
        return None
