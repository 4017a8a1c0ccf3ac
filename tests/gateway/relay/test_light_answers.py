"""Kept answers as tuples: which runs become one, and that a run of it is the same again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fakes.held import memory_of
from fakes.upstream import DONE, FINISH, ROLE, numbered
from tidegate.core.formats import CHAT
from tidegate.core.formats.base import Format
from tidegate.core.runs.deflated import deflate
from tidegate.core.runs.ledger import RECORD_BYTES, Ledger
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import Trigger
from tidegate.core.settings import Limits
from tidegate.gateway.relay.light_answers import KeptAnswer, LightAnswers

EVENTS = (ROLE, *(numbered(n, 1000) for n in range(300)), FINISH, DONE)
PLAIN = RunRequest("m")


def finished(
    ledger: Ledger,
    *events: bytes,
    request: RunRequest = PLAIN,
    form: Format = CHAT,
    trigger: Trigger = Trigger.COMPLETE,
    window_bytes: int = 4 * 1024 * 1024,
) -> Run:
    run = Run(
        run_id="run_1", owner="me", request=request, body=b"{}",
        limits=Limits(window_bytes=window_bytes, keep_finished_s=77.0), now_s=100.0,
        account=ledger.open_surely(), created=time.time() - 20, format=form,
    )  # fmt: skip
    run.begin_attempt("box", "theirs", 100.5)
    run.attempt.request_id = "req_1"
    for event in events:
        run.feed(event, 101.0)
    run.end(trigger, None if trigger is Trigger.COMPLETE else "it broke", None, 102.0, time.time())
    run.delivered = True
    return run


def packed(run: Run) -> Run:
    while found := run.transcript.loose(1):
        run.transcript.pack([(data, deflate(data)) for data in found])
    return run


@pytest.mark.parametrize("events", [EVENTS, EVENTS[:5]])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_run_becomes_a_kept_answer_and_a_run_again(
    events: tuple[bytes, ...], is_packed: bool
) -> None:
    """The same bytes from any event on, the same record, and in between nothing else is held."""
    ledger = Ledger()
    run = finished(ledger, *events)
    if is_packed:
        packed(run)
    answer, said = KeptAnswer.of(run), run.transcript.verdict()
    assert answer is not None
    light = LightAnswers(ledger)
    light.keep(answer)
    run.release()
    run.account.close()
    assert ledger.total_bytes == answer.held_bytes >= memory_of(answer.parts)
    assert answer.due_s == 102.0 + 77.0
    (listed,) = light.newest("me", 10, {})
    assert (listed.id, listed.state, listed.next_seq) == ("run_1", "completed", len(events))
    assert light.loose("run_1") == []
    assert light.revive("run_1", "another", Limits()) is None
    again = light.revive("run_1", "me", Limits())
    assert again is not None
    for name in ("id", "owner", "request", "state", "reason", "created", "ended", "ended_s"):
        assert getattr(again, name) == getattr(run, name), name
    assert (again.delivered, again.limits.keep_finished_s) == (True, 77.0)
    attempt = again.attempt
    told = (attempt.upstream, attempt.model, attempt.request_id, attempt.outcome)
    assert told == ("box", "theirs", "req_1", "completed")
    assert attempt.ended_s == 102.0
    assert attempt.started_s == 100.5
    window = again.window
    assert (window.first_seq, window.next_seq) == (0, len(events))
    for seq in range(len(events) + 1):
        assert window.read_all(window.cursor(seq)) == b"".join(events[seq:])
    assert window.held_bytes == again.account.total_bytes - RECORD_BYTES
    assert again.transcript.verdict() is said
    again.account.close()
    assert ledger.total_bytes == 0


@pytest.mark.parametrize(
    "more",
    [
        {"trigger": Trigger.FAIL},
        {"trigger": Trigger.CANCEL},
        {"request": RunRequest("m", background=True)},
        {"request": RunRequest("m", stored=False)},
        {"form": type(CHAT)(2)},
        {"window_bytes": 100_000},
    ],
)
def test_a_run_of_another_kind_stays_one(more: dict[str, object]) -> None:
    """What broke off, what is asked for by its id or not at all, what lost its beginning."""
    assert KeptAnswer.of(packed(finished(Ledger(), *EVENTS, **more))) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda run: setattr(run, "delivered", False),
        lambda run: setattr(run, "response_id", "resp_1"),
        lambda run: setattr(run, "reason", "why"),
        lambda run: run.attempts.clear(),
        lambda run: run.attempts.append(run.attempt),
        lambda run: setattr(run.attempt, "tries", 2),
        lambda run: run.transcript.shrink(0),
    ],
)
def test_a_run_of_which_more_can_be_asked_stays_one(change: Callable[[Run], object]) -> None:
    """What its client has not had, what was tried before, what is gone."""
    run = packed(finished(Ledger(), *EVENTS))
    assert KeptAnswer.of(run) is not None
    change(run)
    assert KeptAnswer.of(run) is None
