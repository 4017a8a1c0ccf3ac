"""Records of decisions: made again, compared, and put into words."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tidegate.core.memory.decision import Decision, NoRecycle, PolicyState
from tidegate.core.memory.policy import decide
from tidegate.core.memory.record import Record, decide_again, describe, is_news, standing
from watchdog.guard_records import AT, inputs


def decided(ratio: float, state: PolicyState | None = None, now_s: float = 0.0) -> Decision:
    return decide(state or PolicyState(), inputs(now_s, ratio))[1]


@given(st.lists(st.floats(0, 1.4), min_size=1, max_size=12))
def test_what_was_written_is_decided_again_in_the_same_way(ratios: list[float]) -> None:
    """Through JSON and back, every figure of it."""
    state = PolicyState()
    for second, ratio in enumerate(ratios):
        before, given_inputs = state, inputs(float(second), ratio)
        state, decision = decide(before, given_inputs)
        record = Record(at=AT, version="x", before=before, inputs=given_inputs, decision=decision)
        line = msgspec.json.encode(record)
        again = msgspec.json.decode(line, type=Record)
        assert again == record
        assert decide_again(again) == []


def test_a_record_from_before_there_was_a_journal_is_decided_again() -> None:
    """Its readings lack a field, which stands for nothing in memory."""
    given_inputs = inputs(0.0, 0.75)
    _, decision = decide(PolicyState(), given_inputs)
    record = Record(
        at=AT, version="x", before=PolicyState(), inputs=given_inputs, decision=decision
    )
    line = msgspec.json.decode(msgspec.json.encode(record))
    del line["inputs"]["reading"]["journal_bytes"]
    again = msgspec.json.decode(msgspec.json.encode(line), type=Record)
    assert decide_again(again) == []


def test_a_difference_names_the_field_and_both_values() -> None:
    """What the record says, and what would be decided now."""
    given_inputs = inputs(0.0, 0.75)
    _, decision = decide(PolicyState(), given_inputs)
    record = Record(
        at=AT,
        version="x",
        before=PolicyState(),
        inputs=given_inputs,
        decision=replace(decision, level=1, squeeze=False),
    )
    found = {each.field: (each.recorded, each.now) for each in decide_again(record)}
    assert found == {"level": (1, 2), "squeeze": (False, True)}


def test_figures_that_always_move_are_no_news() -> None:
    """A byte more is the same decision; another level or a refusal is not."""
    one = decided(0.10)
    assert is_news(None, one)
    assert not is_news(one, decided(0.11))
    assert is_news(one, decided(0.75))
    refused = replace(one, refused="no room for a second worker, 3 MiB are left of 44")
    assert is_news(one, refused)
    assert not is_news(refused, replace(one, refused="no room for a second worker, 2 MiB"))
    assert is_news(refused, replace(one, refused=NoRecycle.SPENT.value))


def test_harm_and_evidence_are_always_news() -> None:
    """Also when it is the same harm again."""
    calm = decided(0.10)
    for harm in ("alarm", "evidence", "recycle", "cut", "give_up"):
        twice = replace(calm, **{harm: "memory"})
        assert is_news(twice, twice)


def test_words_say_what_is_done() -> None:
    """One phrase for a person; "nothing to do" when there is nothing."""
    calm = decided(0.10)
    assert describe(calm) == "nothing to do"
    assert standing(calm).startswith("level 0, 10 % of ")
    assert "sweep (stale" in describe(decided(0.75))
    assert "refuse new runs (memory level 3)" in describe(decided(0.82))
    done = replace(calm, recycle="memory", refused="the hour's recycles are spent")
    assert describe(done) == (
        "recycle the worker (memory), no recycle (the hour's recycles are spent)"
    )
