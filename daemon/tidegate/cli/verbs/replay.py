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
from tidegate.cli.failure import REFUSED, USAGE, Failure
from tidegate.cli.show.printable import say, say_json
from tidegate.core import decoding
from tidegate.core.memory.record import Difference, Record, decide_again, describe, standing
from tidegate.watchdog.guard import bundle

MAX_RECORD_BYTES = 1 << 20  # one has 2 KiB
MAX_BUNDLE_BYTES = 4 * bundle.MAX_BUNDLE_BYTES  # room for those of a later version
MAX_SHOWN = 200  # characters of a value


class Verdict(Struct, frozen=True, kw_only=True):
    """One record, made again. `--json` prints these, one a line."""

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
    """Print a line for each record; 0 when all came out the same, else 1. Raises Failure."""
    count = different = 0
    try:
        with arguments.file.open("rb") as file:
            for verdict in _verdicts(file, arguments.file):
                count += 1
                different += not (verdict.same or verdict.is_cut_off)
                _print(verdict, as_json=arguments.json)
    except OSError as error:
        raise Failure(f"{arguments.file}: {error.strerror}", USAGE) from error
    if not count:
        raise Failure(f"{arguments.file}: no decisions are in it", USAGE)
    if not arguments.json:
        told = f"{different} differ" if different else "all the same"
        say(f"{count} decisions made again by tidegate {__version__}: {told}.")
    return REFUSED if different else 0


# --- reading ----------------------------------------------------------------------------------


def _verdicts(file: BinaryIO, path: Path) -> Iterator[Verdict]:
    """Of a bundle or of a log of decisions. Raises Failure when it is neither."""
    first = file.readline(MAX_RECORD_BYTES)
    if not first or (b'"decision":' in first and _is_object(first)):
        yield from _verdicts_of_log(file, first)
        return
    document = first + file.read(MAX_BUNDLE_BYTES)
    records = bundle.read_decisions(document) if len(document) <= MAX_BUNDLE_BYTES else None
    if records is None:
        raise Failure(f"{path}: neither a bundle nor a log of decisions", USAGE)
    for number, record in enumerate(records, 1):
        yield judge(number, bytes(record))


def _verdicts_of_log(file: BinaryIO, first: bytes) -> Iterator[Verdict]:
    number, line = 1, first
    while line:
        if line.strip():
            yield _judge_line(number, line)
        while len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_RECORD_BYTES)  # the rest of it
        line = file.readline(MAX_RECORD_BYTES)
        number += 1


def _judge_line(number: int, line: bytes) -> Verdict:
    if line.endswith(b"\n") or _is_object(line):
        return judge(number, line)
    if len(line) >= MAX_RECORD_BYTES:
        return Verdict(number=number, note=f"longer than {MAX_RECORD_BYTES} bytes, which is none")
    return Verdict(number=number, note="cut off while it was written", is_cut_off=True)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(decoding.json(line), dict)
    except decoding.Undecodable:
        return False


# --- judging ------------------------------------------------------------------------------------


def judge(number: int, line: bytes) -> Verdict:
    """One record, decided again."""
    try:
        record = _record.decode(line)
    except decoding.Undecodable as error:
        return Verdict(number=number, note=f"cannot be read as a decision{_by(line)}: {error}")
    try:
        differences = decide_again(record)
    except (ArithmeticError, ValueError, LookupError, AssertionError) as error:
        return Verdict(
            number=number, at=record.at, note=f"cannot be decided from what it says: {error!r}"
        )
    strange = _strange_fields(decoding.json(line), msgspec.to_builtins(record), "")
    by = f"written by tidegate {record.version}: " if record.version != __version__ else ""
    return Verdict(
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
    """Fields that only the record or only this version has; what is free in form is left alone."""
    if not isinstance(written, dict) or not isinstance(known, dict):
        return []
    found = [f"{place}{name} is unknown here" for name in written if name not in known]
    found += [f"{place}{name} is taken as usual" for name in known if name not in written]
    for name in written:
        if name in known:
            found += _strange_fields(written[name], known[name], f"{place}{name}.")
    return found


# --- showing ------------------------------------------------------------------------------------


def _print(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        say_json(verdict)
        return
    when = "-" if verdict.at is None else _when(verdict.at)
    decided = verdict.decided or f"record {verdict.number} {verdict.note}"
    if verdict.decided is None:
        say(f"{when}  {decided}")
        return
    if verdict.same:
        say(f"{when}  {decided}  same")
    for each in verdict.differences:
        change = f"{each.field} {_value(each.recorded)} -> {_value(each.now)}"
        say(f"{when}  {decided}  differs: {change}")
    if verdict.note:
        say(f"    {verdict.note}")


def _when(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (ValueError, OverflowError, OSError):
        return f"{at:g}"


def _value(value: object) -> str:
    return msgspec.json.encode(value).decode()[:MAX_SHOWN]
