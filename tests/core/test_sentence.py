"""One sentence that says how it is."""

from __future__ import annotations

import pytest

from tidegate.core.protocol.status import MemoryState
from tidegate.core.sentence import HealthSentence, tell_health
from tidegate.core.settings import MIB

FLAT = MemoryState(used_bytes=69 * MIB + 5, budget_bytes=1024 * MIB)


@pytest.mark.parametrize(
    ("state", "reason", "memory", "flat_s", "running", "told"),
    [
        (
            "serving",
            None,
            FLAT,
            6 * 86400.0 + 5,
            3,
            HealthSentence(
                "healthy", "Healthy. 69 of 1,024 MiB, flat for 6 days, 3 answers running."
            ),
        ),
        (
            "serving",
            None,
            FLAT,
            30.0,
            0,
            HealthSentence("healthy", "Healthy. 69 of 1,024 MiB, no answers running."),
        ),
        (
            "degraded",
            "failing upstreams: box",
            FLAT,
            3700.0,
            1,
            HealthSentence(
                "degraded",
                "Serving, with trouble: failing upstreams: box. 69 of 1,024 MiB, flat for 1 hour, "
                "1 answer running.",
            ),
        ),
        (
            "starting",
            None,
            MemoryState(),
            0.0,
            0,
            HealthSentence("degraded", "Starting. No answers running."),
        ),
        (
            "parked",
            "config.toml, line 3: unknown key.",
            FLAT,
            0.0,
            0,
            HealthSentence("parked", "Parked: config.toml, line 3: unknown key."),
        ),
        (
            "serving",
            None,
            MemoryState(
                used_bytes=900 * MIB,
                budget_bytes=1024 * MIB,
                growth_bytes_per_h=40 * MIB,
                limit_in_s=7300.0,
            ),
            1000.0,
            2,
            HealthSentence(
                "healthy",
                "Healthy. 900 of 1,024 MiB, growing by 40 MiB an hour, full in 2 hours, "
                "2 answers running.",
            ),
        ),
    ],
)
def test_it_says_state_memory_trend_and_answers(
    state: str,
    reason: str | None,
    memory: MemoryState,
    flat_s: float,
    running: int,
    told: HealthSentence,
) -> None:
    """In that order, without what is not known."""
    assert tell_health(state, reason, memory, flat_s=flat_s, running=running) == told


def test_a_state_of_another_version_is_said_as_it_is() -> None:
    """A watchdog may be newer than the worker that tells of it."""
    told = tell_health("hibernating", None, FLAT, flat_s=0.0, running=0)
    assert told == HealthSentence("degraded", "Hibernating. 69 of 1,024 MiB, no answers running.")
