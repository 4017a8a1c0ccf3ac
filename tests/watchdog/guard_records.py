"""Decisions of the memory guard for tests: made by the guard's own rules, second by second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tidegate import __version__
from tidegate.core.memory import levels as wm
from tidegate.core.memory.decision import Decision, Inputs, PolicyState
from tidegate.core.memory.policy import decide
from tidegate.core.memory.record import Record
from tidegate.core.settings import MIB
from tidegate.watchdog.guard.decision_log import DecisionLog

LIMITS = wm.BudgetLimits(budget_bytes=256 * MIB, hard=True, machine_bytes=8192 * MIB)
BASE_BYTES = 44 * MIB
AT = 1_795_391_112.0  # Unix seconds of second 0


def inputs(now_s: float, ratio: float, **more: Any) -> Inputs:
    """A worker that holds `ratio` of the spendable part, nearly all of it in runs."""
    spendable = wm.spendable_bytes(LIMITS.budget_bytes, BASE_BYTES)
    held = int(ratio * spendable)
    seen = wm.Reading(
        used_bytes=held + BASE_BYTES + 13 * MIB,
        held_bytes=held,
        base_bytes=BASE_BYTES,
        ledger_bytes=max(0, held - int(0.2 * spendable)),
        available_bytes=4096 * MIB,
    )
    return Inputs(now_s=now_s, reading=seen, limits=LIMITS, generation=1, recycles_left=3, **more)


def play(log: DecisionLog, ratios: list[float], state: PolicyState | None = None) -> list[Decision]:
    """Decide once a second about these ratios, note each decision, and wait for the disk."""
    state = state or PolicyState()
    made = []
    for second, ratio in enumerate(ratios):
        given = inputs(float(second), ratio)
        before = state
        state, decision = decide(before, given)
        log.note(AT + second, before, given, decision)
        made.append(decision)
        log.close()
    return made


def log_of(directory: Path, ratios: list[float]) -> Path:
    """A log with a record for each of these ratios, one a second, none of which knows another."""
    lines = []
    for second, ratio in enumerate(ratios):
        given = inputs(float(second), ratio)
        _, decision = decide(PolicyState(), given)
        record = Record(
            at=AT + second,
            version=__version__,
            before=PolicyState(),
            inputs=given,
            decision=decision,
        )
        lines.append(msgspec.json.encode(record) + b"\n")
    path = directory / "decisions.jsonl"
    path.write_bytes(b"".join(lines))
    return path
