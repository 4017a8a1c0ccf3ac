"""A run's clocks: each limit ends it with a reason that names the limit."""

import pytest

from tidegate.core.clock import next_expiry
from tidegate.core.ledger import Ledger
from tidegate.core.run import Happening, Run
from tidegate.core.settings import Limits

LIMITS = Limits(
    first_output_s=50.0,
    idle_s=20.0,
    total_s=1000.0,
    queue_s=70.0,
    disconnect_grace_s=2.0,
)
OUTPUT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def make_run(limits: Limits = LIMITS, *, streamed: bool = True, keep_running: bool = False) -> Run:
    return Run(
        run_id="run_1",
        owner="",
        model="m",
        body=b"{}",
        limits=limits,
        account=Ledger().open(),
        now_s=100.0,
        created=0.0,
        streamed=streamed,
        keep_running=keep_running,
    )


def expiry(run: Run) -> tuple[float, str, Happening]:
    found = next_expiry(run)
    assert found is not None
    return found.due_s, found.limit, found.happening


def test_waiting_in_the_queue() -> None:
    """A place that does not come free in time ends the run, by the name of queue_s."""
    assert expiry(make_run()) == (170.0, "queue_s", Happening.EXPIRE)


def test_waiting_for_the_first_output() -> None:
    """It counts from the attempt, each attempt has its own, and another target may still answer."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    assert expiry(run) == (160.0, "first_output_s", Happening.EXPIRE)
    assert next_expiry(run).retryable  # type: ignore[union-attr]
    run.begin_attempt("cloud", "m", 150.0)
    found = next_expiry(run)
    assert found is not None
    assert (found.due_s, found.reason) == (200.0, "sent no output for 50 s")


def test_waiting_between_events() -> None:
    """Only whole events move the idle clock: neither half of one nor comments do."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    run.feed(OUTPUT, 120.0)
    assert expiry(run) == (140.0, "idle_s", Happening.EXPIRE)
    run.feed(b'data: "half', 130.0)
    assert expiry(run)[0] == 140.0
    run.feed(b' and half"\n\n', 131.0)
    assert expiry(run)[0] == 151.0
    run.feed(b": still here\n\n", 140.0)
    found = next_expiry(run)
    assert found is not None
    assert (found.due_s, found.reason) == (151.0, "idle for 20 s")
    assert found.of_upstream
    assert not found.retryable


def test_the_total_counts_from_the_beginning() -> None:
    """However busy an answer is, it ends at total_s after its creation."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    run.feed(OUTPUT, 1095.0)
    assert expiry(run) == (1100.0, "total_s", Happening.EXPIRE)
    assert not next_expiry(run).of_upstream  # type: ignore[union-attr]


def test_nobody_listening() -> None:
    """After the last reader's grace the run is cancelled, unless it was asked to go on."""
    for keep_running, expected in [
        (False, (132.0, "disconnect_grace_s")),
        (True, (140.0, "idle_s")),
    ]:
        run = make_run(keep_running=keep_running)
        run.attach()
        run.begin_attempt("box", "m", 110.0)
        run.feed(OUTPUT, 120.0)
        run.detach(130.0)
        assert expiry(run)[:2] == expected


@pytest.mark.parametrize("stage", ["queued", "connecting", "streaming"])
def test_a_grace_of_zero_is_due_at_once(stage: str) -> None:
    """Wherever the run stands, a disconnect with no grace cancels it in the same moment."""
    run = make_run(Limits(disconnect_grace_s=0.0))
    run.attach()
    if stage != "queued":
        run.begin_attempt("box", "m", 110.0)
    if stage == "streaming":
        run.feed(OUTPUT, 111.0)
    run.detach(130.0)
    assert expiry(run) == (130.0, "disconnect_grace_s", Happening.CANCEL)


def test_a_plain_answer_knows_only_the_total() -> None:
    """It is its own first output: neither first_output_s nor idle_s applies."""
    run = make_run(streamed=False)
    run.begin_attempt("box", "m", 110.0)
    assert expiry(run) == (1100.0, "total_s", Happening.EXPIRE)


def test_while_we_do_not_read_the_upstream_cannot_be_late() -> None:
    """A pause takes the upstream's clocks away; the total stays."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    run.feed(OUTPUT, 120.0)
    run.pause(125.0)
    assert expiry(run) == (1100.0, "total_s", Happening.EXPIRE)
    run.resume(225.0)
    assert expiry(run) == (240.0, "idle_s", Happening.EXPIRE)


@pytest.mark.parametrize("happening", [Happening.FAIL, Happening.CANCEL, Happening.EXPIRE])
def test_a_run_that_is_over_has_no_clock(happening: Happening) -> None:
    """Nothing is left to expire."""
    run = make_run()
    run.end(happening, "because", None, 120.0, 0.0)
    assert next_expiry(run) is None
