"""How an upstream and its models fare: who is asked, who is passed by, and what is shown."""

from __future__ import annotations

import pytest

from fakes.held import held
from tidegate.core.upstreams.blame import Held
from tidegate.core.upstreams.breaker import FIRST_ASIDE_S, MOST_ASIDE_S, Witness
from tidegate.core.upstreams.health import MOST_HELD_S, MOST_MODELS, MOST_NAME, Aside, Health

NOW_S = 1000.0


def failing(*models: str, held: Held = Held.TARGET) -> Health:
    """One where a request for each of these has failed three times."""
    health = Health()
    for model in models:
        for _ in range(3):
            health.failed(model, "answered 503", held, NOW_S)
    return health


def test_a_broken_model_takes_nothing_from_the_others() -> None:
    """It is passed by, and the rest of the upstream is asked."""
    health = failing("bad")
    health.succeeded("good", NOW_S)
    assert not health.may_ask("bad", NOW_S)
    assert health.may_ask("good", NOW_S)
    assert health.may_ask("another", NOW_S)
    assert not health.is_aside
    assert list(health.aside(NOW_S)) == [Aside("bad", FIRST_ASIDE_S, False, False)]


def test_what_cannot_be_reached_is_passed_by_for_every_model() -> None:
    """Also for those that were never asked for."""
    health = failing("m", held=Held.UPSTREAM)
    assert not health.may_ask("m", NOW_S)
    assert not health.may_ask("another", NOW_S)
    assert health.is_aside
    assert health.wants_probe


def test_one_trial_finds_out_for_the_upstream_and_the_model() -> None:
    """Both let the same request pass, and its success closes both."""
    health = failing("m")
    for _ in range(3):
        health.failed("m", "cannot be reached", Held.UPSTREAM, NOW_S)
    later_s = NOW_S + FIRST_ASIDE_S
    assert health.admit("m", later_s)
    assert not health.may_ask("m", later_s)
    assert health.succeeded("m", later_s)
    assert health.may_ask("m", later_s)


def test_who_passes_early_for_want_of_another_place_is_no_trial() -> None:
    """That its client goes away says nothing of the trial that is under way."""
    health = failing("m")
    later_s = NOW_S + FIRST_ASIDE_S
    assert not health.admit("m", NOW_S)
    assert health.admit("m", later_s)
    assert not health.admit("m", later_s)


def test_an_upstream_that_answers_can_be_reached() -> None:
    """Whatever it answers: then only the model is to blame."""
    health = failing("m", held=Held.UPSTREAM)
    health.failed("m", "answered 503", Held.TARGET, NOW_S)
    assert health.may_ask("m", NOW_S)


def test_one_caller_s_picture_sets_nothing_aside_until_a_probe_fails() -> None:
    """Three times the same 500 makes a suspicion; what is confirmed is set aside."""
    health = Health()
    for _ in range(3):
        health.failed("m", "answered 500", Held.SUSPECTED, NOW_S, Witness("a", 1))
    assert health.may_ask("m", NOW_S)
    assert health.wants_probe
    health.reached(NOW_S, is_well=True)
    assert health.may_ask("m", NOW_S)
    assert not health.wants_probe
    health.failed("m", "answered 500", Held.SUSPECTED, NOW_S, Witness("a", 1))
    assert health.wants_probe
    assert health.unreached("is gone", NOW_S) == ["its model m is set aside for 5 s: is gone"]
    assert not health.may_ask("m", NOW_S)


def test_what_is_back_is_tried_as_soon_as_it_is_reached_or_after_15_s() -> None:
    """However often its trials failed before."""
    health, now_s = failing("m"), NOW_S
    for _ in range(10):
        now_s += MOST_ASIDE_S
        assert health.may_ask("m", now_s)
        health.admit("m", now_s)
        health.failed("m", "answered 503", Held.TARGET, now_s)
    assert not health.may_ask("m", now_s + 1.0)
    health.reached(now_s + 1.0, is_well=False)
    assert health.may_ask("m", now_s + 1.0)


@pytest.mark.parametrize(("asked_s", "held_s"), [(60.0, 60.0), (1e300, MOST_HELD_S)])
def test_what_an_upstream_asked_for_itself_is_shortened_by_nothing(
    asked_s: float, held_s: float
) -> None:
    """No refresh, no success and no shorter wait; at most two minutes."""
    health = Health()
    health.hold("m", asked_s, 429, NOW_S)
    health.reached(NOW_S, is_well=True)
    health.succeeded("m", NOW_S)
    health.hold("m", 1.0, 503, NOW_S)
    assert not health.may_ask("m", NOW_S + held_s - 0.1)
    assert health.held_s("m", NOW_S) == held_s
    assert health.may_ask("m", NOW_S + held_s)
    assert health.may_ask("another", NOW_S)
    assert not health.is_aside
    assert list(health.aside(NOW_S)) == [Aside("m", held_s, False, True)]


def test_a_refusal_is_shown_until_a_good_answer() -> None:
    """A key's until any, a model's until one of that model; another refusal changes nothing."""
    health = Health()
    health.refuse("", "refused the key", NOW_S)
    health.refuse("m", "has no model m", NOW_S)
    health.alive("other", NOW_S)
    assert [each.model for each in health.refusals()] == ["", "m"]
    health.succeeded("other", NOW_S)
    assert [each.model for each in health.refusals()] == ["m"]
    health.began("m", NOW_S)
    assert list(health.refusals()) == []


def test_a_slow_model_that_answers_others_is_not_silent() -> None:
    """A plain answer that became whole since then says so."""
    health = Health()
    assert not health.answered_since("m", NOW_S)
    health.succeeded("m", NOW_S, is_plain=False)
    assert not health.answered_since("m", NOW_S)
    health.succeeded("m", NOW_S, is_plain=True)
    assert health.answered_since("m", NOW_S - 1.0)
    assert not health.answered_since("m", NOW_S + 1.0)


def test_what_is_remembered_is_bounded() -> None:
    """Names come from clients: the longest unused goes, what is set aside or refused stays."""
    health = failing("bad")
    health.refuse("missing", "has no model", NOW_S)
    health.hold("held", 60.0, 429, NOW_S)
    for number in range(3 * MOST_MODELS):
        health.alive(f"m{number}" + "x" * 10_000, NOW_S)
    kept = [text for text in held(health, str) if text.startswith("m") and text.endswith("x")]
    assert len(kept) == MOST_MODELS - 3
    assert max(map(len, kept)) == MOST_NAME
    assert {each.model for each in health.aside(NOW_S)} == {"bad", "held"}
    assert [each.model for each in health.refusals()] == ["missing"]
    for number in range(3 * MOST_MODELS):
        for _ in range(3):
            health.failed(f"b{number}", "answered 503", Held.TARGET, NOW_S)
    assert len(list(health.aside(NOW_S))) == MOST_MODELS
