"""How tidegate is, in one sentence: "Healthy. 69 of 1,024 MiB, flat for 6 days, ..."."""

from __future__ import annotations

from typing import NamedTuple

from tidegate.core.protocol.status import MemoryState
from tidegate.core.settings import MIB

HEALTHY, DEGRADED, PARKED, DRAINING = "healthy", "degraded", "parked", "draining"
# From the daemon's state in one word: what a person who looks at it wants to know.
_WORDS = {
    "serving": (HEALTHY, "Healthy."),
    "recycling": (HEALTHY, "Healthy, a new worker takes over."),
    "starting": (DEGRADED, "Starting."),
    "degraded": (DEGRADED, "Serving, with trouble:"),
    "parked": (PARKED, "Parked:"),
    "draining": (DRAINING, "Stopping: answers have time to finish."),
    "stopping": (DRAINING, "Stopping."),
}
_FLAT_FROM_S = 600.0  # before, it says nothing about growth
_GROWS_FROM_BYTES = MIB  # an hour; below it is noise


class HealthSentence(NamedTuple):
    """The state in one word, and the sentence."""

    state: str
    sentence: str


def tell_health(
    state: str, reason: str | None, memory: MemoryState, *, flat_s: float, running: int
) -> HealthSentence:
    """Say how it is. `state` and `reason` are the status's; `flat_s`: since no growth was seen."""
    word, opening = _WORDS.get(state, (DEGRADED, f"{state.capitalize()}."))
    if reason and opening.endswith(":"):
        opening = f"{opening} {reason.rstrip('.')}."
    if word == PARKED:
        return HealthSentence(word, opening)
    used, budget = memory.used_bytes // MIB, memory.budget_bytes // MIB
    measured = [f"{used:,} of {budget:,} MiB", *_trend(memory, flat_s)] if budget else []
    figures = ", ".join([*measured, f"{_answers(running)} running"])
    return HealthSentence(word, f"{opening} {figures[0].upper()}{figures[1:]}.")


def _trend(memory: MemoryState, flat_s: float) -> list[str]:
    growth = memory.growth_bytes_per_h or 0
    if memory.limit_in_s is not None and growth >= _GROWS_FROM_BYTES:
        return [f"growing by {growth // MIB} MiB an hour, full in {_age(memory.limit_in_s)}"]
    return [f"flat for {_age(flat_s)}"] if flat_s >= _FLAT_FROM_S else []


def _answers(running: int) -> str:
    return f"{running or 'no'} answer{'' if running == 1 else 's'}"


def _age(age_s: float) -> str:
    """Write an age in the largest unit that fits: "6 days", "1 hour", "12 minutes"."""
    for unit, length_s in (("day", 86400), ("hour", 3600)):
        if age_s >= length_s:
            number = int(age_s // length_s)
            return f"{number} {unit}{'' if number == 1 else 's'}"
    minutes = max(1, int(age_s // 60))
    return f"{minutes} minute{'' if minutes == 1 else 's'}"
