"""Bytes that are kept deflated in memory, and how they are had again.

The events of a model repeat all but a word of each other: a level that costs 1 ms a megabyte leaves
a fortieth of them. To have 64 KiB of them again takes some 10 us, so a reader inflates what it
reads just then, and what is kept stays as small as it is.
"""

from __future__ import annotations

import zlib

Packed = tuple[bytes, bytes | None]  # what it was, and deflated; None where it is not worth it

LEAST_BYTES = 1024  # what is smaller saves too little
# What is larger would hold the event loop up when it is read: one event, as a picture in base64.
MOST_BYTES = 256 * 1024
_LEVEL = 1  # 6 takes three times as long for a fifth less
# Most of the time for a small answer is what zlib gets ready: 70 us as it comes, 7 us with these.
# For a segment it is 103 and 42 us, and not a byte more is left.
_MEM_LEVEL = 5
_SMALL_BYTES, _SMALL_WINDOW = 16 * 1024, -14
_WINDOW = -15  # below 0: neither head nor checksum, for it is of use to tidegate alone


def is_worth(size: int) -> bool:
    """Say whether so many bytes are to be tried."""
    return LEAST_BYTES <= size <= MOST_BYTES


def deflater(size: int) -> zlib._Compress:
    """Make what deflates `size` bytes in all."""
    window = _SMALL_WINDOW if size <= _SMALL_BYTES else _WINDOW
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, window, _MEM_LEVEL)


def deflate(data: bytes) -> bytes | None:
    """Deflate bytes; None where less than a quarter would be saved."""
    work = deflater(len(data))
    found = work.compress(data) + work.flush()
    return found if len(found) * 4 <= len(data) * 3 else None


def inflate(data: bytes, size: int) -> bytes:
    """Give the `size` bytes that were deflated, and never more."""
    return zlib.decompressobj(_WINDOW).decompress(data, size)
