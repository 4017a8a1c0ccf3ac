"""Lines over a socketpair, however they are cut, and a reader that does not read."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.lines import ChannelError, LineSplitter
from tidegate.watchdog.workers import channel
from tidegate.watchdog.workers.channel import Channel


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"-"))), st.data())
def test_lines_survive_every_cut(lines: list[bytes], data: st.DataObject) -> None:
    """Whatever the reads are, the lines are the same."""
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    splitter, seen = LineSplitter(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += splitter.feed(stream[start:end])
    assert seen == lines


@pytest.mark.parametrize(
    "pieces", [[b"x" * 11], [b"x" * 6, b"x" * 5], [b"x" * 6, b"x" * 5 + b"\n"]]
)
def test_endless_line_is_an_error(pieces: list[bytes]) -> None:
    """A line beyond the bound is refused before it is whole."""
    splitter = LineSplitter(10)
    for piece in pieces[:-1]:
        assert list(splitter.feed(piece)) == []
    with pytest.raises(ChannelError):
        list(splitter.feed(pieces[-1]))


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel and its other end."""
    ours, theirs = socket.socketpair()
    made = Channel(ours)
    yield made, theirs
    made.close()
    theirs.close()


def test_message_arrives_as_a_line(pair: tuple[Channel, socket.socket]) -> None:
    """What is sent can be read on the other side, and the other way round."""
    ours, theirs = pair
    assert ours.send(msg.Draining())
    assert theirs.recv(100) == b'{"type":"draining"}\n'
    theirs.sendall(b'{"a"\n}\n{"b')
    assert list(ours.receive()) == [b'{"a"', b"}"]


def test_reader_that_does_not_read_is_bounded(pair: tuple[Channel, socket.socket]) -> None:
    """A stuck worker costs at most the bound and never a wait; then messages are refused."""
    ours, theirs = pair
    big = msg.Failed(reason="x" * 100_000)
    taken = 0
    while ours.send(big):
        taken += 1
        assert taken < 1000
    assert channel.MAX_UNSENT_BYTES - 200_000 < ours.unsent_bytes <= channel.MAX_UNSENT_BYTES
    theirs.setblocking(False)
    received = 0
    while ours.unsent_bytes:
        received += len(theirs.recv(1 << 20))
        ours.flush()
    theirs.setblocking(True)
    while received < taken * len(msg.encode(big)):
        received += len(theirs.recv(1 << 20))
    assert ours.send(msg.Draining())


def test_end_of_file_is_said(pair: tuple[Channel, socket.socket]) -> None:
    """What was said before the end is heard first."""
    ours, theirs = pair
    theirs.sendall(b"last\n")
    theirs.close()
    lines = ours.receive()
    assert next(lines) == b"last"
    with pytest.raises(ChannelError, match="end of file"):
        next(lines)
    ours.send(msg.Draining())
    assert ours.unsent_bytes == 0
