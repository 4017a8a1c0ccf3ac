"""TOML from a disk: whatever is wrong with it is the one error of `core.decoding`.

tomllib has more than its own: it passes on ValueError for an integer of more than 4,300 digits.
Apart from the rest, for only the watchdog reads TOML: a worker goes without tomllib.
"""

from __future__ import annotations

import tomllib

from tidegate.core.decoding import Undecodable


def tables(source: str) -> dict[str, object]:
    """Read the tables of a TOML document. Raises Undecodable, whose text has tomllib's place."""
    try:
        return tomllib.loads(source)
    except RecursionError as error:
        raise Undecodable("nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        raise Undecodable(str(error)) from error
    except (ValueError, ArithmeticError) as error:  # an integer of 5,000 digits, a 13th month
        raise Undecodable(f"a value in it is none: {error}") from error
