"""Any history of runs, readers, limits and sweeps keeps the books, the windows and the ends.

A machine drives real runs through random interleavings of everything that can befall them, and
compares them after each step with a model of its own: what each buffer holds is measured anew
from the objects, what each reader must see is a plain list of events, and how far an answer has
come is known from the pieces it was made of.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as States
from hypothesis.stateful import RuleBasedStateMachine, consumes, initialize, invariant, rule

from fakes.held import memory_of
from tidegate.core.errors import CursorEvicted, LedgerFull, UpstreamError
from tidegate.core.formats.base import Meaning
from tidegate.core.formats.openai import DONE as CHAT_DONE
from tidegate.core.formats.sse import split_events
from tidegate.core.runs.deadlines import Deadlines
from tidegate.core.runs.ledger import RECORD_BYTES, Entry, Ledger
from tidegate.core.runs.limits import next_expiry
from tidegate.core.runs.retention import due_s, verdict
from tidegate.core.runs.run import Run, RunRequest
from tidegate.core.runs.state import TERMINAL, RunState, Trigger, empty_census
from tidegate.core.runs.window import START, Cursor
from tidegate.core.settings import Limits

# What a piece of a list costs beside its content, at most: an object's header and its place.
PIECE_BYTES = 64


def chunk(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


ROLE = chunk(role="assistant", content="")
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'

# What an upstream may send, and the event that a reader is to see of it; None: nothing.
PIECES: dict[str, tuple[bytes, bytes | None]] = {
    "role": (ROLE, ROLE),
    "word": (chunk(content="a"), chunk(content="a")),
    "page": (chunk(content="x" * 3000), chunk(content="x" * 3000)),
    "book": (chunk(content="y" * 70_000), chunk(content="y" * 70_000)),
    "finish": (FINISH, FINISH),
    "done": (CHAT_DONE, CHAT_DONE),
    "comment": (b": keep-alive\n\n", None),
    "retry": (b"retry: 5\n\n", None),
    "no data": (b"event: ping\n\n", None),
    "with id": (b"id: 7\r\ndata: 7\r\n\r\n", b"data: 7\n\n"),
    "crlf": (b"data: {}\r\n\r\n", b"data: {}\r\n\r\n"),
    "two lines": (b'data: {"d":\ndata: 1}\n\n', b'data: {"d":\ndata: 1}\n\n'),
    "not English": (b'data: "\xc3\xa9"\n\n', b'data: "\xc3\xa9"\n\n'),
    "blank": (b"\n\r\n", None),
}
ERROR = b'data: {"error":{"message":"overloaded"}}\n\n'


@dataclass
class Reader:
    """A subscriber of the model: where it stands, and which event it wants next."""

    cursor: Cursor
    wants: int


@dataclass
class Story:
    """One run, and what the machine knows of it independently."""

    run: Run
    stream: bytearray = field(default_factory=bytearray)  # sent by the upstream, not yet read
    expected: list[bytes] = field(default_factory=list)  # events of this attempt's stream
    read: int = 0  # how many bytes of the attempt's stream were read
    ends: list[int] = field(default_factory=list)  # where each expected event ends in it
    sent: list[bytes] = field(default_factory=list)  # events handed out for the subscribers
    appended: int = 0  # error events of our own, at the end
    readers: list[Reader] = field(default_factory=list)
    outbound: int = 0
    last_state: RunState = RunState.QUEUED
    seqs: tuple[int, int] = (0, 0)


class Gateway(RuleBasedStateMachine):
    """Runs, their ledger and their readers, driven at random."""

    stories = States("stories")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.ledger = Ledger()
        self.ledger.reclaim = self.reclaim
        self.alive: list[Story] = []
        self.relieved = 0
        self.census = empty_census()

    # --- what the shell around the core would do ------------------------------------------

    def reclaim(self) -> None:
        """Evicts the windows of what is over, then pauses the rest."""
        self.relieved += 1
        for story in self.alive:
            if story.run.is_over:
                story.run.window.trim(0)
                story.run.account.set(Entry.WINDOW, 0)
            else:
                story.run.pause(self.now_s)

    def fail(self, story: Story, reason: str) -> None:
        if story.run.end(Trigger.FAIL, reason, None, self.now_s, 0.0):
            self.tell(story)

    def tell(self, story: Story) -> None:
        if story.run.request.streamed:
            story.sent.append(story.run.transcript.append_ours(story.run.error_events()))
            story.appended += 1

    def note_sent(self, story: Story, block: bytes) -> None:
        story.sent += split_events(block)

    def start(self, story: Story) -> None:
        story.run.begin_attempt("box", "m", self.now_s)
        story.stream.clear()
        story.expected.clear()
        story.ends.clear()
        story.read = 0

    # --- what can befall a run ------------------------------------------------------------

    @initialize(limit=st.sampled_from([0, 50_000, 400_000]))
    def begin(self, limit: int) -> None:
        self.ledger.limit_bytes = limit

    @rule(
        target=stories,
        body=st.integers(0, 20_000),
        window=st.sampled_from([5_000, 70_000, 200_000, 4 << 20]),
        streamed=st.sampled_from([True, True, True, False]),
        keep_running=st.booleans(),
        waits=st.sampled_from([False, False, True]),
    )
    def create(
        self, body: int, window: int, streamed: bool, keep_running: bool, waits: bool
    ) -> Story:
        account = self.ledger.open()
        try:
            run = Run(
                run_id=f"run_{len(self.alive)}",
                owner="",
                request=RunRequest("m", streamed=streamed, keep_running=keep_running),
                body=bytes(body),
                limits=Limits(window_bytes=window, total_s=100.0, grace_s=10.0),
                account=account,
                now_s=self.now_s,
                created=0.0,
            )
        except LedgerFull:
            account.close()
            run = Run(
                run_id="run_refused",
                owner="",
                request=RunRequest("m"),
                body=b"",
                limits=Limits(),
                account=Ledger().open(),
                now_s=self.now_s,
                created=0.0,
            )
            run.end(Trigger.FAIL, "refused", None, self.now_s, 0.0)
            return Story(run)
        run.join(self.census)
        story = Story(run)
        self.alive.append(story)
        if not waits:
            self.start(story)
        return story

    @rule(story=stories)
    def attempt(self, story: Story) -> None:
        if story in self.alive and story.run.state in {RunState.QUEUED, RunState.CONNECTING}:
            self.start(story)

    @rule(
        story=stories,
        pieces=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=6),
        unread=st.one_of(st.just(0), st.integers(1, 60), st.integers(1000, 80_000)),
    )
    def upstream_sends(self, story: Story, pieces: list[str], unread: int) -> None:
        """More of the answer arrives, and all but the last `unread` bytes of it are read."""
        run = story.run
        if story not in self.alive or not run.attempts or run.is_over or not run.request.streamed:
            return
        for raw, event in (PIECES[piece] for piece in pieces):
            story.stream += raw
            if event is not None:
                story.expected.append(event)
                story.ends.append(story.read + len(story.stream))
        size = max(0, len(story.stream) - unread)
        data = bytes(story.stream[:size])
        del story.stream[:size]
        story.read += len(data)
        try:
            self.note_sent(story, run.feed(data, self.now_s))
        except LedgerFull as full:
            self.lost(story, str(full))

    @rule(story=stories)
    def upstream_says_error(self, story: Story) -> None:
        run = story.run
        if (
            story not in self.alive
            or run.state is not RunState.CONNECTING
            or not run.request.streamed
        ):
            return
        if story.stream or run.attempt.framer.partial_bytes:
            return
        try:
            run.feed(ERROR, self.now_s)
        except UpstreamError as failed:
            self.fail(story, str(failed))
        except LedgerFull as full:
            self.lost(story, str(full))
        else:
            raise AssertionError("an error before the first output went unnoticed")

    @rule(story=stories, size=st.integers(0, 5000))
    def plain_is_read(self, story: Story, size: int) -> None:
        run = story.run
        if story not in self.alive or run.request.streamed or run.state is not RunState.CONNECTING:
            return
        try:
            run.feed_plain(bytes(size))
        except LedgerFull as full:
            self.lost(story, str(full))

    @rule(story=stories)
    def upstream_ends(self, story: Story) -> None:
        run = story.run
        if story not in self.alive or not run.attempts or run.is_over or not run.request.streamed:
            return
        story.stream.clear()
        try:
            block, said = run.feed_end(self.now_s)
        except LedgerFull as full:
            self.lost(story, str(full))
            return
        self.note_sent(story, block)
        if said in {Meaning.DONE, Meaning.FINISH}:
            assert run.end(Trigger.COMPLETE, None, None, self.now_s, 0.0)
        else:
            self.fail(story, "ended before its answer was complete")

    def lost(self, story: Story, reason: str) -> None:
        """A charge failed: what was kept of the last block is in the window, told or not."""
        run = story.run
        kept = run.window.next_seq - len(story.sent)
        story.sent += run.window.last_events(kept) if kept else []
        if len(story.sent) < run.window.next_seq:
            # The block did not even fit into the window: no reader can have it any more.
            story.sent += [b""] * (run.window.next_seq - len(story.sent))
        self.fail(story, reason)

    @rule(
        story=stories,
        trigger=st.sampled_from([Trigger.FAIL, Trigger.CANCEL, Trigger.EXPIRE]),
    )
    def end(self, story: Story, trigger: Trigger) -> None:
        if story not in self.alive:
            return
        before = (story.run.state, story.run.reason, story.run.ended_s)
        if story.run.end(trigger, "because", None, self.now_s, 0.0):
            self.tell(story)
        else:
            assert (story.run.state, story.run.reason, story.run.ended_s) == before

    @rule(story=stories)
    def trim(self, story: Story) -> None:
        if story in self.alive:
            window = story.run.window
            window.trim(window.held_bytes // 2)
            story.run.account.set(Entry.WINDOW, window.held_bytes)

    @rule(story=stories, held=st.integers(0, 300_000))
    def write(self, story: Story, held: int) -> None:
        if story in self.alive:
            story.outbound = held
            try:
                story.run.account.set(Entry.OUTBOUND, held)
            except LedgerFull:
                story.outbound = 0
                story.run.account.set(Entry.OUTBOUND, 0)

    @rule(story=consumes(stories))
    def release(self, story: Story) -> None:
        if story not in self.alive:
            return
        self.alive.remove(story)
        story.run.account.set(Entry.OUTBOUND, 0)
        before = self.ledger.total_bytes
        freed = story.run.release()
        story.run.leave_census()
        assert freed == before - self.ledger.total_bytes
        assert story.run.account.total_bytes == 0
        assert story.run.window.held_bytes == 0
        assert story.run.account.close() == 0

    @rule(limit=st.sampled_from([0, 20_000, 300_000, 10**9]))
    def limit_changes(self, limit: int) -> None:
        self.ledger.limit_bytes = limit

    @rule(wait_s=st.floats(0.0, 200.0))
    def time_passes(self, wait_s: float) -> None:
        self.now_s += wait_s

    @rule(story=stories, reads=st.booleans())
    def pause_or_resume(self, story: Story, reads: bool) -> None:
        if reads:
            story.run.resume(self.now_s)
            assert story.run.paused_s is None
        else:
            story.run.pause(self.now_s)

    # --- readers ----------------------------------------------------------------------------

    @rule(story=stories, back=st.integers(0, 10))
    def attach(self, story: Story, back: int) -> None:
        if story not in self.alive:
            return
        window = story.run.window
        seq = max(window.first_seq, window.next_seq - back)
        story.run.attach()
        story.readers.append(Reader(window.cursor(seq), seq))

    @rule(story=stories)
    def read(self, story: Story) -> None:
        """One step of each reader; who fell behind the window is told, and leaves."""
        window = story.run.window
        for reader in list(story.readers):
            if story not in self.alive:
                continue
            try:
                block, cursor = window.read(reader.cursor)
            except CursorEvicted:
                assert reader.wants < window.first_seq
                story.readers.remove(reader)
                story.run.detach(self.now_s)
                continue
            events = split_events(block)
            assert events == story.sent[reader.wants : reader.wants + len(events)]
            assert cursor.seq == reader.wants + len(events)
            assert bool(events) == (reader.wants < window.next_seq)
            reader.cursor, reader.wants = cursor, cursor.seq

    @rule(story=stories)
    def detach(self, story: Story) -> None:
        if story in self.alive and story.readers:
            story.readers.pop()
            story.run.detach(self.now_s)
            if not story.readers and not story.run.is_over:
                assert story.run.abandoned_s == self.now_s

    # --- what holds after every step ---------------------------------------------------------

    @invariant()
    def the_books_are_right(self) -> None:
        """Total, accounts, entries and the memory really held are one figure."""
        accounts = self.ledger.accounts
        assert accounts == {story.run.account for story in self.alive}
        assert self.ledger.total_bytes == sum(account.total_bytes for account in accounts)
        assert self.ledger.total_bytes == sum(self.ledger.statistics().values())
        for story in self.alive:
            run = story.run
            entries = run.account.entries
            assert min(entries) >= 0
            assert run.account.total_bytes == sum(entries)
            assert entries[Entry.RECORD] == RECORD_BYTES
            assert entries[Entry.BODY] == len(run.body)
            assert entries[Entry.OUTBOUND] == story.outbound
            taken = memory_of(run.window, but=run.window.framing)
            assert run.window.held_bytes == taken
            assert entries[Entry.WINDOW] == taken
            attempts = run.attempts
            assert entries[Entry.PARTIAL] == sum(memory_of(each.framer) for each in attempts)
            held = [piece for attempt in attempts for piece in attempt.held]
            content = sum(map(len, held))
            assert content <= entries[Entry.HELD] <= content + PIECE_BYTES * len(held)

    @invariant()
    def the_census_is_a_recount(self) -> None:
        """How many runs are held, by state, is what counting them anew says."""
        held = Counter(story.run.state for story in self.alive)
        assert self.census == empty_census() | held

    @invariant()
    def windows_are_bounded_and_only_move_on(self) -> None:
        """The cap holds, and neither end of a window ever goes back."""
        for story in self.alive:
            window = story.run.window
            assert window.held_bytes <= window.cap_bytes
            assert window.first_seq <= window.next_seq
            assert story.seqs[0] <= window.first_seq
            assert story.seqs[1] <= window.next_seq
            story.seqs = (window.first_seq, window.next_seq)

    @invariant()
    def readers_get_the_answer_and_nothing_else(self) -> None:
        """What was handed out, what is retained and what the upstream sent are one list."""
        for story in self.alive:
            run = story.run
            window = run.window
            assert len(story.sent) == window.next_seq
            seen: list[bytes] = []
            cursor = window.cursor(window.first_seq)
            while (step := window.read(cursor))[0]:
                seen += split_events(step[0])
                cursor = step[1]
            assert seen == story.sent[window.first_seq :]
            answer = story.sent[: len(story.sent) - story.appended]
            for at, event in enumerate(answer):
                # An end in doubt is settled when the upstream ends: of CR LF the CR is enough.
                assert event in {b"", story.expected[at], story.expected[at][:-1]}
            if run.state is RunState.STREAMING:
                # An end in doubt waits for one more byte, and no longer.
                complete = sum(end < story.read for end in story.ends)
                assert len(answer) >= complete

    @invariant()
    def ends_are_final(self) -> None:
        """A run that is over stays what it became; one that is not always has a way out."""
        for story in self.alive:
            run = story.run
            if story.last_state in TERMINAL:
                assert run.state is story.last_state
            story.last_state = run.state
            expiry = next_expiry(run)
            assert (expiry is None) == run.is_over
            if expiry is not None:
                assert expiry.due_s <= run.created_s + run.limits.total_s
                assert expiry.reason
            if run.is_over:
                assert run.body == b""
                entries = run.account.entries
                assert entries[Entry.PARTIAL] == entries[Entry.HELD] == entries[Entry.BODY] == 0

    @invariant()
    def the_net_is_always_there(self) -> None:
        """Every run has a finite moment at which the sweep takes it, and none before."""
        deadlines: Deadlines[int] = Deadlines()
        for number, story in enumerate(self.alive):
            run = story.run
            at_s = due_s(run)
            limits = run.limits
            latest_s = run.created_s + limits.total_s + limits.grace_s
            if run.ended_s is not None:
                latest_s = run.ended_s + limits.keep_finished_s + limits.stall_s
            assert at_s <= latest_s
            assert verdict(run, at_s) is not None
            assert verdict(run, at_s - 0.001) is None
            deadlines.set(number, at_s)
        taken = deadlines.take_due(float("inf"))
        assert len(taken) == len(self.alive)
        order = [due_s(self.alive[number].run) for number in taken]
        assert order == sorted(order)

    def teardown(self) -> None:
        """However the history went, releasing what is left leaves nothing on the books."""
        for story in list(self.alive):
            story.run.release()
            story.run.account.close()
        assert self.ledger.total_bytes == 0
        assert not self.ledger.accounts


Gateway.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestGateway = Gateway.TestCase


def test_a_reader_from_the_start_sees_every_event() -> None:
    """The model's own check: a reader that keeps up gets all events of an answer in order."""
    ledger = Ledger()
    run = Run(
        run_id="run_1",
        owner="",
        request=RunRequest("m"),
        body=b"{}",
        limits=Limits(),
        account=ledger.open(),
        now_s=0.0,
        created=0.0,
    )
    run.begin_attempt("box", "m", 0.0)
    events = [ROLE, *(chunk(content=str(i)) for i in range(2000)), FINISH, CHAT_DONE]
    stream = b"".join(events)
    cursor, seen = START, []
    for start in range(0, len(stream), 777):
        run.feed(stream[start : start + 777], 1.0)
        block, cursor = run.window.read(cursor)
        seen += split_events(block)
    while (step := run.window.read(cursor))[0]:
        seen += split_events(step[0])
        cursor = step[1]
    assert seen == events
