"""What is counted of runs that are over: every one, under a bounded number of labels."""

from __future__ import annotations

import pytest

from gateway.records.rows import row
from tidegate.core.labels import MOST_UPSTREAMS, OTHER, by_label
from tidegate.core.records.usage import NO_USAGE, TokenUsage
from tidegate.gateway.records.tally import MOST_KINDS, NO_UPSTREAM, RunTally


def test_a_run_counts_once_with_its_tokens_and_its_time() -> None:
    """By upstream, format and outcome; tokens by direction."""
    tally = RunTally()
    tally.count(row())
    tally.count(row())
    tally.count(row(outcome="failed", usage=NO_USAGE, ended=1000.0))
    assert tally.requests == {
        ("box", "chat completion", "completed"): 2,
        ("box", "chat completion", "failed"): 1,
    }
    assert tally.tokens == {
        ("box", "input"): 52,
        ("box", "output"): 580,
        ("box", "cached"): 40,
        ("box", "reasoning"): 200,
    }
    assert tally.seconds.count == 3
    assert tally.seconds.sum_s == pytest.approx(8.4)


def test_what_no_upstream_told_is_counted_nowhere() -> None:
    """Not as 0 either: what is known of one direction counts."""
    tally = RunTally()
    tally.count(row(usage=NO_USAGE))
    assert tally.tokens == {}
    tally.count(row(usage=TokenUsage(input=9)))
    assert tally.tokens == {("box", "input"): 9}


def test_a_run_that_no_upstream_was_asked_for_counts_too() -> None:
    """An empty label would be none at all."""
    tally = RunTally()
    tally.count(row(upstream="", outcome="expired", usage=NO_USAGE))
    assert tally.requests == {(NO_UPSTREAM, "chat completion", "expired"): 1}


def test_a_clock_that_goes_back_makes_no_negative_time() -> None:
    """A sum that falls would be a restart to Prometheus."""
    tally = RunTally()
    tally.count(row(ended=900.0))
    assert (tally.seconds.count, tally.seconds.sum_s) == (1, 0)


def test_names_are_bounded_and_no_run_is_lost() -> None:
    """2,000 upstreams, all formats and ends: the sums are right."""
    tally = RunTally()
    outcomes = ("completed", "failed", "cancelled", "expired")
    for number in range(2000):
        for outcome in outcomes:
            for form in ("chat completion", "message", "chat"):
                tally.count(row(upstream=f"box{number}", format=form, outcome=outcome))
    assert tally.requests.total() == tally.seconds.count == 2000 * 4 * 3
    assert len(tally.requests) <= MOST_KINDS + len(outcomes)
    assert {upstream for upstream, _ in tally.tokens} == {
        OTHER,
        *(f"box{number}" for number in range(MOST_UPSTREAMS)),
    }
    assert sum(n for (_, way), n in tally.tokens.items() if way == "input") == 26 * 24_000
    assert len(tally.requests) + len(tally.tokens) <= 150


def test_figures_of_upstreams_are_added_up_beyond_the_first() -> None:
    """So that a sum over all stays one."""
    few = by_label((f"box{number}", 1) for number in range(MOST_UPSTREAMS))
    assert OTHER not in few
    many = by_label((f"box{number}", 1) for number in range(2000))
    assert (len(many), many[OTHER]) == (MOST_UPSTREAMS + 1, 2000 - MOST_UPSTREAMS)
