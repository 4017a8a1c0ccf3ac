"""Who loses what when memory is short, planned from plain facts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.runs import eviction
from tidegate.core.runs.eviction import Candidate, Eviction, plan

NOW_S = 10_000.0


def run(run_id: str, **facts: Any) -> Candidate:
    """A live run with a reader who keeps up."""
    known: dict[str, Any] = {
        "is_over": False, "delivered": False, "readers": 1, "stalled_s": 0.0, "ended_s": None,
        "abandoned_s": None, "keep_running": False, "stuck_s": NOW_S + 3600.0,
        "held_bytes": 1000, "window_bytes": 800, "needed_bytes": 800,
    }  # fmt: skip
    return Candidate(id=run_id, **(known | facts))


def finished(run_id: str, ago_s: float, **facts: Any) -> Candidate:
    """A run that is over, and that has no readers."""
    return run(run_id, is_over=True, readers=0, ended_s=NOW_S - ago_s, **facts)


def ids(
    step: ReclaimStep, *candidates: Candidate, stale_after_s: float = 60.0, most: int = 50
) -> str:
    """The victims' ids, in order."""
    return "".join(v.id for v in plan(step, candidates, NOW_S, stale_after_s, most))


def test_stale_takes_finished_before_live_and_the_oldest_first() -> None:
    """What its creator has had goes before what he has not."""
    assert (
        ids(
            ReclaimStep.STALE,
            run("s", stuck_s=NOW_S - 1),
            run("a", readers=0, abandoned_s=NOW_S - 100),
            finished("y", 70),
            finished("o", 90),
            finished("d", 65, delivered=True),
            finished("n", 59),
            run("l"),
        )
        == "doyas"
    )


@pytest.mark.parametrize(
    "spared",
    [
        run("x"),
        run("x", readers=0, keep_running=True, abandoned_s=NOW_S - 1000),
        run("x", readers=0, abandoned_s=NOW_S - 59),
        finished("x", 59),
        finished("x", 1000)._replace(readers=1),
    ],
)
def test_stale_spares_what_somebody_may_want(spared: Candidate) -> None:
    """A live run, one that was asked to go on, one just left, one just finished, one being read."""
    assert ids(ReclaimStep.STALE, spared) == ""


def test_stalled_takes_runs_whose_every_reader_reads_nothing() -> None:
    """The finished ones first, then the longest; one lively reader saves a run."""
    assert (
        ids(
            ReclaimStep.STALLED,
            run("b", stalled_s=61),
            run("c", stalled_s=300, readers=3),
            run("a", is_over=True, ended_s=NOW_S - 5, stalled_s=61),
            run("l", stalled_s=59),
            finished("f", 1000, stalled_s=0.0),
        )
        == "acb"
    )


def test_who_reads_is_never_stalled() -> None:
    """Not even where there is no patience at all."""
    assert ids(ReclaimStep.STALLED, run("a"), run("b", stalled_s=0.1), stale_after_s=0.0) == "b"


def test_kept_takes_what_no_reader_wants_just_now() -> None:
    """Finished answers first, then what its reader left; what goes on without one stays."""
    found = (
        run("a", readers=0, abandoned_s=NOW_S - 1),
        finished("b", 1.0),
        finished("r", 1.0)._replace(readers=1),
        run("k", readers=0, abandoned_s=NOW_S - 1, keep_running=True),
        run("l"),
    )
    assert ids(ReclaimStep.KEPT, *found) == "ba"


def test_finished_takes_all_that_nobody_reads() -> None:
    """Whatever its age."""
    assert ids(ReclaimStep.FINISHED, finished("b", 0), finished("a", 1), run("l"), run("r")) == "ab"


def test_background_takes_runs_that_nobody_listens_to() -> None:
    """The largest first, and none that has a reader."""
    background = {"readers": 0, "keep_running": True, "abandoned_s": NOW_S - 1}
    assert (
        ids(
            ReclaimStep.BACKGROUND,
            run("s", held_bytes=10, **background),
            run("l", held_bytes=20, **background),
            run("r", keep_running=True),
            run("g", readers=0, abandoned_s=NOW_S - 1),
        )
        == "ls"
    )


def test_windows_shrink_to_what_readers_need() -> None:
    """The largest spare part first; a window that is needed whole stays."""
    victims = plan(
        ReclaimStep.WINDOWS,
        [run("a", needed_bytes=700), run("b", needed_bytes=0), run("c"), finished("f", 9)],
        NOW_S,
        60.0,
        50,
    )
    assert [(v.id, v.act, v.promised_bytes, v.keep_bytes) for v in victims] == [
        ("b", Eviction.SHRINK, 800, 0),
        ("a", Eviction.SHRINK, 100, 700),
    ]


def test_tidying_takes_nothing_from_any_run() -> None:
    """It has no victims."""
    assert ids(ReclaimStep.TRIM, run("a", stalled_s=1e9), finished("f", 1e9)) == ""


def test_reasons_are_for_people() -> None:
    """A reader learns what happened and for how long."""
    (victim,) = plan(ReclaimStep.STALLED, [run("a", stalled_s=61.4)], NOW_S, 60.0, 1)
    assert victim.reason == "swept: its readers have read nothing for 61 s"


times = st.one_of(st.none(), st.floats(0, NOW_S))
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        is_over=st.booleans(),
        delivered=st.booleans(),
        readers=st.integers(0, 3),
        stalled_s=st.floats(0, 1000),
        ended_s=times,
        abandoned_s=times,
        keep_running=st.booleans(),
        stuck_s=st.floats(0, 2 * NOW_S),
        held_bytes=st.integers(0, 10**7),
        window_bytes=st.integers(0, 10**7),
        needed_bytes=st.integers(0, 10**7),
    ),
    max_size=30,
    unique_by=lambda candidate: candidate.id,
)


@given(st.sampled_from(ReclaimStep), CANDIDATES, st.floats(0, 600), st.integers(0, 10))
def test_a_plan_is_bounded_true_and_spares_who_reads(
    step: ReclaimStep, candidates: list[Candidate], stale_after_s: float, most: int
) -> None:
    """Whatever there is: at most so many, promises are held, and no active reader is harmed."""
    victims = plan(step, candidates, NOW_S, stale_after_s, most)
    assert victims == plan(step, candidates, NOW_S, stale_after_s, most)
    assert len(victims) <= most
    known = {candidate.id: candidate for candidate in candidates}
    assert len({victim.id for victim in victims}) == len(victims)
    for victim in victims:
        of = known[victim.id]
        if victim.act is Eviction.RELEASE:
            assert victim.promised_bytes == of.held_bytes
            if of.readers and now_reads(of, stale_after_s):
                assert of.stuck_s <= NOW_S
        else:
            assert victim.keep_bytes >= of.needed_bytes
            assert victim.promised_bytes == of.window_bytes - victim.keep_bytes > 0
    over = [known[victim.id].is_over for victim in victims]
    assert over == sorted(over, reverse=True) or step is ReclaimStep.WINDOWS


def now_reads(candidate: Candidate, stale_after_s: float) -> bool:
    """Whether one of its readers has made progress lately."""
    return candidate.stalled_s < stale_after_s or not candidate.stalled_s


@given(st.sampled_from(ReclaimStep), CANDIDATES, st.floats(0, 600), st.floats(0, 600))
def test_less_patience_never_spares_more(
    step: ReclaimStep, candidates: list[Candidate], first_s: float, second_s: float
) -> None:
    """A shorter stale limit takes at least whom a longer one takes."""
    short_s, long_s = sorted((first_s, second_s))
    many = {victim.id for victim in plan(step, candidates, NOW_S, short_s, 100)}
    few = {victim.id for victim in plan(step, candidates, NOW_S, long_s, 100)}
    assert few <= many


@given(CANDIDATES, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(candidates: list[Candidate], random: Any) -> None:
    """Who is taken depends on value alone, as far as values differ."""
    for step in ReclaimStep:
        before = plan(step, candidates, NOW_S, 60.0, 100)
        shuffled = list(candidates)
        random.shuffle(shuffled)
        after = plan(step, shuffled, NOW_S, 60.0, 100)
        assert {v.id for v in before} == {v.id for v in after}


def test_every_step_has_a_place_in_the_policy() -> None:
    """None can be ordered that is never due."""
    from tidegate.core.memory.policy import STEPS

    assert {step for _, step in STEPS} == set(ReclaimStep) == set(eviction.ReclaimStep)
