"""Bytes from outside become values here, and whatever is wrong with them is one error of ours.

The libraries have many: msgspec raises its own errors, UnicodeDecodeError for a string that is not
UTF-8 and RecursionError for one that is nested. A caller that knew only some of them ended with
the first of the others. So no file beside this one (and `core.toml`, which a worker does not need)
decodes what comes over a socket or from a disk, and a test holds the watchdog's part to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

_Value = TypeVar("_Value")
# ArithmeticError: an exponent beyond floats. TypeError, LookupError: what a hook makes of a value.
_FOREIGN = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, LookupError)


class Undecodable(Exception):
    """Raised when bytes are not what they should be; the text says why, `line` where."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


class Decoder(Generic[_Value]):
    """Decodes values of one type from JSON."""

    def __init__(
        self, kind: type[_Value], hook: Callable[[type, object], object] | None = None
    ) -> None:
        """Decode values of `kind`; `hook` makes one of a type that JSON does not know."""
        self._decoder = msgspec.json.Decoder(kind, dec_hook=hook)

    def decode(self, data: bytes | msgspec.Raw) -> _Value:
        """Decode one value. Raises Undecodable."""
        try:
            return self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise Undecodable("a text in it is not UTF-8") from error
        except RecursionError as error:
            raise Undecodable("nested too deeply") from error
        except _FOREIGN as error:
            raise Undecodable(str(error)) from error


_plain: Decoder[object] = Decoder(object)


def count(said: str, most: int) -> int | None:
    """Read a number in digits, as a service manager or the kernel writes it; else None.

    `str.isdigit` alone is also true of "²", which int() refuses, and of 5,000 digits.
    """
    if not (said.isascii() and said.isdigit()) or len(said) > len(str(most)):
        return None
    number = int(said)
    return number if number <= most else None


def json(data: bytes | msgspec.Raw) -> object:
    """Decode JSON to plain types. Raises Undecodable."""
    return _plain.decode(data)


def text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark. Raises Undecodable with the line."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Undecodable("not UTF-8", line) from error
