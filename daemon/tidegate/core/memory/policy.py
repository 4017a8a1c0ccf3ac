"""What is done about memory: which reclaim steps, whether to refuse, to recycle, to cut.

`decide` is asked once a second with everything that is known, and answers from that and from what
it remembers alone: no clock, no chance, nothing read. So each decision can be written down with
its inputs, and comes out the same when it is made again.

It acts for as long as a level holds, not when the level changes. Memory that the ledger explains
is swept; memory that it does not explain is first asked back from the allocator, and then the
worker is recycled. A disruption (a recycle, a cut) takes two readings: the first orders the
evidence, the second looks again.
"""

from __future__ import annotations

from msgspec.structs import replace

from tidegate.core.memory import levels
from tidegate.core.memory.decision import (
    CUT,
    RECYCLE,
    Decision,
    Disruption,
    Inputs,
    NoRecycle,
    PolicyState,
)
from tidegate.core.memory.growth import forecast_s
from tidegate.core.memory.levels import LAST_LEVEL, Standing, Watermark
from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.settings import MIB

# From which level on each step is due, in the order in which they are taken: what costs no reader
# anything first, and the trim last, because it gives back what the others freed.
STEPS: tuple[tuple[int, ReclaimStep], ...] = (
    (1, ReclaimStep.KEPT),
    (2, ReclaimStep.STALE),
    (4, ReclaimStep.FINISHED),
    (3, ReclaimStep.STALLED),
    (4, ReclaimStep.BACKGROUND),
    (4, ReclaimStep.WINDOWS),
    (1, ReclaimStep.TRIM),
)
KEPT_AFTER_S = 60.0  # at level 1 or above; before, what is kept may be asked for as promised
TRIM_EVERY_S = 30.0  # a trim walks the whole heap
# While new runs are refused: what lies free in the heap must not be why they still are.
TRIM_SOON_S = 5.0
TRIM_LIMIT_S = 5.0  # a worker that has not answered by then is judged without its answer
SHRINK_LEVEL = 2
SHED_LEVEL = 3
HARD_LEVEL = 4

# What was not touched for so long is stale: ten minutes when memory begins to be short, half a
# minute near the top.
STALE_MOST_S, STALE_LEAST_S = 600.0, 30.0
STALE_FROM, STALE_TO = levels.ENTER[SHRINK_LEVEL - 1], levels.ENTER[HARD_LEVEL - 1]

USELESS_SHARE = 0.05  # of what a step promised: freeing less twice makes it useless
USELESS_TIMES = 2
SKIP_S = 300.0  # after which it is tried once more

UNEXPLAINED_SHARE = 0.25  # of the spendable part: beyond it, a sweep would not help
# What any worker that has served keeps, a new one soon would too: recycling for less is of no use.
UNEXPLAINED_LEAST_BYTES = levels.WORKER_KEEPS_BYTES
UNEXPLAINED_S = 5.0  # the ledger's figure is up to a second older than the sample
SLACK_SHARE = 0.5  # of what is unexplained: so much free in the allocator explains it

# Growth is judged over buckets (5 minutes), and what follows from it is counted in them too.
ACT_BUCKETS = 288  # 24 h: a leak that takes longer is told, not acted upon
SOON_BUCKETS = 12  # 1 h: a planned recycle waits no longer for a quiet minute
HARD_BUCKETS = 2  # 10 min: if nothing else is possible, level 4

LAST_READINGS = 2  # at level 5 in a row before the evidence; the cut looks a third time
EVIDENCE_LIMIT_S = 3.0  # a bundle has one second; a disk that hangs does not stop us
DISRUPTION_PAUSE_S = 60.0  # before the same harm is done again: the last one needs time to show
CUTS_PER_HOUR = 3  # beyond, a new worker does not help: the service manager decides
FIRST_EVIDENCE_S = 3600.0  # between two bundles for reaching level 2
HOUR_S = 3600.0
GAP_S = 5.0  # a tick later than this: the clock stood still, and what it counted means nothing


def decide(state: PolicyState, inputs: Inputs) -> tuple[PolicyState, Decision]:
    """Decide what to do now, and what to remember."""
    state = _of_generation(_kept_time(state, inputs.now_s), inputs)
    mark, standing = levels.judge(
        state.mark,
        inputs.reading,
        inputs.limits,
        inputs.now_s,
        is_active=inputs.active_runs > 0,
    )
    state = replace(_measured(state, inputs), mark=mark, raised_s=_raised_s(state, mark, inputs))
    unexplained = max(0, inputs.reading.held_bytes - inputs.reading.ledger_bytes)
    cause = _cause(state, inputs, standing, unexplained)
    forecast = _forecast_s(inputs, standing)
    state = _counted(state, inputs, standing, cause)
    state, alarm = _alarm(state, inputs, forecast)

    wanted, state = _wanted(state, inputs, cause, forecast)
    refused = _why_not(wanted, inputs)
    state, due = _due(state, inputs, None if refused else wanted)
    state, first_evidence = _first_evidence(state, inputs)

    no_way_out = refused is not None and _is_urgent(wanted, inputs, forecast)
    level = max(mark.level, HARD_LEVEL) if no_way_out and _is_hard(inputs, forecast) else mark.level
    state, steps, skipped = _steps(state, inputs, level, cause)
    ordered = state.harm if state.harm and state.harm.since_s == inputs.now_s else None
    done = due.reason if due else None
    is_cut = due is not None and due.kind == CUT
    state, give_up = _give_up(state, inputs) if is_cut else (state, None)
    return state, Decision(
        level=level,
        ratio=standing.ratio,
        spendable_bytes=standing.spendable_bytes,
        ledger_limit_bytes=standing.ledger_limit_bytes,
        unexplained_bytes=unexplained,
        cause=cause,
        forecast_s=forecast,
        steps=steps,
        skipped=skipped,
        stale_after_s=stale_after_s(standing.ratio),
        squeeze=level >= SHRINK_LEVEL,
        shed=_shed(level, refused if no_way_out else None),
        alarm=alarm,
        evidence=f"{ordered.kind}: {ordered.reason}" if ordered else (alarm or first_evidence),
        recycle=done if not is_cut else None,
        cut=done if is_cut and give_up is None else None,
        give_up=give_up,
        refused=refused,
    )


def stale_after_s(ratio: float) -> float:
    """Count the seconds after which an untouched run is stale: fewer the fuller memory is."""
    part = (ratio - STALE_FROM) / (STALE_TO - STALE_FROM)
    return STALE_MOST_S - min(1.0, max(0.0, part)) * (STALE_MOST_S - STALE_LEAST_S)


# --- what is known ----------------------------------------------------------------------------


def _kept_time(state: PolicyState, now_s: float) -> PolicyState:
    """Begin anew what was being counted, after a gap in the clock."""
    former_s = state.ticked_s
    state = replace(state, ticked_s=now_s)
    if former_s is None or 0 <= now_s - former_s <= GAP_S:
        return state
    return replace(
        state,
        mark=levels.forget_time(state.mark),
        raised_s=None,
        unexplained_since_s=None,
        last_readings=0,
        harm=None,
        planned_s=None,
    )


def _of_generation(state: PolicyState, inputs: Inputs) -> PolicyState:
    """Forget what was remembered of a worker that has gone: the next begins at its own level.

    While the former one drains its memory counts, and so does what was remembered.
    """
    former = state.generation
    state = replace(state, generation=inputs.generation)
    if former is None or former == inputs.generation or inputs.is_recycling:
        return state
    return replace(
        state,
        mark=Watermark(),
        raised_s=None,
        unexplained_since_s=None,
        last_readings=0,
        harm=None,
    )


def _raised_s(state: PolicyState, mark: Watermark, inputs: Inputs) -> float | None:
    if not mark.level:
        return None
    return inputs.now_s if state.raised_s is None else state.raised_s


def _measured(state: PolicyState, inputs: Inputs) -> PolicyState:
    """Take in what the steps freed: one that twice frees next to nothing is skipped for a while."""
    useless, skipped = dict(state.useless), dict(state.skipped_until_s)
    for report in inputs.relieved:
        if not report.promised_bytes:
            continue  # it had nothing to do, which says nothing of its use
        helped = report.freed_bytes >= USELESS_SHARE * report.promised_bytes
        useless[report.step] = 0 if helped else useless.get(report.step, 0) + 1
        if useless[report.step] >= USELESS_TIMES:
            skipped[report.step] = inputs.now_s + SKIP_S
            useless[report.step] = USELESS_TIMES - 1  # when it is tried again, once is enough
    still = {step: until_s for step, until_s in skipped.items() if until_s > inputs.now_s}
    return replace(state, useless=useless, skipped_until_s=still)


def _cause(state: PolicyState, inputs: Inputs, standing: Standing, unexplained_bytes: int) -> str:
    """Say what holds the memory: runs, free places in the allocator, or unexplained objects."""
    share_bytes = UNEXPLAINED_SHARE * standing.spendable_bytes
    if unexplained_bytes <= max(UNEXPLAINED_LEAST_BYTES, share_bytes):
        return "explained" if inputs.reading.ledger_bytes > MIB else "none"
    is_slack = inputs.slack_bytes >= SLACK_SHARE * unexplained_bytes
    return (
        "slack"
        if is_slack and ReclaimStep.TRIM.value not in state.skipped_until_s
        else "unaccounted"
    )


def _forecast_s(inputs: Inputs, standing: Standing) -> float | None:
    if inputs.finding is None or inputs.finding.bytes_per_h is None:
        return None
    room_bytes = standing.spendable_bytes - max(0, inputs.reading.held_bytes)
    return forecast_s(inputs.finding.bytes_per_h, max(0, room_bytes))


def _counted(state: PolicyState, inputs: Inputs, standing: Standing, cause: str) -> PolicyState:
    """Count since when memory is unexplained, and how often in a row it was level 5."""
    since_s = None
    if state.mark.level >= SHRINK_LEVEL and cause in {"slack", "unaccounted"}:
        since_s = state.unexplained_since_s
        since_s = inputs.now_s if since_s is None else since_s
    is_last = standing.reading_level == LAST_LEVEL  # of this very reading: no dwell for a death
    return replace(
        state,
        unexplained_since_s=since_s,
        last_readings=state.last_readings + 1 if is_last else 0,
    )


def _alarm(
    state: PolicyState, inputs: Inputs, forecast: float | None
) -> tuple[PolicyState, str | None]:
    """Tell confirmed growth once; it is over when a bucket no longer confirms it."""
    finding = inputs.finding
    confirmed = finding is not None and finding.is_confirmed
    alarm = None
    if confirmed and not state.alarmed and finding is not None:
        mib_per_h = (finding.bytes_per_h or 0.0) / MIB
        until = "" if forecast is None else f", full in {forecast / HOUR_S:.1f} h"
        alarm = f"growth: {mib_per_h:.1f} MiB/h that no run explains{until}"
    return replace(state, alarmed=confirmed), alarm


# --- reclaim ----------------------------------------------------------------------------------


def _steps(
    state: PolicyState, inputs: Inputs, level: int, cause: str
) -> tuple[PolicyState, tuple[ReclaimStep, ...], tuple[ReclaimStep, ...]]:
    """Choose the steps due at this level, and those left out because they were of no use."""
    due = [step for from_level, step in STEPS if level >= from_level]
    raised_s = state.raised_s
    if ReclaimStep.KEPT in due and (raised_s is None or inputs.now_s - raised_s < KEPT_AFTER_S):
        due.remove(ReclaimStep.KEPT)
    if cause == "slack" and ReclaimStep.TRIM not in due:
        due.append(ReclaimStep.TRIM)
    skipped = tuple(step for step in due if step.value in state.skipped_until_s)
    steps = [step for step in due if step not in skipped]
    if ReclaimStep.TRIM in steps and not _is_trim_due(state, inputs):
        steps.remove(ReclaimStep.TRIM)
    if inputs.relieving or not inputs.generation:
        return state, (), skipped
    if ReclaimStep.TRIM in steps:
        state = replace(state, tidied_s=inputs.now_s)
    return state, tuple(steps), skipped


def _is_trim_due(state: PolicyState, inputs: Inputs) -> bool:
    """Say whether a trim is due: now and then, and at once when memory begins to be unexplained."""
    if state.tidied_s is None:
        return True
    since_s = state.unexplained_since_s
    if since_s is not None and state.tidied_s < since_s:
        return True
    every_s = TRIM_SOON_S if state.mark.level >= SHED_LEVEL else TRIM_EVERY_S
    return inputs.now_s - state.tidied_s >= every_s


def _shed(level: int, no_way_out: str | None) -> str | None:
    if no_way_out is not None:
        return f"memory that cannot be accounted for: {no_way_out}"
    return f"memory level {level}" if level >= SHED_LEVEL else None


# --- disruption -------------------------------------------------------------------------------


def _wanted(
    state: PolicyState, inputs: Inputs, cause: str, forecast: float | None
) -> tuple[Disruption | None, PolicyState]:
    """Say what would have to be done if nothing spoke against it."""
    now_s = inputs.now_s
    if state.last_readings >= LAST_READINGS:
        return Disruption(kind=CUT, reason="memory", since_s=now_s), state
    if inputs.is_recycling or not inputs.generation:
        return None, replace(state, planned_s=None)
    since_s = state.unexplained_since_s
    if (
        cause == "unaccounted"
        and since_s is not None
        and now_s - since_s >= UNEXPLAINED_S
        and (_has_trimmed(state, inputs) or ReclaimStep.TRIM.value in state.skipped_until_s)
    ):
        return Disruption(kind=RECYCLE, reason="memory", since_s=now_s), state
    plan = _plan(inputs, forecast)
    if plan is None:
        return None, replace(state, planned_s=None)
    planned_s = now_s if state.planned_s is None else state.planned_s
    state = replace(state, planned_s=planned_s)
    soon_s = SOON_BUCKETS * inputs.growth.bucket_s
    is_pressing = forecast is not None and plan == "growth" and forecast <= soon_s
    if inputs.active_runs == 0 or is_pressing or now_s - planned_s >= soon_s:
        return Disruption(kind=RECYCLE, reason=plan, since_s=now_s), state
    return None, state


def _has_trimmed(state: PolicyState, inputs: Inputs) -> bool:
    """Say whether a trim was tried since memory is unexplained, and its time to show is over."""
    since_s, tidied_s = state.unexplained_since_s, state.tidied_s
    if since_s is None or tidied_s is None or tidied_s < since_s:
        return False
    return not inputs.relieving or inputs.now_s - tidied_s >= TRIM_LIMIT_S


def _plan(inputs: Inputs, forecast: float | None) -> str | None:
    """Say why the worker should be recycled in the next quiet minute."""
    confirmed = inputs.finding is not None and inputs.finding.is_confirmed
    if confirmed and forecast is not None and forecast < ACT_BUCKETS * inputs.growth.bucket_s:
        return "growth"
    if 0 < inputs.recycle_after_s <= inputs.age_s:
        return "age"
    return None


def _why_not(wanted: Disruption | None, inputs: Inputs) -> str | None:
    """Say why a recycle cannot be: the hour's budget is spent, or a second worker has no room."""
    if wanted is None or wanted.kind != RECYCLE:
        return None
    if inputs.recycles_left <= 0:
        return NoRecycle.SPENT.value
    need_bytes, reading, limits = inputs.reading.base_bytes, inputs.reading, inputs.limits
    # Where level 5 begins: two workers that reach it together would cost the one that drains.
    share = levels.LAST_ENTER if limits.hard else levels.SOFT_EXCESS
    ceiling = int(share * limits.budget_bytes)
    left_bytes = min(ceiling - reading.used_bytes, reading.available_bytes)
    if left_bytes < need_bytes:
        left_mib, need_mib = max(0, left_bytes) // MIB, need_bytes // MIB
        return f"{NoRecycle.NO_ROOM.value}, {left_mib} MiB are left of {need_mib}"
    return None


def _due(
    state: PolicyState, inputs: Inputs, wanted: Disruption | None
) -> tuple[PolicyState, Disruption | None]:
    """Say what is done now. First the evidence is ordered; then it is looked at again."""
    if wanted is None:
        return replace(state, harm=None), None
    now_s = inputs.now_s
    done_s = state.harmed_s.get(wanted.kind)
    pause_s = DISRUPTION_PAUSE_S if inputs.enforces else HOUR_S  # an observer has said it once
    if done_s is not None and now_s - done_s < pause_s:
        return replace(state, harm=None), None
    waiting = state.harm
    if waiting is None or waiting.kind != wanted.kind:
        return replace(state, harm=wanted), None
    if inputs.evidence_pending and now_s - waiting.since_s < EVIDENCE_LIMIT_S:
        return state, None
    state = replace(
        state,
        harm=None,
        harmed_s={**state.harmed_s, wanted.kind: now_s},
        planned_s=None,
        unexplained_since_s=None,
        last_readings=0,
    )
    return state, wanted


def _first_evidence(state: PolicyState, inputs: Inputs) -> tuple[PolicyState, str | None]:
    """Order evidence when memory begins to be short, once an hour at most."""
    if state.mark.level < SHRINK_LEVEL:
        return state, None
    if state.evidence_s is not None and inputs.now_s - state.evidence_s < FIRST_EVIDENCE_S:
        return state, None
    return replace(state, evidence_s=inputs.now_s), f"level {state.mark.level}"


def _is_urgent(wanted: Disruption | None, inputs: Inputs, forecast: float | None) -> bool:
    """Say whether a refused recycle leaves only to refuse runs. An old worker is no emergency."""
    if wanted is None or wanted.kind != RECYCLE:
        return False
    return wanted.reason == "memory" or _is_hard(inputs, forecast)


def _is_hard(inputs: Inputs, forecast: float | None) -> bool:
    finding = inputs.finding
    confirmed = finding is not None and finding.is_confirmed
    return confirmed and forecast is not None and forecast < HARD_BUCKETS * inputs.growth.bucket_s


def _give_up(state: PolicyState, inputs: Inputs) -> tuple[PolicyState, str | None]:
    """Give up where one more cut would not help any more than the last ones did."""
    recent = tuple(at_s for at_s in state.cuts_s if inputs.now_s - at_s < HOUR_S)
    spent = len(recent) >= CUTS_PER_HOUR or (recent and inputs.recycles_left <= 0)
    if inputs.may_give_up and spent:
        times = len(recent)
        return state, f"memory is at the last level again, after {times} cuts within the hour"
    return replace(state, cuts_s=(*recent[-9:], inputs.now_s)), None
