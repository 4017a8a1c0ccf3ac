"""A stream through a framer, however it is cut."""

from collections.abc import Callable, Sequence

from tidegate.core.formats.framing import Framer


def framed(
    framer: Framer, split: Callable[[bytes], Sequence[bytes]], pieces: list[bytes]
) -> list[bytes]:
    """The events that come out; their blocks and numbers must be as they are."""
    blocks = [framer.feed(piece) for piece in pieces]
    blocks.append(framer.finish())
    assert framer.partial_bytes == 0
    for block, events in blocks:
        assert len(split(block)) == events
        assert b"".join(split(block)) == block
    return [event for block, _ in blocks for event in split(block)]


def in_pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """It in pieces of these sizes, over and over."""
    pieces = []
    while stream:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces
