"""Whatever is wrong with bytes from outside, it is one error of ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest

from tidegate.core import decoding, toml
from tidegate.core.decoding import Undecodable
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.control import decode_reply, decode_request

REQUEST = b'{"verb":"status","wait":true}'
READY = msg.encode(msg.Ready(pid=1, found=["a"]))[:-1]
SWEEP = msg.encode(msg.Sweep(request=1, reason="r"))[:-1]
REPLY = b'{"ok":false,"error":"x","result":[1]}'
TOML = b'a = "x"\n[b]\nc = 1.5\nd = [1, 2]\n'

Decode = Callable[[bytes], object]
MESSAGES: list[tuple[bytes, Decode]] = [
    (REQUEST, decode_request),
    (REPLY, decode_reply),
    (READY, msg.decode_from_worker),
    (SWEEP, msg.decode_from_watchdog),
    (TOML, lambda data: toml.tables(decoding.text(data))),
]
each_message = pytest.mark.parametrize(
    ("whole", "decode"), MESSAGES, ids=lambda part: str(part)[:20]
)


def or_undecodable(decode: Decode, data: bytes) -> None:
    """Any other error is a test's failure."""
    with suppress(Undecodable):
        decode(data)


@each_message
def test_every_byte_at_every_position(whole: bytes, decode: Decode) -> None:
    """A message with one byte changed, put in or left out is a message or Undecodable."""
    decode(whole)
    for at in range(len(whole) + 1):
        or_undecodable(decode, whole[:at])
        or_undecodable(decode, whole[:at] + whole[at + 1 :])
        for byte in range(256):
            or_undecodable(decode, whole[:at] + bytes([byte]) + whole[at + 1 :])
            or_undecodable(decode, whole[:at] + bytes([byte]) + whole[at:])


@each_message
@pytest.mark.parametrize(
    "hostile",
    [
        b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b"9" * 5000, b"-" + b"9" * 5000, b"1e999999",
        b"1e-999999", b"[" * 100_000, b'{"a":' * 100_000, b"null", b"true", b"[]", b"{}", b"",
        b"0x" + b"f" * 5000, b"1979-13-41T25:61:61Z", b"nan", b"-inf", b'"' + b"\\n" * 9999 + b'"',
    ],
    ids=lambda value: str(value[:12]),
)  # fmt: skip
def test_what_a_hostile_value_is(whole: bytes, decode: Decode, hostile: bytes) -> None:
    """In the place of each value and of the whole, it is taken or is Undecodable."""
    or_undecodable(decode, hostile)
    for value in (b'"status"', b"true", b'"x"', b"[1]", b"1", b'["a"]', b'"r"', b"1.5", b"[1, 2]"):
        or_undecodable(decode, whole.replace(value, hostile))


def test_the_errors_of_all_libraries() -> None:
    """Those that msgspec and tomllib pass on beside their own are among them."""
    with pytest.raises(Undecodable, match="not UTF-8"):
        decode_request(b'{"verb":"\xff"}')
    with pytest.raises(Undecodable, match="nested"):
        decoding.json(b"[" * 100_000)
    with pytest.raises(Undecodable, match="nested"):
        toml.tables("a = " + "[" * 100_000)
    with pytest.raises(Undecodable, match="digits"):
        toml.tables("a = " + "9" * 5000)
    with pytest.raises(Undecodable) as caught:
        decoding.text(b"a\nb\xff\n")
    assert caught.value.line == 2


def test_a_hook_that_fails_is_the_bytes_fault() -> None:
    """What a hook cannot make of a value is no value."""

    def hook(wanted: type, value: object) -> object:
        raise TypeError(f"{value} is no {wanted.__name__}")

    decoder = decoding.Decoder(Exception, hook)
    with pytest.raises(Undecodable, match="no Exception"):
        decoder.decode(b"1")


@pytest.mark.parametrize(
    "said", ["", " 1", "+1", "1_0", "²", "9" * 5000, "101", "-1", "1.0", "\u0661"]
)
def test_what_is_no_count(said: str) -> None:
    """A number from the environment has ASCII digits alone, and a bound."""
    assert decoding.count(said, 100) is None


def test_counts() -> None:
    """Its bound is included; zeros in front of a short number do no harm."""
    assert decoding.count("100", 100) == 100
    assert decoding.count("007", 100) == 7
    assert decoding.count("0", 100) == 0


def test_raw_values_are_decoded_too() -> None:
    """A part that was left undecoded is bytes like others."""
    assert decoding.Decoder(int).decode(msgspec.Raw(b"5")) == 5
