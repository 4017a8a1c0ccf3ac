"""WebSocket frames: whole messages come out wherever the bytes were cut, and all is counted."""

from __future__ import annotations

import io
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.http.frames import (
    CloseCode,
    Frame,
    FrameReader,
    Opcode,
    WebSocketFault,
    accept_of,
    close_frame,
    frame,
    read_close,
    unmasked,
)

MASK = b"\x01\x80\xff\x37"
MIB = 1024 * 1024


def sent(opcode: int, data: bytes, *, fin: bool = True, mask: bytes = MASK, wide: int = 0) -> bytes:
    """A client's frame, its length in `wide` bytes where that is more than it needs."""
    wide = wide or (0 if len(data) < 126 else 2 if len(data) < 65536 else 8)
    size = {0: len(data), 2: 126, 8: 127}[wide]
    head = bytes([opcode | (0x80 if fin else 0), 0x80 | size])
    return head + (len(data).to_bytes(wide) if wide else b"") + mask + unmasked(data, mask)


def fragments(data: bytes, *sizes: int) -> list[bytes]:
    """A text message in frames of these sizes and a last one with the rest."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    return [
        sent(Opcode.CONTINUATION if n else Opcode.TEXT, piece, fin=n == len(pieces) - 1)
        for n, piece in enumerate(pieces)
    ]


def read(pieces: list[bytes], max_bytes: int = MIB) -> list[Frame]:
    """What comes out of these reads; afterwards nothing is held."""
    reader = FrameReader(max_bytes, io.BytesIO)
    frames = []
    for piece in pieces:
        reader.feed(piece)
        while (found := reader.next()) is not None:
            frames.append(found)
    assert (reader.held_bytes, reader.is_between) == (0, True)
    return frames


TEXT = "tide ein Wort für Gezeiten 潮 🌊 \\ud83d".encode()
LONG = TEXT * 3000
ROWS = [
    ([sent(1, b"")], [(1, b"")]),
    ([sent(1, TEXT)], [(1, TEXT)]),
    ([sent(2, b"\xff\x00")], [(2, b"\xff\x00")]),
    ([sent(1, TEXT[:7] * 0 + b"x" * 125)], [(1, b"x" * 125)]),
    ([sent(1, b"x" * 126), sent(1, b"y" * 65535)], [(1, b"x" * 126), (1, b"y" * 65535)]),
    ([sent(1, TEXT, wide=2), sent(1, TEXT, wide=8)], [(1, TEXT), (1, TEXT)]),
    (fragments(TEXT, 1, 0, 5, 19), [(1, TEXT)]),
    (fragments(TEXT, 22, 1, 1), [(1, TEXT)]),
    (
        [
            part
            for piece in fragments(TEXT, 3, 30)
            for part in (sent(9, b"ping"), piece, sent(10, b""))
        ],
        [
            (9, b"ping"), (10, b""), (9, b"ping"), (10, b""), (9, b"ping"), (1, TEXT), (10, b""),
        ],
    ),
    ([sent(1, b"a"), sent(8, b"\x03\xe8bye")], [(1, b"a"), (8, b"\x03\xe8bye")]),
    ([sent(1, b"a", mask=bytes(4))], [(1, b"a")]),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "frames"), ROWS)
def test_a_cut_at_every_byte_does_not_show(
    stream: list[bytes], frames: list[tuple[int, bytes]]
) -> None:
    """Fed frame by frame, whole, cut anywhere or byte by byte, the frames are the same."""
    expected = [Frame(Opcode(opcode), data) for opcode, data in frames]
    whole = b"".join(stream)
    assert read(stream) == expected
    assert read([whole]) == expected
    assert read([whole[i : i + 1] for i in range(len(whole))]) == expected
    for cut in range(0, len(whole), 1 + len(whole) // 200):
        assert read([whole[:cut], whole[cut:]]) == expected


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "a", TEXT.decode(), "x" * 125, "x" * 126, "🌊" * 20000]),
            st.lists(st.integers(0, 40000), max_size=4),
            st.booleans(),
        ),
        max_size=4,
    ),
    st.lists(st.integers(1, 70000), min_size=1, max_size=12),
)
def test_any_messages_in_any_reads(
    messages: list[tuple[str, list[int], bool]], sizes: list[int]
) -> None:
    """Whatever the fragments and the reads, each message comes out once, whole and in order."""
    stream, expected = b"", []
    for text, cuts, is_interrupted in messages:
        data = text.encode()
        stream += (sent(9, b"?") if is_interrupted else b"").join(fragments(data, *cuts))
        expected.append(data)
    pieces, at, turn = [], 0, 0
    while at < len(stream):
        pieces.append(stream[at : at + sizes[turn % len(sizes)]])
        at += len(pieces[-1])
        turn += 1
    told = [found.data for found in read(pieces) if found.opcode is Opcode.TEXT]
    assert told == expected


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (sent(1, b"x")[:1] + b"\x01x", CloseCode.PROTOCOL),  # not masked
        (b"\xc1", None),
        (b"\xc1\x80", CloseCode.PROTOCOL),  # compressed, which was never agreed to
        (b"\xa1\x80", CloseCode.PROTOCOL),
        (b"\x83\x80", CloseCode.PROTOCOL),  # an unknown kind
        (b"\x8f\x80", CloseCode.PROTOCOL),
        (b"\x09\x80", CloseCode.PROTOCOL),  # a ping in parts
        (b"\x89\xfe", CloseCode.PROTOCOL),  # a ping of more than 125 bytes
        (sent(0, b"x"), CloseCode.PROTOCOL),  # it continues nothing
        (sent(1, b"x", fin=False) + sent(1, b"x"), CloseCode.PROTOCOL),
        (sent(1, b"\xff"), CloseCode.BAD_TEXT),
        (sent(1, b"\xed\xa0\x80"), CloseCode.BAD_TEXT),  # half a surrogate pair as bytes
        (sent(1, "🌊".encode()[:3]), CloseCode.BAD_TEXT),  # ends in the middle of a character
        (sent(1, "🌊".encode()[:3], fin=False) + sent(0, b"x"), CloseCode.BAD_TEXT),
        (sent(2, b"x" * 1001)[:8], CloseCode.TOO_LARGE),  # told by its header alone
        (b"\x82\xff" + b"\x7f" + b"\xff" * 7 + MASK, CloseCode.TOO_LARGE),
        (sent(1, b"x" * 600, fin=False) + sent(0, b"x" * 401)[:8], CloseCode.TOO_LARGE),
        (sent(1, b"x" * 600, fin=False) + sent(0, b"x" * 400), None),
    ],
)
def test_what_is_none_is_refused_wherever_it_is_cut(stream: bytes, code: CloseCode | None) -> None:
    """With the code that means it, as soon as it can be seen."""
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        fault = fault_of(pieces)
        assert (fault.code if fault else None) is code
        assert len(fault.message.encode() if fault else b"") <= 123


def fault_of(pieces: list[bytes]) -> WebSocketFault | None:
    reader = FrameReader(1000, io.BytesIO)
    try:
        for piece in pieces:
            reader.feed(piece)
            while reader.next() is not None:
                pass
    except WebSocketFault as fault:
        return fault
    return None


@pytest.mark.parametrize("sizes", [[], [MIB, MIB], [4096] * 700], ids=["one", "three", "many"])
@pytest.mark.parametrize("read_bytes", [64 * 1024, 4096])
def test_what_is_held_of_a_message_is_known_while_it_grows(
    sizes: list[int], read_bytes: int
) -> None:
    """The count meets the memory taken within a part in ten, and never falls while it arrives."""
    stream = b"".join(fragments(b"x" * 3 * MIB, *sizes))[:-1]  # its last byte never comes
    reader = FrameReader(4 * MIB, io.BytesIO)
    held = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for at in range(0, len(stream), read_bytes):
            reader.feed(stream[at : at + read_bytes])
            assert reader.next() is None
            assert reader.held_bytes >= held
            held = reader.held_bytes
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert not reader.is_between
    assert 3 * MIB <= held <= 3.6 * MIB
    assert taken <= held * 1.1


def test_a_message_is_never_held_twice() -> None:
    """Neither while it arrives nor when it is handed out: what it takes at its peak is its size."""
    stream = sent(Opcode.TEXT, ("🌊" * (2 * MIB)).encode())
    pieces = [stream[at : at + 65536] for at in range(0, len(stream), 65536)]
    size = len(stream)
    del stream
    reader = FrameReader(64 * MIB, io.BytesIO)
    tracemalloc.start()
    try:
        for piece in pieces:
            reader.feed(piece)
            message = reader.next()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message is not None
    assert peak < 1.3 * size


def test_what_is_discarded_is_read_over() -> None:
    """Nothing of a message is held, and control frames still come."""
    reader = FrameReader(MIB, io.BytesIO)
    stream = fragments(b"x" * 200_000, 50_000, 100_000)
    reader.feed(stream[0])
    assert reader.next() is None
    assert reader.held_bytes > 50_000
    reader.discard()
    assert reader.held_bytes == 0
    reader.feed(stream[1] + sent(9, b"?") + stream[2] + sent(1, b"y") + sent(8, b""))
    assert reader.next() == Frame(Opcode.PING, b"?")
    assert reader.next() == Frame(Opcode.CLOSE, b"")
    assert reader.next() is None
    assert reader.held_bytes == 0


def test_tiny_frames_are_taken_some_at_a_time() -> None:
    """One read may bring forty thousand of them."""
    reader = FrameReader(MIB, io.BytesIO)
    reader.feed(sent(1, b"", fin=False) + sent(0, b"", fin=False) * 5000 + sent(0, b"x"))
    calls = 1
    while (found := reader.next(1000)) is None:
        assert reader.has_more
        calls += 1
    assert not reader.has_more
    assert (found.data, calls) == (b"x", 6)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_servers_frame_is_read_back(size: int) -> None:
    """By the lengths of its header; it is not masked."""
    whole = frame(Opcode.TEXT, b"x" * size)
    head = len(whole) - size
    assert whole[0] == 0x81
    length = whole[1] if head == 2 else int.from_bytes(whole[2:head])
    assert (length, whole[head:]) == (size, b"x" * size)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 1000),
        (b"\x03\xe8", 1000),
        (b"\x03\xe9going", 1001),
        (b"\x0f\xa0", 4000),
        (b"\x03", None),
        (b"\x03\xed", None),  # 1005 is never sent
        (b"\x03\xee", None),
        (b"\x00\x00", None),
        (b"\x13\x88", None),
        (b"\x03\xe8\xff", None),
    ],
)
def test_a_close_frame_has_a_code_or_is_none(data: bytes, code: int | None) -> None:
    """And a reason that is text."""
    if code is None:
        with pytest.raises(WebSocketFault):
            read_close(data)
    else:
        assert read_close(data) == code


def test_a_reason_is_cut_to_what_a_close_frame_holds() -> None:
    """Never in the middle of a character."""
    whole = close_frame(CloseCode.OK, "🌊" * 40)
    assert len(whole) <= 2 + 125
    whole[4:].decode()


def test_the_answer_to_a_key() -> None:
    """RFC 6455's own example; what is no key has none."""
    assert accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    for key in ("", "x", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZ\xff==", "A" * 24):
        assert accept_of(key) is None
