"""Inputs that are nearly right: a corpus, and seeded changes to what is in it.

What is nearly right comes further than noise does. A change is one of those that have broken
parsers: a byte, a piece that is lost or doubled, a number at its limit, a word that means something
here, two inputs spliced. The same seed makes the same inputs, for ever.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

BYTES = (
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
)
NUMBERS = (
    b"0",
    b"-0",
    b"-1",
    b"1e999",
    b"9" * 30,
    b"9" * 4400,
    b"0x10",
    b"1_0",
    b"NaN",
    b"00",
    b"+1",
)
ENDS = (b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b"\r\r", b"\t", b" ", b"\x0b", b"\x0c")
MOST_BYTES = 200_000  # what grows by doubling stays quick to try


def mutants(
    corpus: Sequence[bytes], words: Sequence[bytes], seed: str, count: int
) -> Iterator[bytes]:
    """`count` inputs: everything in the corpus as it is, and then changed ones."""
    yield from corpus[:count]
    dice = random.Random(seed)
    for _ in range(count - len(corpus)):
        yield mutate(dice.choice(corpus), corpus, words, dice)


def mutate(
    whole: bytes, corpus: Sequence[bytes], words: Sequence[bytes], dice: random.Random
) -> bytes:
    """One to four changes."""
    data = bytearray(whole)
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        at = dice.randint(0, len(data))
        match dice.randrange(11):
            case 0 if at < len(data):
                data[at] = dice.randrange(256)
            case 1 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case 2:
                del data[at : at + dice.choice((1, 1, 2, 8, 64))]
            case 3:
                data[at:at] = data[at : at + dice.choice((1, 4, 16, 200))]
            case 4:
                data[at:at] = dice.choice(BYTES)
            case 5:
                data[at:at] = dice.choice(ENDS)
            case 6:
                data[at:at] = dice.choice(words)
            case 7:
                _replace_number(data, dice)
            case 8:
                other = dice.choice(corpus)
                data[at:] = other[dice.randint(0, len(other)) :]
            case 9:
                del data[at:]
            case _:
                piece = bytes(data[at : at + dice.choice((1, 2, 10, 40))])
                data[at:at] = piece * dice.choice((10, 100, 1000))
    return bytes(data[:MOST_BYTES])


def _replace_number(data: bytearray, dice: random.Random) -> None:
    """One run of digits becomes a number at its limit."""
    places = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    if not places:
        return
    start = end = dice.choice(places)
    while end < len(data) and 0x30 <= data[end] <= 0x39:
        end += 1
    data[start:end] = dice.choice(NUMBERS)


def every_byte(whole: bytes) -> Iterator[bytes]:
    """Each byte in the place of each byte."""
    for at in range(len(whole)):
        for byte in range(256):
            yield whole[:at] + bytes([byte]) + whole[at + 1 :]


def every_cut(whole: bytes) -> Iterator[bytes]:
    """Every beginning of it, the empty one and the whole one too."""
    for size in range(len(whole) + 1):
        yield whole[:size]
