"""Framing: whole events come out, bytes unchanged, wherever the input was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.formats.framing_rig import framed, in_pieces
from fakes.held import held
from tidegate.core.errors import EventTooLarge
from tidegate.core.formats import sse
from tidegate.core.formats.sse import (
    SseFramer,
    event_data,
    event_name,
    plain_payloads,
    split_events,
    with_ids,
)

ROWS = [
    (b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]),
    (b"data: a\r\rdata: b\r\r", [b"data: a\r\r", b"data: b\r\r"]),
    (b"data: a\r\r\ndata: b\n\n", [b"data: a\r\r", b"data: b\n\n"]),
    (b"data: a\n\r\ndata: b\r\n\n", [b"data: a\n\r\n", b"data: b\r\n\n"]),
    (b"\xef\xbb\xbfdata: a\n\n", [b"data: a\n\n"]),
    (b": hello\n\ndata: a\n\n:\n\n", [b"data: a\n\n"]),
    (b": c\ndata: a\n\n", [b"data: a\n\n"]),
    (b"id: 7\r\ndata: a\r\n\r\n", [b"data: a\n\n"]),
    (b"retry: 9\n\ndata: a\nid\n\n", [b"data: a\n\n"]),
    (b"idea: 1\ndata: a\n\n", [b"idea: 1\ndata: a\n\n"]),
    (b"event: ping\n\ndata: a\n\n", [b"data: a\n\n"]),
    (b"event: x\ndata: a\ndata: b\n\n", [b"event: x\ndata: a\ndata: b\n\n"]),
    (b"\n\n\r\n\ndata: a\n\n\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"]),
    (b"data\n\ndata: b\n\n", [b"data\n\n", b"data: b\n\n"]),
    (b"data: a\n\ndata: unfinished", [b"data: a\n\n"]),
    (b"data: \xf0\x9f\x8c\x8a\n\n", [b"data: \xf0\x9f\x8c\x8a\n\n"]),
    (
        b"event: e\ndata: a\n\nevent: f\ndata: b\n\n",
        [b"event: e\ndata: a\n\n", b"event: f\ndata: b\n\n"],
    ),
    (b"event: e\n: c\ndata: a\n\nevent: f\n\n", [b"event: e\ndata: a\n\n"]),
    (b"event: e\nx:\ndata: a\n\n", [b"event: e\nx:\ndata: a\n\n"]),
    (b"event: e\ndata: a\rid: 1\n\ndata: b\n\n", [b"event: e\ndata: a\n\n", b"data: b\n\n"]),
    (
        b"data: a\n\ndata: b\r\n\r\ndata: c\n\n",
        [b"data: a\n\n", b"data: b\r\n\r\n", b"data: c\n\n"],
    ),
    (b"data: a\n\n\n\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"]),
]


def frame(pieces: list[bytes]) -> list[bytes]:
    return framed(SseFramer(), split_events, pieces)


@pytest.mark.parametrize(("stream", "events"), ROWS)
def test_a_cut_at_every_byte_does_not_show(stream: bytes, events: list[bytes]) -> None:
    """Fed whole, cut in two anywhere, or byte by byte, the events are the same."""
    assert frame([stream]) == events
    assert frame([stream[i : i + 1] for i in range(len(stream))]) == events
    for cut in range(len(stream)):
        assert frame([stream[:cut], stream[cut:]]) == events
        for other in range(cut, len(stream)):
            assert frame([stream[:cut], stream[cut:other], stream[other:]]) == events


def test_a_stream_without_cr_is_never_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that end inside an event, as every full one does, are cut without a look at each."""
    monkeypatch.setattr(sse, "_END", None)
    stream = b"data: 0123456789\n\n" * 50 + b"event: e\ndata: a\n\n: c\n\n"
    for size in range(1, 60):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert len(frame(pieces)) == 51


def test_a_huge_event_is_gathered_in_one_place() -> None:
    """An event that comes in many reads is not copied with each of them."""
    framer = SseFramer()
    framer.feed(b"data: ")
    [tail] = held(framer, bytearray)
    for _ in range(100):
        assert framer.feed(b"x" * 1000) == (b"", 0)
        assert held(framer, bytearray)[0] is tail
    assert framer.feed(b"\n\ndata: b") == (b"data: " + b"x" * 100_000 + b"\n\n", 1)


@given(
    st.lists(
        st.sampled_from(
            [b"data: x", b"data", b"event: e", b"id: 1", b":c", b"retry: 2", b"\r", b"\n", b"\r\n"]
        ),
        max_size=30,
    ),
    st.lists(st.integers(1, 7), min_size=1, max_size=20),
)
def test_any_mixture_of_lines_frames_the_same_however_it_is_cut(
    lines: list[bytes], sizes: list[int]
) -> None:
    """Line ends of all three kinds, mixed at random, never make the cut visible."""
    stream = b"".join(lines)
    assert frame(in_pieces(stream, sizes)) == frame([stream])


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n")), max_size=9))
def test_payloads_survive(payloads: list[str]) -> None:
    """What was sent as data is what is read as data."""
    stream = b"".join(f"data: {payload}\n\n".encode() for payload in payloads)
    assert [event_data(event).decode() for event in frame([stream])] == payloads


def test_an_event_is_complete_at_once_when_its_end_is_certain() -> None:
    """Nothing waits for the next byte, except a lone CR that may be half of CR LF."""
    assert SseFramer().feed(b"data: a\n\n") == (b"data: a\n\n", 1)
    assert SseFramer().feed(b"data: a\r\r") == (b"data: a\r\r", 1)
    framer = SseFramer()
    assert framer.feed(b"data: a\r\n\r") == (b"", 0)
    assert framer.feed(b"\n") == (b"data: a\r\n\r\n", 1)


def test_a_giant_event_is_refused_in_pieces_and_whole() -> None:
    """The bound holds for the unfinished tail as for an event that arrives complete."""
    framer = SseFramer(limit_bytes=100)
    for _ in range(100):
        framer.feed(b"x")
    with pytest.raises(EventTooLarge):
        framer.feed(b"x")
    with pytest.raises(EventTooLarge):
        SseFramer(limit_bytes=100).feed(b"data: " + b"x" * 100 + b"\n\n")
    with pytest.raises(EventTooLarge):
        SseFramer(limit_bytes=100).feed(b"data: " + b"x" * 100 + b"\r\n\r\n")


def test_the_tail_is_charged_and_given_back() -> None:
    """An unfinished event takes memory, a finished one none."""
    framer = SseFramer()
    framer.feed(b"data: " + b"x" * 1000)
    assert framer.partial_bytes >= 1006
    framer.feed(b"\n\n")
    assert framer.partial_bytes == 0


@pytest.mark.parametrize(
    ("block", "events"),
    [
        (b"", 0),
        (b"data: a\n\n", 1),
        (b"data: a\n\ndata: b\n\n", 2),
        (b"data: a\n\n\ndata: b\n\n", 0),
        (b"data: a\ndata: b\n\n", 0),
        (b"data: a\n\n: c\n\n", 0),
        (b"data: a\r\n\n", 0),
        (b"data: a\n", 0),
        (b"id: a\n\n", 0),
    ],
)
def test_only_the_plain_stream_takes_the_short_way(block: bytes, events: int) -> None:
    """One data line per event and LF ends: anything else is looked at event by event."""
    assert len(plain_payloads(block)) == events


def test_names_and_ids() -> None:
    """An event without a name is a message; ids are numbered from where the reader stands."""
    assert event_name(b"event: ping\ndata: {}\n\n") == "ping"
    assert event_name(b"data: {}\n\n") == "message"
    assert with_ids(b"data: a\n\n", 5) == b"id: 5\ndata: a\n\n"
    assert with_ids(b"data: a\n\ndata: b\r\n\r\n", 5) == b"id: 5\ndata: a\n\nid: 6\ndata: b\r\n\r\n"
    assert event_data(b"data: a\r\ndata:b\r\n\r\n") == b"a\nb"
