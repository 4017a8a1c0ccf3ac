"""`tidegate replay FILE`: the memory guard's decisions, made again by this version.

A decision depends on nothing but its record, so each has to come out the same; what differs was
decided by another version, or shows a mistake. The file is read record by record, whatever its
size, and is never trusted to be what it says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from tidegate import __version__
from tidegate.cli.failure import REFUSED, USAGE, CliError
from tidegate.cli.show.printable import say, say_json
from tidegate.core import decoding
from tidegate.core.memory.record import Difference, Record, decide_again, describe, standing
from tidegate.watchdog.guard import bundle

MAX_RECORD_BYTES = 1 << 20  # one has 2 KiB
MAX_BUNDLE_BYTES = 4 * bundle.MAX_BUNDLE_BYTES  # room for those of a later version
MAX_SHOWN = 200  # characters of a value


class Comparison(Struct, frozen=True, kw_only=True):
    """A recorded decision beside the one made again. `--json` prints these, one a line."""

    number: int  # of the line, or of the record in a bundle
    at: float | None = None
    decided: str | None = None
    same: bool = False
    differences: list[Difference] = []
    note: str | None = None  # why it cannot be compared, or what is strange about it
    is_cut_off: bool = False  # its writing was interrupted: there is nothing to compare


class _Version(Struct, frozen=True):
    version: str = "unknown"


_record = decoding.Decoder(Record)
_version = decoding.Decoder(_Version)


def replay(arguments: argparse.Namespace) -> int:
    """Print a line for each record; 0 when all came out the same, else 1. Raises CliError."""
    count = different = 0
    try:
        with arguments.file.open("rb") as file:
            for comparison in _comparisons(file, arguments.file):
                count += 1
                different += not (comparison.same or comparison.is_cut_off)
                _print(comparison, as_json=arguments.json)
    except OSError as error:
        raise CliError(f"{arguments.file}: {error.strerror}", USAGE) from error
    if not count:
        raise CliError(f"{arguments.file}: no decisions are in it", USAGE)
    if not arguments.json:
        told = f"{different} differ" if different else "all the same"
        say(f"{count} decisions made again by tidegate {__version__}: {told}.")
    return REFUSED if different else 0


# --- reading ----------------------------------------------------------------------------------


def _comparisons(file: BinaryIO, path: Path) -> Iterator[Comparison]:
    """Compare the records of a bundle or a log of decisions. Raises CliError when it is neither."""
    first = file.readline(MAX_RECORD_BYTES)
    if not first or (b'"decision":' in first and _is_object(first)):
        yield from _comparisons_of_log(file, first)
        return
    document = first + file.read(MAX_BUNDLE_BYTES)
    records = bundle.read_decisions(document) if len(document) <= MAX_BUNDLE_BYTES else None
    if records is None:
        raise CliError(f"{path}: neither a bundle nor a log of decisions", USAGE)
    for number, record in enumerate(records, 1):
        yield compare(number, bytes(record))


def _comparisons_of_log(file: BinaryIO, first: bytes) -> Iterator[Comparison]:
    number, line = 1, first
    while line:
        if line.strip():
            yield _compare_line(number, line)
        while len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_RECORD_BYTES)  # the rest of it
        line = file.readline(MAX_RECORD_BYTES)
        number += 1


def _compare_line(number: int, line: bytes) -> Comparison:
    if line.endswith(b"\n") or _is_object(line):
        return compare(number, line)
    if len(line) >= MAX_RECORD_BYTES:
        return Comparison(
            number=number, note=f"longer than {MAX_RECORD_BYTES} bytes, which no record is"
        )
    return Comparison(number=number, note="cut off while it was written", is_cut_off=True)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(decoding.json(line), dict)
    except decoding.Undecodable:
        return False


# --- comparing ---------------------------------------------------------------------------------


def compare(number: int, line: bytes) -> Comparison:
    """Decide one record again, and compare."""
    try:
        record = _record.decode(line)
    except decoding.Undecodable as error:
        return Comparison(number=number, note=f"cannot be read as a decision{_by(line)}: {error}")
    try:
        differences = decide_again(record)
    except (ArithmeticError, ValueError, LookupError, AssertionError) as error:
        return Comparison(
            number=number, at=record.at, note=f"cannot be decided from what it says: {error!r}"
        )
    strange = _strange_fields(decoding.json(line), msgspec.to_builtins(record), "")
    by = f"written by tidegate {record.version}: " if record.version != __version__ else ""
    return Comparison(
        number=number,
        at=record.at,
        decided=f"{standing(record.decision)}: {describe(record.decision)}",
        same=not differences,
        differences=differences,
        note=f"{by}{', '.join(strange)}" if strange else None,
    )


def _by(line: bytes) -> str:
    try:
        version = _version.decode(line).version
    except decoding.Undecodable:
        return ""
    return f", it is of tidegate {version[:MAX_SHOWN]}"


def _strange_fields(written: object, known: object, place: str) -> list[str]:
    """Name the fields that only the record or only this version has; free-form ones are skipped."""
    if not isinstance(written, dict) or not isinstance(known, dict):
        return []
    found = [f"{place}{name} is unknown here" for name in written if name not in known]
    found += [f"{place}{name} is taken as usual" for name in known if name not in written]
    for name in written:
        if name in known:
            found += _strange_fields(written[name], known[name], f"{place}{name}.")
    return found


# --- showing ------------------------------------------------------------------------------------


def _print(comparison: Comparison, *, as_json: bool) -> None:
    if as_json:
        say_json(comparison)
        return
    when = "-" if comparison.at is None else _when(comparison.at)
    decided = comparison.decided or f"record {comparison.number} {comparison.note}"
    if comparison.decided is None:
        say(f"{when}  {decided}")
        return
    if comparison.same:
        say(f"{when}  {decided}  same")
    for each in comparison.differences:
        change = f"{each.field} {_value(each.recorded)} -> {_value(each.now)}"
        say(f"{when}  {decided}  differs: {change}")
    if comparison.note:
        say(f"    {comparison.note}")


def _when(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (ValueError, OverflowError, OSError):
        return f"{at:g}"


def _value(value: object) -> str:
    return msgspec.json.encode(value).decode()[:MAX_SHOWN]
