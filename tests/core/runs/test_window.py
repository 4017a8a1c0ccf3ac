"""The window: what is retained of a run, read by cursor, bounded in memory taken."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.held import memory_of
from tidegate.core.errors import CursorEvicted
from tidegate.core.runs.deflated import MOST_BYTES, deflate
from tidegate.core.runs.window import SEGMENT_BYTES, START, Cursor, Window

MIB = 1024 * 1024


def numbered(number: int, size: int = 100) -> bytes:
    return b"data: %d " % number + b"x" * size + b"\n\n"


def fill(window: Window, count: int, size: int = 100) -> list[bytes]:
    events = [numbered(window.next_seq + i, size) for i in range(count)]
    for event in events:
        window.append(event, 1)
    return events


def read_all(window: Window, cursor: Cursor) -> bytes:
    pieces = []
    while True:
        block, cursor = window.read(cursor)
        if not block:
            assert cursor == window.end
            return b"".join(pieces)
        pieces.append(block)


def pack(window: Window, most_bytes: int = MIB) -> int:
    """Packs all that can be; returns how many turns that took."""
    turns = 0
    while found := window.loose(most_bytes):
        window.pack([(data, deflate(data)) for data in found])
        turns += 1
    return turns


def test_every_cursor_reads_to_the_end() -> None:
    """From each seq on, across segments, a reader gets exactly the events that follow."""
    window = Window(4 * MIB)
    events = fill(window, 300, size=1000)
    assert window.next_seq == 300
    for seq in range(301):
        assert read_all(window, window.cursor(seq)) == b"".join(events[seq:])


def test_an_empty_window_has_nothing_before_and_nothing_after() -> None:
    """The only cursor is the beginning, and reading there yields nothing."""
    window = Window(MIB)
    assert window.cursor(0) == START
    assert window.read(START) == (b"", START)
    with pytest.raises(CursorEvicted):
        window.cursor(1)
    assert window.last_events(8) == []


def test_a_reader_at_the_end_goes_on_where_it_stood() -> None:
    """Reading while events come yields each one once."""
    window = Window(MIB)
    cursor = START
    seen = b""
    events = []
    for _ in range(500):
        events += fill(window, 3)
        block, cursor = window.read(cursor)
        seen += block
    while (step := window.read(cursor))[0]:
        seen += step[0]
        cursor = step[1]
    assert seen == b"".join(events)


def test_the_oldest_go_when_the_cap_is_reached() -> None:
    """The window never exceeds its cap, and names the oldest seq that it still holds."""
    window = Window(4 * SEGMENT_BYTES)
    events = []
    for _ in range(1000):
        events += fill(window, 1, size=1000)
        assert window.held_bytes <= window.cap_bytes
    assert 0 < window.first_seq < 1000
    assert read_all(window, window.cursor(window.first_seq)) == b"".join(events[window.first_seq :])
    for cursor in (START, Cursor(window.first_seq - 1, 0)):
        with pytest.raises(CursorEvicted) as gone:
            window.read(cursor)
        assert gone.value.first_seq == window.first_seq
    with pytest.raises(CursorEvicted):
        window.cursor(window.first_seq - 1)


@pytest.mark.parametrize("size", [1, 100, SEGMENT_BYTES - 1, SEGMENT_BYTES, 3 * SEGMENT_BYTES])
def test_the_memory_taken_is_counted_not_the_content(size: int) -> None:
    """What the ledger is charged is what the segments occupy."""
    window = Window(64 * MIB)
    for number in range(20):
        window.append(numbered(number, size), 1)
        assert window.held_bytes == memory_of(window, but=window.framing)


def test_a_trim_to_nothing_holds_nothing_and_goes_on() -> None:
    """After everything went, new events are kept and numbered as if nothing had happened."""
    window = Window(MIB)
    fill(window, 10)
    before = window.held_bytes
    assert window.trim(0) == before
    assert window.held_bytes == 0
    assert window.first_seq == window.next_seq == 10
    assert window.trim(0) == 0
    event = fill(window, 1)[0]
    assert window.first_seq == 10
    assert read_all(window, window.cursor(10)) == event


def test_one_block_of_many_events_can_be_entered_anywhere() -> None:
    """A block that arrived in one piece is split where a reader asks."""
    window = Window(MIB)
    events = [numbered(i) for i in range(7)]
    window.append(b"".join(events), 7)
    for seq in range(7):
        assert window.read(window.cursor(seq)) == (b"".join(events[seq:]), window.end)


def test_the_last_events_reach_across_segments() -> None:
    """The end of an answer is found whatever segment it lies in."""
    window = Window(MIB)
    events = fill(window, 130, size=1000)
    for count in (1, 8, 100, 130, 200):
        assert window.last_events(count) == events[-count:]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5), st.integers(0, 90_000)),
            st.tuples(st.just("trim"), st.integers(0, 300_000), st.just(0)),
            st.tuples(st.just("pack"), st.integers(1, 300_000), st.just(0)),
        ),
        max_size=25,
    )
)
def test_any_history_leaves_a_suffix(steps: list[tuple[str, int, int]]) -> None:
    """Whatever was appended and trimmed, the window is a suffix of the events, within its cap."""
    window = Window(200_000)
    events: list[bytes] = []
    for what, first, second in steps:
        if what == "append":
            block = [numbered(len(events) + i, second // first) for i in range(first)]
            events += block
            window.append(b"".join(block), first)
        elif what == "pack":
            pack(window, first)
        else:
            before = window.held_bytes
            assert window.trim(first) == before - window.held_bytes
            assert window.held_bytes <= first
        assert window.held_bytes <= window.cap_bytes
        assert window.next_seq == len(events)
        suffix = read_all(window, window.cursor(window.first_seq))
        assert suffix == b"".join(events[window.first_seq :])
        assert window.last_events(3) == events[window.first_seq :][-3:]


def test_a_large_read_leaves_a_small_window_full_not_empty() -> None:
    """One block of many segments keeps its newest events, as many as the cap allows."""
    events = [b"data: %06d %s\n\n" % (number, b"." * 1000) for number in range(500)]
    window = Window(2 * SEGMENT_BYTES)
    window.append(b"".join(events), len(events))
    assert window.next_seq == 500
    assert SEGMENT_BYTES / 2 <= window.held_bytes <= 2 * SEGMENT_BYTES
    block, _ = window.read(window.cursor(window.first_seq))
    assert block.startswith(events[window.first_seq])


# --- packed ---------------------------------------------------------------------------------------


def test_a_packed_window_is_read_like_any_other() -> None:
    """From each seq on, with the cursors from before; and it takes a fraction of the memory."""
    window = Window(4 * MIB)
    events = fill(window, 300, size=1000)
    cursors = [window.cursor(seq) for seq in range(301)]
    before = window.held_bytes
    pack(window)
    assert memory_of(window, but=window.framing) <= window.held_bytes < before / 20
    assert (window.first_seq, window.next_seq) == (0, 300)
    for seq, cursor in enumerate(cursors):
        assert window.cursor(seq) == cursor
        assert read_all(window, cursor) == b"".join(events[seq:])
    for count in (1, 8, 300):
        assert window.last_events(count) == events[-count:]
    assert window.loose(MIB) == []  # to read it changes nothing


def test_a_packed_window_is_trimmed_by_what_it_holds() -> None:
    """Segment by segment, until nothing is held."""
    window = Window(4 * MIB)
    events = fill(window, 300, size=1000)
    pack(window)
    before = window.held_bytes
    assert window.trim(before - 1) == before - window.held_bytes > 0
    assert read_all(window, window.cursor(window.first_seq)) == b"".join(events[window.first_seq :])
    assert 0 < window.first_seq < 300
    window.trim(0)
    assert (window.held_bytes, window.first_seq, memory_of(window, but=window.framing)) == (
        0, 300, 0,
    )  # fmt: skip


def test_what_goes_while_it_is_deflated_stays_gone() -> None:
    """What was trimmed meanwhile is not counted, what came meanwhile is not packed."""
    window = Window(4 * MIB)
    fill(window, 300, size=1000)
    found = window.loose(MIB)
    window.trim(SEGMENT_BYTES)
    event = fill(window, 1)[0]
    window.pack([(data, deflate(data)) for data in found])
    assert window.held_bytes == sum(each.held_bytes for each in window._segments)
    assert window.last_events(1) == [event]
    window.trim(0)
    window.pack([(data, deflate(data)) for data in found])
    assert (window.held_bytes, window.last_events(1)) == (0, [])


def test_what_is_not_worth_it_is_tried_once() -> None:
    """Noise, a single small event, and one that is too large to be inflated on the loop."""
    noise = Window(MIB)
    noise.append(b"data: " + random.Random(1).randbytes(20_000) + b"\n\n", 1)
    before = noise.held_bytes
    assert pack(noise) == 1
    assert noise.held_bytes <= before
    for size in (10, MOST_BYTES):
        window = Window(MIB)
        window.append(numbered(0, size), 1)
        assert pack(window) == 0
        assert window.last_events(1) == [numbered(0, size)]


def test_no_more_is_found_at_once_than_was_asked_for() -> None:
    """And one segment at least, so that it comes to an end."""
    window = Window(4 * MIB)
    fill(window, 600, size=1000)
    assert len(window.loose(1)) == 1
    assert sum(map(len, window.loose(100_000))) <= 100_000 + SEGMENT_BYTES
    assert pack(window, most_bytes=1) == 10
