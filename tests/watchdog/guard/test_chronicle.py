"""What was done, in plain words, bounded."""

from __future__ import annotations

from itertools import count

from tidegate.core.memory.steps import ReclaimStep
from tidegate.core.protocol.news import MARKS
from tidegate.watchdog.guard.chronicle import KEPT, MAX_TEXT, SWEPT, Chronicle


def test_the_newest_are_kept_in_order() -> None:
    """However long it goes on."""
    now = count(100.0)
    chronicle = Chronicle(clock=lambda: next(now))
    for n in range(KEPT + 5):
        chronicle.note("sweep", f"deed {n}")
    deeds = chronicle.deeds()
    assert len(deeds) == KEPT
    assert (deeds[0].text, deeds[-1].text) == ("deed 5", f"deed {KEPT + 4}")
    assert [deed.text for deed in chronicle.deeds(deeds[-3].at)] == [
        f"deed {KEPT + 3}",
        f"deed {KEPT + 4}",
    ]


def test_it_goes_on_with_what_a_former_program_left() -> None:
    """Its deeds come first, and count for what was last of a kind."""
    former = Chronicle(clock=lambda: 5.0)
    former.note("growth", "grew")
    chronicle = Chronicle(former.deeds(), clock=lambda: 7.0)
    chronicle.note("restart", "worker 1 was lost: signal 9")
    assert [deed.kind for deed in chronicle.deeds()] == ["growth", "restart"]
    assert (chronicle.last("growth"), chronicle.last("sweep")) == (5.0, None)


def test_a_long_text_is_cut() -> None:
    """A reason may quote what a process wrote."""
    chronicle = Chronicle(clock=lambda: 1.0)
    chronicle.note("restart", "x" * 10_000)
    assert len(chronicle.deeds()[0].text) == MAX_TEXT


def test_every_step_that_sweeps_has_its_words() -> None:
    """A trim sweeps nothing, and what the ledger's limit takes is a step of its own."""
    steps = {step.value for step in ReclaimStep} - {ReclaimStep.TRIM.value}
    assert set(SWEPT) == steps | {"ledger"}
    assert "sweep" in MARKS
