"""A decision of the guard with all that it was made from, so that it can be made again.

`policy.decide` decides from its arguments alone, so a record of them is the whole truth about a
decision: made again from its record it comes out the same, unless another version decides.
"""

from __future__ import annotations

from msgspec import Struct, json

from tidegate.core.decoding import Decoder
from tidegate.core.memory.decision import Decision, Inputs, PolicyState
from tidegate.core.memory.policy import decide
from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.settings import MIB

RECLAIM_EVERY_S = 30.0  # steps act on every tick; one record in so long shows how it goes


class Record(Struct, frozen=True, kw_only=True):
    """One line of the decision log."""

    at: float  # Unix seconds
    version: str  # of the tidegate that decided
    before: PolicyState  # what it remembered
    inputs: Inputs
    decision: Decision


class Difference(Struct, frozen=True, kw_only=True):
    """A field of a decision that came out differently."""

    field: str
    recorded: object
    now: object


def is_news(former: Decision | None, now: Decision) -> bool:
    """Say whether `now` tells anything new; figures that always move do not."""
    if former is None or now.alarm or now.evidence or now.recycle or now.cut or now.give_up:
        return True
    return _gist(former) != _gist(now)


def _gist(decision: Decision) -> tuple[object, ...]:
    return (
        decision.level,
        decision.cause if decision.level else None,  # at rest it follows each run
        decision.squeeze,
        decision.shed.partition(":")[0] if decision.shed else None,
        decision.skipped,
        decision.no_recycle,
    )


def decide_again(record: Record) -> list[Difference]:
    """Find where this version decides otherwise; empty when it decides the same."""
    _, now = decide(record.before, record.inputs)
    old, new = _as_written(record.decision), _as_written(now)
    return [
        Difference(field=name, recorded=old.get(name), now=value)
        for name, value in new.items()
        if old.get(name) != value
    ]


_written = Decoder(dict[str, object])


def _as_written(decision: Decision) -> dict[str, object]:
    """Give the fields as a record holds them, where an infinite figure is null."""
    return _written.decode(json.encode(decision))


def describe(decision: Decision) -> str:
    """Describe what was decided: "sweep (stale, windows), refuse new runs"."""
    deeds = []
    if steps := [step.value for step in decision.steps if step is not ReclaimStep.TRIM]:
        deeds.append(f"sweep ({', '.join(steps)})")
    if ReclaimStep.TRIM in decision.steps:
        deeds.append("tidy up")
    if decision.shed:
        deeds.append(f"refuse new runs ({decision.shed})")
    if decision.evidence:
        deeds.append(f"write evidence ({decision.evidence})")
    if decision.recycle:
        deeds.append(f"recycle the worker ({decision.recycle})")
    if decision.cut:
        deeds.append(f"end a worker ({decision.cut})")
    if decision.give_up:
        deeds.append(f"give up ({decision.give_up})")
    if decision.refused:
        deeds.append(f"no recycle ({decision.refused})")
    if not deeds:
        deeds.append("keep windows small" if decision.squeeze else "nothing to do")
    return ", ".join(deeds)


def standing(decision: Decision) -> str:
    """Describe where memory stood: "level 2, 73 % of 412 MiB"."""
    spendable_mib = decision.spendable_bytes // MIB
    return f"level {decision.level}, {100 * decision.ratio:.0f} % of {spendable_mib} MiB"
