"""What the fleet of workers is told, and what it asks for: `lifecycle`'s events and effects."""

from __future__ import annotations

from msgspec import Struct

# --- what comes in ------------------------------------------------------------------------


class Begin(Struct, frozen=True):
    """Start the first generation."""


class Tick(Struct, frozen=True):
    """Time passed."""


class BecameReady(Struct, frozen=True):
    """A worker said that it can serve."""

    number: int


class Beat(Struct, frozen=True):
    """A worker's loop turned."""

    number: int


class Exited(Struct, frozen=True):
    """A worker's process is gone, or its channel is: both mean the same."""

    number: int
    reason: str


class Fail(Struct, frozen=True):
    """End a worker at once: it speaks nonsense, or (`notice`) it is the memory guard's last resort.

    With notice it may use the time for its stacks to tell its readers.
    """

    number: int
    reason: str
    notice: bool = False


class Escalate(Struct, frozen=True):
    """What the watchdog can do itself was of no use: the service manager shall decide."""

    reason: str


class Recycle(Struct, frozen=True):
    """Start the next generation; `planned` by the guard, it counts against the hour's budget."""

    reason: str
    planned: bool = False


class Stop(Struct, frozen=True, kw_only=True):
    """Drain everything and end; a second one ends at once."""

    limit_s: float


Event = Begin | Tick | BecameReady | Beat | Exited | Fail | Escalate | Recycle | Stop


# --- what goes out ------------------------------------------------------------------------


class Spawn(Struct, frozen=True):
    """Start a worker of that number."""

    number: int


class Drain(Struct, frozen=True):
    """Tell a worker to accept nothing new. `successor` is None when the daemon stops."""

    number: int
    limit_s: float
    successor: int | None


class Kill(Struct, frozen=True):
    """End a worker's process; `stacks` asks it first to write down where it stands.

    `notice` also lets it tell its readers why.
    """

    number: int
    reason: str
    stacks: bool
    notice: bool = False


class Replace(Struct, frozen=True):
    """A death that was not asked for: a new generation follows after `delay_s`."""

    number: int
    reason: str
    delay_s: float


class Recycled(Struct, frozen=True):
    """The former generation is gone, or (`error`) the new one never served."""

    error: str | None


class Refuse(Struct, frozen=True):
    """The recycle that was asked for does not happen."""

    error: str


class ClockGap(Struct, frozen=True):
    """The clock stood still for `gap_s`; every deadline was moved."""

    gap_s: float


class GiveUp(Struct, frozen=True):
    """Another try would end as the last ones did."""

    reason: str


class Over(Struct, frozen=True):
    """Everything that was to be stopped is gone."""


Effect = Spawn | Drain | Kill | Replace | Recycled | Refuse | ClockGap | GiveUp | Over
