"""What the status says of given facts."""

from __future__ import annotations

from typing import Any

import pytest

from tidegate.core.fleet import lifecycle as life
from tidegate.core.fleet.lifecycle import Fleet, Generation, GenerationState
from tidegate.core.memory.report import StepReport
from tidegate.core.protocol.status import Restart, StepState
from tidegate.core.protocol.worker import Heartbeat
from tidegate.core.upstreams.summary import UpstreamStatus
from tidegate.watchdog.control import status


def fleet(*states: GenerationState, stopping: bool = False) -> Fleet:
    generations = tuple(
        Generation(number=n, state=state, since_s=0.0, beat_s=0.0, limit_s=None)
        for n, state in enumerate(states, 1)
    )
    return life.Fleet(generations=generations, stopping=stopping)


def beat(**counts: int) -> Heartbeat:
    base = {
        "rss_bytes": 0, "ledger_bytes": 0, "runs_active": 0, "runs_finished": 0,
        "runs_total": 0, "swept_runs": 0, "swept_bytes": 0,
    }  # fmt: skip
    return Heartbeat(loop_lag_ms=0.0, swept_last_reason="stuck", **(base | counts))


@pytest.mark.parametrize(
    ("states", "facts", "name"),
    [
        ([], {}, "starting"),
        ([GenerationState.STARTING], {}, "starting"),
        ([GenerationState.DRAINING, GenerationState.STARTING], {}, "starting"),
        ([GenerationState.SERVING], {}, "serving"),
        ([GenerationState.SERVING], {"troubled": True}, "degraded"),
        ([GenerationState.SERVING, GenerationState.STARTING], {"troubled": True}, "recycling"),
        ([GenerationState.DRAINING, GenerationState.SERVING], {}, "recycling"),
        ([GenerationState.DRAINING, GenerationState.SERVING], {"troubled": True}, "degraded"),
        ([GenerationState.DRAINING], {"stopping": True}, "draining"),
        ([], {"stopping": True}, "stopping"),
        ([], {"parked": True}, "parked"),
    ],
)
def test_state_is_one_true_word(
    states: list[GenerationState], facts: dict[str, bool], name: str
) -> None:
    """Each word of the status and what makes it true."""
    named = status.name_state(
        fleet(*states, stopping=facts.get("stopping", False)),
        parked=facts.get("parked", False),
        troubled=facts.get("troubled", False),
    )
    assert named == name


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, []),
        ({"shedding": "memory level 3"}, ["new runs are refused: memory level 3"]),
        ({"refused": "no room"}, ["a recycle is called for, but no room"]),
        ({"shedding": "no room", "refused": "no room"}, ["new runs are refused: no room"]),
        ({"restart_age_s": 59.0}, ["a worker was lost: exited (1)"]),
        ({"restart_age_s": 61.0}, []),
        ({"upstream": "failing"}, ["failing upstreams: box"]),
        ({"upstream": "set aside"}, ["failing upstreams: box"]),
        ({"upstream": "unknown"}, []),
    ],
)
def test_what_clients_may_notice_is_listed(facts: dict[str, Any], words: list[str]) -> None:
    """The owner need not guess why it is degraded."""
    age_s = facts.get("restart_age_s")
    upstream = UpstreamStatus(name="box", url="http://x", state=facts.get("upstream", "ok"))
    found = status.troubles(
        shedding=facts.get("shedding"),
        refused=facts.get("refused"),
        upstreams=status.merge_upstreams([[upstream]]),
        last_restart=None
        if age_s is None
        else Restart(at=1000.0 - age_s, reason="exited (1)", exit=1),
        now=1000.0,
    )
    assert found == words


def test_steps_add_up() -> None:
    """Each report counts once, and the last one is kept."""
    state = StepState(step="stale")
    for freed in (10, 30):
        report = StepReport(step="stale", runs=2, promised_bytes=40, freed_bytes=freed, took_s=0.5)
        state = state.plus(report)
    assert (state.times, state.runs, state.promised_bytes) == (2, 4, 80)
    assert (state.freed_bytes, state.last_freed_bytes, state.seconds) == (40, 30, 1.0)


def test_totals_add_what_is_new() -> None:
    """Two generations that both count from zero add up, and nothing is counted twice."""
    totals = status.Totals()
    first, second = beat(runs_total=3, swept_runs=1, swept_bytes=10), beat(runs_total=5)
    totals.add_beat(None, first)
    totals.add_beat(first, first)
    totals.add_beat(None, second)
    assert (totals.runs, totals.swept_runs, totals.swept_bytes) == (8, 1, 10)
    assert totals.swept_last_reason == "stuck"


def test_restarts_are_bounded() -> None:
    """The last twenty are kept."""
    totals = status.Totals()
    for n in range(50):
        totals.add_restart(Restart(at=float(n), reason="x", exit=1))
    assert [restart.at for restart in totals.restarts] == [float(n) for n in range(30, 50)]


def test_upstreams_of_two_workers_are_one_line_each() -> None:
    """Active requests add up; the serving worker's opinion of the state counts."""
    merged = status.merge_upstreams(
        [
            [UpstreamStatus(name="box", url="u", state="ok", active=1)],
            [UpstreamStatus(name="box", url="u", state="failing", active=2, queued=1)],
        ]
    )
    assert [(u.name, u.state, u.active, u.queued) for u in merged] == [("box", "ok", 3, 1)]


@pytest.mark.parametrize(
    ("age_s", "text"),
    [(0, "under 1 min"), (59, "under 1 min"), (60, "1 min"), (3600, "1 h"), (9.5 * 86400, "9 d")],
)
def test_age_is_the_largest_unit_that_fits(age_s: float, text: str) -> None:
    """Seconds are of no interest after nine days."""
    assert status.show_age(age_s) == text
