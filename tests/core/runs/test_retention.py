"""The net beneath the clocks: a run's memory goes, whatever became of its end."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.runs.ledger import Ledger
from tidegate.core.runs.retention import due_s, verdict
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import Trigger
from tidegate.core.settings import Limits

LIMITS = Limits(
    total_s=600.0,
    grace_s=30.0,
    keep_finished_s=300.0,
    close_flush_s=5.0,
    stall_s=120.0,
    disconnect_grace_s=2.0,
)
OUTPUT = b'data: {"choices":[{"delta":{"content":"' + b"x" * 200_000 + b'"}}]}\n\n'


def make_run(
    limits: Limits = LIMITS, *, ledger: Ledger | None = None, now_s: float = 1000.0, **values: bool
) -> Run:
    return Run(
        run_id="run_1",
        owner="",
        request=RunRequest("m", **values),
        body=b"{}",
        limits=limits,
        account=(ledger or Ledger()).open(),
        now_s=now_s,
        created=0.0,
    )


@pytest.mark.parametrize("stage", ["queued", "connecting", "failed over", "streaming", "paused"])
def test_a_run_whose_end_never_came_is_swept(stage: str) -> None:
    """Not aborted, its failover came or did not: at total_s + grace_s it goes, to 0 bytes."""
    ledger = Ledger()
    run = make_run(ledger=ledger)
    run.attach()
    if stage != "queued":
        run.begin_attempt("box", "m", 1001.0)
    if stage == "failed over":
        run.begin_attempt("cloud", "m", 1601.0)
    if stage in {"streaming", "paused"}:
        run.feed(OUTPUT, 1002.0)
    if stage == "paused":
        run.pause(1003.0)
    assert due_s(run) == 1630.0
    assert verdict(run, 1629.9) is None
    found = verdict(run, 1630.0)
    assert found is not None
    assert found.kind == "stuck"
    assert "stuck for 630 s" in found.reason
    assert "total_s 600 + grace_s 30" in found.reason
    assert run.release() > 0
    assert ledger.total_bytes == 0


def test_an_abandoned_run_is_swept_sooner() -> None:
    """Without readers and with no cancellation it need not wait for the total."""
    run = make_run()
    run.attach()
    run.detach(1010.0)
    assert due_s(run) == 1042.0
    found = verdict(run, 1042.0)
    assert found is not None
    assert found.kind == "abandoned"


def test_a_run_that_was_asked_to_go_on_is_not_abandoned() -> None:
    """With keep_running only the total and its grace count."""
    run = make_run(keep_running=True)
    run.attach()
    run.detach(1010.0)
    assert due_s(run) == 1630.0


@pytest.mark.parametrize(
    ("trigger", "readers", "kept_s", "kind"),
    [
        (Trigger.FAIL, 0, 300.0, "finished"),
        (Trigger.EXPIRE, 0, 300.0, "finished"),
        (Trigger.FAIL, 1, 530.0, "finished"),
        (Trigger.CANCEL, 0, 5.0, "cancelled"),
        (Trigger.CANCEL, 1, 530.0, "cancelled"),
    ],
)
def test_an_answer_that_ended_is_kept_for_its_time(
    trigger: Trigger, readers: int, kept_s: float, kind: str
) -> None:
    """A finished answer can be resumed for a while, a cancelled one only until it was flushed.

    Who is still reading its end has until the run would be swept in any case, at 1630 s here.
    """
    run = make_run()
    for _ in range(readers):
        run.attach()
    run.end(trigger, "because", None, 1100.0, 0.0)
    assert due_s(run) == 1100.0 + kept_s
    assert verdict(run, 1100.0 + kept_s - 0.1) is None
    found = verdict(run, 1100.0 + kept_s)
    assert found is not None
    assert found.kind == kind


def test_nothing_is_kept_when_nothing_is_to_be_kept() -> None:
    """With keep_finished_s = 0 a finished run goes at once."""
    run = make_run(Limits(keep_finished_s=0.0))
    run.end(Trigger.FAIL, "because", None, 1100.0, 0.0)
    assert verdict(run, 1100.0) is not None


seconds = st.floats(0.0, 1e7, allow_nan=False)


@given(created_s=seconds, total_s=st.floats(0.001, 1e6), grace_s=st.floats(0.0, 1e6))
def test_what_is_due_gets_its_verdict_whatever_the_rounding(
    created_s: float, total_s: float, grace_s: float
) -> None:
    """At the very moment it is due, a run that was not abandoned is called stuck, on any clock."""
    run = make_run(Limits(total_s=total_s, grace_s=grace_s), now_s=created_s)
    at_s = due_s(run)
    assert math.isfinite(at_s)
    found = verdict(run, at_s)
    assert found is not None
    assert found.kind == "stuck"
    assert verdict(run, math.nextafter(at_s, -1.0)) is None
