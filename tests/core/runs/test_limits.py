"""A run's clocks: each limit ends it with a reason that names the limit."""

import json

import pytest

from fakes.wire import DONE, FINISH, chunk
from tidegate.core.formats import (
    CHAT,
    COMPLETIONS,
    IMAGES,
    MESSAGES,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    RESPONSES,
)
from tidegate.core.formats.base import Format, Meaning
from tidegate.core.runs.attempt import HOLD_EVENTS, LOOK_EVERY_S
from tidegate.core.runs.ledger import Ledger
from tidegate.core.runs.limits import END_WITHIN_S, look_again_s, next_expiry
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import RunState, Trigger
from tidegate.core.settings import LimitOverrides, Limits

LIMITS = Limits(
    first_output_s=50.0,
    idle_s=20.0,
    total_s=1000.0,
    queue_s=70.0,
    disconnect_grace_s=2.0,
)
OUTPUT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


def message(kind: str, **values: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()


def make_run(
    limits: Limits = LIMITS,
    *,
    streamed: bool = True,
    keep_running: bool = False,
    form: Format = CHAT,
) -> Run:
    return Run(
        run_id="run_1",
        owner="",
        request=RunRequest("m", streamed=streamed, keep_running=keep_running),
        body=b"{}",
        limits=limits,
        account=Ledger().open(),
        now_s=100.0,
        created=0.0,
        format=form,
    )


def connecting(form: Format) -> Run:
    run = make_run(form=form)
    run.begin_attempt("box", "m", 100.0)
    return run


def expiry(run: Run) -> tuple[float, str, Trigger]:
    found = next_expiry(run)
    assert found is not None
    return found.due_s, found.limit, found.trigger


def test_waiting_in_the_queue() -> None:
    """A slot that does not come free in time ends the run, by the name of queue_s."""
    assert expiry(make_run()) == (170.0, "queue_s", Trigger.EXPIRE)


def test_waiting_for_the_first_output() -> None:
    """It counts from the attempt, each attempt has its own."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    assert expiry(run) == (160.0, "first_output_s", Trigger.EXPIRE)
    run.begin_attempt("cloud", "m", 150.0)
    found = next_expiry(run)
    assert found is not None
    assert (found.due_s, found.reason) == (200.0, "sent no output for 50 s")


def test_waiting_between_events() -> None:
    """Only whole events move the idle clock: neither half of one nor comments do."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    run.feed(OUTPUT, 120.0)
    assert expiry(run) == (140.0, "idle_s", Trigger.EXPIRE)
    run.feed(b'data: "half', 130.0)
    assert expiry(run)[0] == 140.0
    run.feed(b' and half"\n\n', 131.0)
    assert expiry(run)[0] == 151.0
    run.feed(b": still here\n\n", 140.0)
    found = next_expiry(run)
    assert found is not None
    assert (found.due_s, found.reason) == (151.0, "idle for 20 s")
    assert found.of_upstream


def test_the_total_counts_from_the_beginning() -> None:
    """However busy an answer is, it ends at total_s after its creation."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    run.feed(OUTPUT, 1095.0)
    assert expiry(run) == (1100.0, "total_s", Trigger.EXPIRE)
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
    assert expiry(run) == (130.0, "disconnect_grace_s", Trigger.CANCEL)


def test_a_plain_answer_has_a_limit_of_its_own() -> None:
    """It is its own first output: plain_s counts from the request to the whole answer."""
    run = make_run(Limits(first_output_s=1.0, idle_s=1.0, plain_s=30.0), streamed=False)
    run.begin_attempt("box", "m", 110.0)
    run.feed_plain(b"{")
    found = next_expiry(run)
    assert found is not None
    assert (found.due_s, found.limit, found.trigger) == (140.0, "plain_s", Trigger.EXPIRE)
    assert found.reason == "sent no whole answer within plain_s = 30 s"
    assert found.of_upstream
    run.begin_attempt("cloud", "m", 150.0)
    assert expiry(run)[0] == 180.0


@pytest.mark.parametrize(
    ("limits", "last_s", "before_others_s"),
    [
        (Limits(), 600.0, 240.0),
        (Limits(plain_s=900.0), 900.0, 900.0),
        (LimitOverrides(plain_s=5.0).over(Limits(plain_s=900.0)), 5.0, 5.0),
    ],
)
def test_a_plain_answer_fails_over_before_its_client_gives_up(
    limits: Limits, last_s: float, before_others_s: float
) -> None:
    """240 s where another target is left, 600 s at the last one; what is set holds for both."""
    assert limits.at_target(is_last=True).plain_s == last_s
    assert limits.at_target(is_last=False).plain_s == before_others_s
    assert limits.at_target(is_last=True) is limits.at_target(is_last=True)  # one for all runs


def test_the_total_stands_above_a_plain_answer_s_limit() -> None:
    """Whatever plain_s says, total_s ends the run."""
    run = make_run(Limits(total_s=20.0, plain_s=30.0), streamed=False)
    run.begin_attempt("box", "m", 110.0)
    assert expiry(run) == (120.0, "total_s", Trigger.EXPIRE)


def test_while_we_do_not_read_the_upstream_cannot_be_late() -> None:
    """A pause takes the upstream's clocks away; the total stays."""
    run = make_run()
    run.begin_attempt("box", "m", 110.0)
    run.feed(OUTPUT, 120.0)
    run.pause(125.0)
    assert expiry(run) == (1100.0, "total_s", Trigger.EXPIRE)
    run.resume(225.0)
    assert expiry(run) == (240.0, "idle_s", Trigger.EXPIRE)


@pytest.mark.parametrize("trigger", [Trigger.FAIL, Trigger.CANCEL, Trigger.EXPIRE])
def test_a_run_that_is_over_has_no_clock(trigger: Trigger) -> None:
    """Nothing is left to expire."""
    run = make_run()
    run.end(trigger, "because", None, 120.0, 0.0)
    assert next_expiry(run) is None


# --- what says nothing ----------------------------------------------------------------------------

# What an upstream may send for ever, in a row, without an answer; and the first of an answer.
NO_PROGRESS = {
    "empty delta": (CHAT, [chunk()], chunk(content="a")),
    "empty content": (CHAT, [chunk(content="")], chunk(content="a")),
    "role again": (CHAT, [chunk(role="assistant"), chunk(role="assistant", content="")],
                   chunk(tool_calls=[{"index": 0}])),
    "no choices": (CHAT, [b'data: {"choices":[]}\n\n'], chunk(reasoning_content="hm")),
    "usage so far": (CHAT, [b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n'],
                     chunk(content="a")),
    "no text": (COMPLETIONS, [b'data: {"choices":[{"text":""}]}\n\n'],
                b'data: {"choices":[{"text":"a"}]}\n\n'),
    "ping": (MESSAGES, [message("ping")],
             message("content_block_delta", delta={"type": "thinking_delta", "thinking": "a"})),
    "empty text": (
        MESSAGES, [message("content_block_delta", delta={"type": "text_delta", "text": ""})],
        message("content_block_delta", delta={"type": "text_delta", "text": "a"}),
    ),
    "keepalive": (RESPONSES, [message("keepalive", sequence_number=n) for n in range(3)],
                  message("response.reasoning_text.delta", delta="hm")),
    "in progress": (RESPONSES, [message("response.in_progress", response={})],
                    message("response.function_call_arguments.delta", delta="{")),
    "empty message": (
        OLLAMA_CHAT, [b'{"message":{"role":"assistant","content":""},"done":false}\n'],
        b'{"message":{"content":"a"},"done":false}\n',
    ),
    "empty response": (OLLAMA_GENERATE, [b'{"response":"","done":false}\n'],
                       b'{"response":"","thinking":"hm","done":false}\n'),
}  # fmt: skip


@pytest.mark.parametrize("how", NO_PROGRESS)
def test_what_says_nothing_is_no_output(how: str) -> None:
    """However much of it comes, the answer has not begun, and little is held."""
    form, empty, output = NO_PROGRESS[how]
    run = connecting(form)
    for number in range(20 * HOLD_EVENTS):
        assert run.feed(empty[number % len(empty)], 102.0 + number) == b""
    assert run.state is RunState.CONNECTING
    assert run.attempt.held_events <= HOLD_EVENTS
    expiry = next_expiry(run)
    assert expiry is not None
    assert (expiry.limit, expiry.due_s) == ("first_output_s", 100.0 + run.limits.first_output_s)
    sent = run.feed(output, 5000.0)
    assert sent.endswith(output)
    assert form.framing.split(sent)[:-1] == run.window.last_events(99)[:-1]


@pytest.mark.parametrize("how", NO_PROGRESS)
@pytest.mark.parametrize("together", [False, True])
def test_what_says_nothing_is_passed_on_but_no_progress(how: str, together: bool) -> None:
    """While an answer streams, the idle clock runs from what brought it further."""
    form, empty, output = NO_PROGRESS[how]
    run = connecting(form)
    run.feed(output, 102.0)
    for number in range(50):
        event = b"".join(empty) if together else empty[number % len(empty)]
        assert run.feed(event, 104.0 + 2 * number) == event
    expiry = next_expiry(run)
    assert expiry is not None
    assert (expiry.limit, expiry.due_s) == ("idle_s", 102.0 + run.limits.idle_s)
    run.feed(empty[0] + output + empty[0], 300.0)
    run.feed(empty[0], 310.0)
    expiry = next_expiry(run)
    assert expiry is not None
    assert expiry.due_s == 300.0 + run.limits.idle_s


def test_progress_is_seen_at_every_pace() -> None:
    """Events that come faster than they are looked at count all the same."""
    run = connecting(CHAT)
    run.feed(chunk(content="a"), 199.0)
    for number in range(1000):
        run.feed(chunk(content="a"), 200.0 + number / 10)
        assert run.attempt.last_event_s == 200.0 + number / 10
    run.feed(chunk(), 299.95)
    assert run.attempt.last_event_s - 299.9 <= LOOK_EVERY_S


# --- whole, but not ended -------------------------------------------------------------------------

MESSAGE = [
    message("message_start", message={}),
    message("content_block_delta", delta={"type": "text_delta", "text": "a"}),
    message("message_delta", delta={"stop_reason": "end_turn"}),
]
ENDS = {
    "chat": (CHAT, [chunk(content="a"), FINISH], DONE),
    "completion": (
        COMPLETIONS,
        [b'data: {"choices":[{"text":"a","finish_reason":"length"}]}\n\n'],
        DONE,
    ),
    "message": (MESSAGES, MESSAGE, message("message_stop").replace(b': "', b':"')),
    "image": (IMAGES, [message("image_generation.completed")], b""),
}


@pytest.mark.parametrize("how", ENDS)
def test_an_answer_that_said_why_it_ends_is_whole_soon(how: str) -> None:
    """A few seconds after its last event, with the marker that its format's clients wait for."""
    form, events, marker = ENDS[how]
    run = connecting(form)
    for event in events:
        run.feed(event, 110.0)
    assert expiry(run) == (110.0 + END_WITHIN_S, "end_within_s", Trigger.COMPLETE)
    assert form.end_marker == marker


def test_usage_may_still_come_and_keep_alives_gain_no_time() -> None:
    """Silence is counted from the finish_reason on; more output takes it back."""
    run = connecting(CHAT)
    run.feed(chunk(content="a"), 105.0)
    run.feed(FINISH, 110.0)
    run.feed(b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n', 112.0)
    run.feed(chunk(), 114.0)
    assert expiry(run)[:2] == (110.0 + END_WITHIN_S, "end_within_s")
    run.feed(chunk(content="b"), 114.5)
    assert expiry(run)[:2] == (114.5 + LIMITS.idle_s, "idle_s")


def test_what_has_no_reason_to_end_is_not_whole() -> None:
    """Responses say so in their marker alone, and one of several images is not all."""
    response = connecting(RESPONSES)
    response.feed(message("response.output_text.delta", delta="a"), 110.0)
    response.feed(message("response.output_item.done", item={}), 110.0)
    images = connecting(IMAGES.of_request(b'{"model":"m","n":2}', ""))
    images.feed(message("image_generation.completed"), 110.0)
    for run in (response, images):
        assert expiry(run) == (110.0 + LIMITS.idle_s, "idle_s", Trigger.EXPIRE)


@pytest.mark.parametrize(
    ("form", "body"),
    [(CHAT, b'{"model":"m","n":3}'), (COMPLETIONS, b'{"prompt":["a","b","c"]}')],
)
def test_several_choices_are_whole_when_each_of_them_is(form: Format, body: bytes) -> None:
    """However far apart they finish, and in whatever order."""
    run = make_run(form=form.of_request(body, ""))
    run.begin_attempt("box", "m", 100.0)
    run.feed(choice(1, "stop"), 101.0)
    for number in range(50):
        run.feed(choice(2) + choice(0), 102.0 + number)
    run.feed(choice(0, "length") + choice(0, "length"), 160.0)
    assert expiry(run)[1] == "idle_s"
    assert run.feed_end(161.0)[1] is Meaning.OPENING
    run.feed(choice(2, "stop"), 170.0)
    assert expiry(run)[:2] == (170.0 + END_WITHIN_S, "end_within_s")
    assert run.feed_end(171.0)[1] is Meaning.FINISH


def choice(index: int, finish: str | None = None) -> bytes:
    part = {"index": index, "delta": {"content": "a"}, "text": "a", "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [part]}).encode() + b"\n\n"


def test_a_whole_answer_is_never_ended_as_a_broken_one() -> None:
    """Whatever limit would come first, it completes."""
    for limits in (Limits(idle_s=1.0), Limits(total_s=12.0), Limits(idle_s=5.0)):
        run = make_run(limits)
        run.begin_attempt("box", "m", 100.0)
        run.feed(chunk(content="a") + FINISH, 110.0)
        due_s, _, trigger = expiry(run)
        assert due_s <= 115.0
        assert trigger is Trigger.COMPLETE


def test_a_finish_is_noticed_without_a_deadline_of_its_own() -> None:
    """A relay that waits for the next limit looks again soon enough, and not all the time."""
    run = connecting(CHAT)
    assert look_again_s(run, 100.0) == float("inf")
    run.feed(chunk(content="a"), 110.0)
    assert look_again_s(run, 110.0) == 115.0
    assert look_again_s(run, 120.0) == 125.0
    run.feed(FINISH, 122.0)
    assert look_again_s(run, 125.0) == expiry(run)[0] == 127.0
    run.pause(123.0)
    assert look_again_s(run, 125.0) == float("inf")
