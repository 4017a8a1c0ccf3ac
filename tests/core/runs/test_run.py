"""A run's record: what is held when; every way out leaves nothing."""

import json
import sys

import pytest

from tidegate.core.errors import LedgerFull, UpstreamError
from tidegate.core.formats import CHAT, MESSAGES
from tidegate.core.formats.base import Format, Meaning
from tidegate.core.formats.openai import DONE as CHAT_DONE
from tidegate.core.runs.attempt import HOLD_BYTES, HOLD_EVENTS
from tidegate.core.runs.deflated import deflate
from tidegate.core.runs.ledger import RECORD_BYTES, Entry, Ledger
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import RunState, Trigger
from tidegate.core.runs.window import SEGMENT_BYTES
from tidegate.core.settings import Limits

BODY = b'{"model":"m","stream":true}'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'


def text(content: str) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": content}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def message(kind: str, **values: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()


def make_run(
    ledger: Ledger | None = None,
    limits: Limits | None = None,
    form: Format = CHAT,
    **values: object,
) -> Run:
    return Run(
        run_id="run_1",
        owner="",
        request=RunRequest("m", **values),  # type: ignore[arg-type]
        body=BODY,
        limits=limits or Limits(),
        account=(ledger or Ledger()).open(),
        now_s=100.0,
        created=1_700_000_000.0,
        format=form,
    )


def connecting(**values: object) -> Run:
    run = make_run(**values)  # type: ignore[arg-type]
    run.begin_attempt("box", "m", 101.0)
    return run


def streaming(**values: object) -> Run:
    run = connecting(**values)
    assert run.feed(text("hello"), 102.0)
    return run


# --- before the first output ---------------------------------------------------------------------


def test_a_preamble_is_held_until_the_answer_begins() -> None:
    """A role is no output: it is sent together with the first word, in order."""
    run = connecting()
    assert run.feed(ROLE, 102.0) == b""
    assert run.state is RunState.CONNECTING
    assert run.account.entries[Entry.HELD] >= len(ROLE)
    assert run.feed(text("a"), 103.0) == ROLE + text("a")
    assert run.state is RunState.STREAMING
    assert run.account.entries[Entry.HELD] == 0
    assert run.window.next_seq == 2


def test_the_body_goes_when_no_attempt_can_follow() -> None:
    """The request is kept for a failover, and not a moment longer."""
    run = connecting()
    assert run.account.entries[Entry.BODY] == len(BODY)
    run.feed(text("a"), 102.0)
    assert run.body == b""
    assert run.account.entries[Entry.BODY] == 0


def test_a_failover_releases_what_the_first_attempt_held() -> None:
    """The second attempt starts with an empty hold, and the answer is the second one's alone."""
    run = connecting()
    run.feed(ROLE + b"data: unfinis", 102.0)
    assert run.account.entries[Entry.HELD] > 0
    assert run.account.entries[Entry.PARTIAL] > 0
    second = run.begin_attempt("cloud", "m", 103.0)
    assert second.number == 2
    assert run.account.entries[Entry.HELD] == run.account.entries[Entry.PARTIAL] == 0
    assert run.attempts[0].held == []
    assert run.attempts[0].framer.partial_bytes == 0
    assert run.body == BODY
    assert run.feed(text("b"), 104.0) == text("b")


def test_a_hold_is_bounded_by_events() -> None:
    """A chatty upstream cannot hide an answer behind its preamble."""
    block = message("content_block_start", index=0, content_block={"type": "text", "text": ""})
    run = connecting(form=MESSAGES)
    for _ in range(HOLD_EVENTS):
        assert run.feed(block, 102.0) == b""
    assert run.feed(block, 102.0) == block * (HOLD_EVENTS + 1)


def test_a_hold_is_bounded_by_bytes() -> None:
    """What follows a preamble of 256 KiB is passed on with it."""
    run = connecting(form=MESSAGES)
    start = message("message_start", message={"pad": "x" * HOLD_BYTES})
    assert run.feed(start, 102.0) == b""
    assert run.feed(start, 102.0) == start * 2


@pytest.mark.parametrize("preamble", [b"", ROLE, ROLE + ROLE])
def test_an_error_before_the_first_output_is_the_upstreams(preamble: bytes) -> None:
    """An error event inside a 200 can still fail over, with the upstream's own words."""
    run = connecting()
    run.feed(preamble, 102.0)
    with pytest.raises(UpstreamError, match="server_error"):
        run.feed(ERROR, 103.0)
    assert run.state is RunState.CONNECTING
    run.begin_attempt("cloud", "m", 104.0)


def test_an_error_after_the_first_output_is_part_of_the_answer() -> None:
    """Once the answer has begun, events pass as they are; the end of the stream tells."""
    run = streaming()
    assert run.feed(ERROR, 103.0) == ERROR
    assert run.feed_end(104.0) == (b"", Meaning.ERROR)


# --- while it streams ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ([FINISH, CHAT_DONE], Meaning.DONE),
        ([FINISH], Meaning.FINISH),
        ([FINISH, USAGE], Meaning.FINISH),
        ([FINISH, USAGE, CHAT_DONE], Meaning.DONE),
        ([text("b")], Meaning.OPENING),
        ([FINISH, ERROR], Meaning.ERROR),
        ([], Meaning.OPENING),
    ],
)
def test_the_last_events_say_how_it_ended(tail: list[bytes], said: Meaning) -> None:
    """A marker or a finish_reason completes an answer; without either it broke off."""
    run = streaming()
    for event in tail:
        run.feed(event, 103.0)
    assert run.feed_end(104.0) == (b"", said)


def test_how_it_ended_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay, the clocks and the end ask about the same events; they are read anew for none."""
    run = streaming()
    run.feed(FINISH, 103.0)
    assert run.transcript.verdict() is Meaning.FINISH
    monkeypatch.setattr(run.window, "framing", None)
    assert run.transcript.lacks_only_end()
    assert not run.transcript.has_told_error()
    monkeypatch.undo()
    run.feed(CHAT_DONE, 104.0)
    assert run.transcript.verdict() is Meaning.DONE


@pytest.mark.parametrize("end", [b"\r", b"\r\n\r"])
def test_a_last_line_end_in_doubt_is_settled_at_the_end(end: bytes) -> None:
    """An event that only waited for a possible LF is sent when the stream is over."""
    run = streaming()
    last = CHAT_DONE.rstrip(b"\n") + b"\r\n" + end
    sent = run.feed(last, 103.0)
    block, said = run.feed_end(104.0)
    assert said is Meaning.DONE
    assert (sent + block).startswith(b"data: [DONE]")
    assert run.account.entries[Entry.PARTIAL] == 0


def test_nothing_after_the_last_whole_event_is_sent() -> None:
    """An unterminated event is discarded, and the answer counts as broken off."""
    run = streaming()
    assert run.feed(b"data: [DONE]", 103.0) == b""
    assert run.feed_end(104.0) == (b"", Meaning.OPENING)
    assert run.account.entries[Entry.PARTIAL] == 0


def test_an_empty_stream_is_no_answer() -> None:
    """An upstream that closes without a word has not completed anything."""
    run = connecting()
    assert run.feed_end(102.0) == (b"", Meaning.OPENING)
    assert run.state is RunState.CONNECTING


@pytest.mark.parametrize("window_bytes", [64 * 1024, 100_000])
def test_an_end_is_recognised_although_its_window_was_too_small(window_bytes: int) -> None:
    """How an answer ended does not depend on how much of it is retained."""
    run = connecting(limits=Limits(window_bytes=window_bytes))
    run.feed(text("a") * 2000 + FINISH + CHAT_DONE, 102.0)
    assert run.feed_end(103.0)[1] is Meaning.DONE


def test_a_plain_answer_is_bounded() -> None:
    """`max_body` bounds an answer that is not a stream, and names itself."""
    run = connecting(limits=Limits(max_body_bytes=1000), streamed=False)
    run.feed_plain(b"x" * 1000)
    with pytest.raises(UpstreamError, match="max_body"):
        run.feed_plain(b"x")


def test_a_plain_answer_in_small_pieces_is_charged_what_it_takes() -> None:
    """Many small pieces cost more than their content; the ledger says so, within a factor of 2."""
    run = connecting(streamed=False)
    for _ in range(2000):
        run.feed_plain(b"xy" + bytes(1))
    held = run.attempt.held
    taken = sys.getsizeof(held) + sum(map(sys.getsizeof, held))
    assert run.account.entries[Entry.HELD] >= taken / 2


# --- the end and the release ---------------------------------------------------------------------

ENDS = [
    (Trigger.COMPLETE, RunState.COMPLETED),
    (Trigger.FAIL, RunState.FAILED),
    (Trigger.CANCEL, RunState.CANCELLED),
    (Trigger.EXPIRE, RunState.EXPIRED),
]
STAGES = {"queued": make_run, "connecting": connecting, "streaming": streaming}
WAYS = [
    (stage, *end)
    for stage in STAGES
    for end in ENDS
    if (stage, end[0]) != ("queued", Trigger.COMPLETE)
]


@pytest.mark.parametrize(("stage", "trigger", "state"), WAYS)
def test_every_way_to_end_frees_all_but_the_window(
    stage: str, trigger: Trigger, state: RunState
) -> None:
    """After the end only the record and the window are held; after the release nothing is."""
    ledger = Ledger()
    run = STAGES[stage](ledger=ledger)
    if run.attempts:
        run.feed(ROLE + b"data: unfinished", 103.0)
    assert run.end(trigger, "because", "code", 110.0, 1_700_000_010.0)
    assert (run.state, run.reason, run.ended_s) == (state, "because", 110.0)
    assert run.account.total_bytes == RECORD_BYTES + run.window.held_bytes
    assert not run.end(Trigger.CANCEL, "again", None, 111.0, 1_700_000_011.0)
    assert (run.state, run.reason, run.ended_s) == (state, "because", 110.0)
    run.release()
    assert run.account.total_bytes == ledger.total_bytes == 0
    assert run.window.held_bytes == 0
    run.account.close()
    assert not ledger.accounts


@pytest.mark.parametrize("stage", STAGES)
def test_a_release_without_an_end_leaves_nothing(stage: str) -> None:
    """A run whose end never took place gives back every byte all the same."""
    ledger = Ledger()
    run = STAGES[stage](ledger=ledger)
    if run.attempts:
        run.feed(text("x" * 200_000) + b"data: unfinished", 103.0)
    held = ledger.total_bytes
    assert run.release() == held
    assert ledger.total_bytes == 0
    assert run.release() == 0


def late_stream(run: Run) -> None:
    run.feed(text("late"), 200.0)


def late_partial(run: Run) -> None:
    run.feed(b"data: unfinished", 200.0)


def late_plain(run: Run) -> None:
    run.feed_plain(b"late")


def late_end(run: Run) -> None:
    run.feed_end(200.0)


@pytest.mark.parametrize("late", [late_stream, late_partial, late_plain, late_end])
@pytest.mark.parametrize("over", ["ended", "released", "swept"])
def test_late_news_changes_nothing(over: str, late: object) -> None:
    """What an upstream still sends after the end or the release is neither kept nor passed on."""
    ledger = Ledger()
    run = streaming(ledger=ledger)
    if over != "swept":
        run.end(Trigger.CANCEL, "cancelled by client", None, 110.0, 0.0)
    if over != "ended":
        run.release()
        run.account.close()
    before = (run.state, run.window.next_seq, ledger.total_bytes)
    late(run)  # type: ignore[operator]
    assert (run.state, run.window.next_seq, ledger.total_bytes) == before
    assert ledger.total_bytes == sum(account.total_bytes for account in ledger.accounts)


def test_what_is_outbound_outlives_the_release_until_the_account_closes() -> None:
    """Bytes still in a connection stay on the books after the release, and go with the account."""
    ledger = Ledger()
    run = streaming(ledger=ledger)
    run.account.set(Entry.OUTBOUND, 5000)
    run.release()
    assert ledger.total_bytes == 5000
    assert run.account.close() == 5000
    assert ledger.total_bytes == 0


def test_the_error_event_is_kept_even_without_room() -> None:
    """The reason must reach the reader: it is recorded and charged, limit or not."""
    ledger = Ledger()
    run = streaming(ledger=ledger)
    ledger.limit_bytes = 1
    run.end(Trigger.EXPIRE, 'upstream "box" idle for 120 s', "idle_s", 110.0, 0.0)
    block = run.transcript.append_ours(run.error_events())
    assert CHAT.meaning(block) is Meaning.ERROR
    assert b"idle for 120 s" in block
    assert json.loads(block[6:])["error"]["code"] == "idle_s"
    assert run.window.read(run.window.cursor(1))[0] == block
    assert run.account.entries[Entry.WINDOW] == run.window.held_bytes


def test_a_full_ledger_fails_the_run_that_asks_for_more() -> None:
    """Without room a feed fails with the limit's name, and the end still frees everything."""
    ledger = Ledger()
    run = streaming(ledger=ledger)
    ledger.limit_bytes = ledger.total_bytes + 1000
    with pytest.raises(LedgerFull, match="memory limit"):
        run.feed(text("x" * 100_000), 103.0)
    run.end(Trigger.FAIL, "memory limit", "memory_limit", 103.0, 0.0)
    run.release()
    assert ledger.total_bytes == 0


def test_a_finished_run_is_handed_over_whole() -> None:
    """In another process it has the same seqs, the same bytes, and is charged for them."""
    ledger = Ledger()
    events = [text(str(number)) for number in range(5)]
    run = make_run(ledger=ledger)
    run.adopt(
        state=RunState.COMPLETED,
        attempts=[],
        events=b"".join(events),
        first_seq=7,
        next_seq=12,
        ended_s=150.0,
    )
    assert (run.window.first_seq, run.window.next_seq) == (7, 12)
    assert run.window.read(run.window.cursor(9))[0] == b"".join(events[2:])
    assert run.account.entries[Entry.WINDOW] == run.window.held_bytes > 0
    run.release()
    assert ledger.total_bytes == 0


@pytest.mark.parametrize(
    ("state", "first_seq", "next_seq"),
    [(RunState.STREAMING, 0, 1), (RunState.COMPLETED, 0, 2), (RunState.COMPLETED, -1, 0)],
)
def test_a_hand_over_that_does_not_add_up_is_refused(
    state: RunState, first_seq: int, next_seq: int
) -> None:
    """Only a finished run with exactly the events it claims is taken."""
    run = make_run()
    with pytest.raises(ValueError, match="handed over"):
        run.adopt(
            state=state,
            attempts=[],
            events=text("a"),
            first_seq=first_seq,
            next_seq=next_seq,
            ended_s=150.0,
        )


# --- readers and pauses --------------------------------------------------------------------------


def test_a_run_is_abandoned_when_the_last_reader_leaves_and_not_before() -> None:
    """The grace starts with the last one to go, and a newcomer stops it."""
    run = streaming()
    run.attach()
    run.attach()
    run.detach(105.0)
    assert run.abandoned_s is None
    run.detach(106.0)
    assert run.abandoned_s == 106.0
    run.attach()
    assert run.abandoned_s is None
    run.end(Trigger.COMPLETE, None, None, 107.0, 0.0)
    run.detach(108.0)
    assert run.abandoned_s is None
    with pytest.raises(AssertionError):
        run.detach(109.0)


def test_the_idle_clock_stands_still_during_a_pause() -> None:
    """The time we did not read is not the upstream's."""
    run = streaming()
    run.pause(110.0)
    run.pause(115.0)
    run.resume(130.0)
    assert run.attempt.last_event_s == 102.0 + 20.0
    assert run.paused_s is None
    run.resume(140.0)
    assert run.attempt.last_event_s == 102.0 + 20.0


def test_a_clock_never_runs_ahead_of_now() -> None:
    """Events that arrive during a pause, and attempts that begin in one, are not dated forward."""
    run = streaming()
    run.pause(110.0)
    run.feed(text("already read"), 125.0)
    run.resume(130.0)
    assert run.attempt.last_event_s <= 130.0

    run = connecting()
    run.pause(110.0)
    run.begin_attempt("cloud", "m", 125.0)
    run.resume(130.0)
    assert run.attempt.started_s <= 130.0


def test_an_event_without_a_word_is_dropped() -> None:
    """`data:` alone is a server's keep-alive: no event, no progress, and no fault."""
    run = make_run()
    run.begin_attempt("box", "m", 100.0)
    run.feed(ROLE + text("a"), 101.0)
    assert run.feed(b"data:\n\n", 102.0) == b""
    assert run.attempt.last_event_s == 101.0
    assert run.feed(b"data: \n\n" + text("b") + b"data:\n\n", 103.0) == text("b")
    with pytest.raises(UpstreamError, match="not JSON"):
        run.feed(b"data:\n\ndata: {\n\n", 104.0)


def test_pings_are_neither_held_nor_progress() -> None:
    """However many come before the first output: the attempt still waits for it."""
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    run = make_run(form=MESSAGES)
    run.begin_attempt("box", "m", 100.0)
    for second in range(200):
        assert run.feed(ping, 101.0 + second) == b""
    assert run.state is RunState.CONNECTING
    assert (run.attempt.held_events, run.attempt.last_event_s) == (0, 100.0)


def test_a_ping_of_the_preamble_is_kept_however_it_is_read() -> None:
    """Anthropic's second event is a ping; it is sent on whether or not it came in one read."""
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    start = b'event: message_start\ndata: {"type": "message_start"}\n\n'
    word = (
        b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, '
        b'"delta": {"type": "text_delta", "text": "a"}}\n\n'
    )
    for reads in ([start + ping, word], [start, ping, word], [start, ping, ping, word]):
        run = make_run(form=MESSAGES)
        run.begin_attempt("box", "m", 100.0)
        sent = b"".join(run.feed(read, 101.0) for read in reads)
        assert sent == start + ping + word, reads


# --- packed ---------------------------------------------------------------------------------------


def test_a_packed_answer_is_charged_what_it_takes_and_tells_the_same() -> None:
    """How it ended, its last event, its tokens; and a release gives everything back."""
    ledger = Ledger()
    run = streaming(ledger=ledger)
    for _ in range(2000):
        run.feed(text("word "), 103.0)
    run.feed(FINISH + USAGE.replace(b"3", b"12").replace(b"total", b"completion"), 104.0)
    run.end(Trigger.COMPLETE, None, None, 105.0, 1_700_000_005.0)
    told = (run.transcript.usage(), run.transcript.last_event, run.transcript.verdict())
    assert told[0].output == 12
    before = run.account.entries[Entry.WINDOW]
    freed = 0
    while found := run.transcript.loose(100_000):
        freed += run.transcript.pack([(data, deflate(data)) for data in found])
    assert run.account.entries[Entry.WINDOW] == run.window.held_bytes < before / 20
    assert freed == pytest.approx(before - run.window.held_bytes, abs=SEGMENT_BYTES)
    run.transcript._judged_seq = -1  # asked anew
    assert told == (run.transcript.usage(), run.transcript.last_event, run.transcript.verdict())
    run.transcript.shrink(0)
    assert run.account.entries[Entry.WINDOW] == 0
    assert run.transcript.verdict() is told[2]
    run.release()
    assert ledger.total_bytes == 0
