"""Reads the lines of a log file and of its rotated ones, in order, and those still to come.

Rotation renames, so a file is known by its inode and stays open until it has been read to its
end: what a worker still appends to the one that was renamed is read there. A file that was cut
short is read from its beginning again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from tidegate.cli.show.printable import printable
from tidegate.logs.file import family

_READ_BYTES = 1 << 20
_MOST_UNFINISHED_BYTES = 1 << 20  # of a line; whatever writes more than that is no log
PROCESS = r"watchdog|worker(?: \d+)?"  # how ours are named
_LINE = re.compile(rf"(\S+) (debug|info|warning|error|critical) ({PROCESS}) (.*)")


class Line(Struct, frozen=True, kw_only=True):
    """One line of a log. What a crash wrote has no time, level or process of its own."""

    text: str
    time: str | None = None  # as in the log: 2026-11-22T20:00:00+0100
    level: str | None = None
    process: str | None = None

    def __str__(self) -> str:
        parts = (self.time, self.level, self.process, self.text)
        return " ".join(part for part in parts if part is not None)

    @property
    def at(self) -> float | None:
        """Return the line's time in Unix seconds; None where it has none."""
        try:
            return datetime.fromisoformat(self.time).timestamp() if self.time else None
        except ValueError:
            return None


def parse(raw: bytes) -> Line:
    """Read a line of the file into its parts, safe to be shown on a terminal."""
    text = printable(raw.decode("utf-8", "replace").replace("\t", " "))
    if found := _LINE.fullmatch(text):
        return Line(time=found[1], level=found[2], process=found[3], text=found[4])
    return Line(text=text)


class LogReader:
    """Reads what the file has, and on each further call what has come since."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: dict[tuple[int, int], _Part] = {}

    def __repr__(self) -> str:
        return f"<LogReader {self._file} open={len(self._open)}>"

    def read(self) -> Iterator[bytes]:
        """Read whole lines without their ends, oldest first. Raises OSError."""
        there = self._look()
        for part in list(self._open.values()):
            yield from part.read()
        for key in self._open.keys() - there:
            self._open.pop(key).file.close()

    def rest(self) -> Iterator[bytes]:
        """Return the lines that were begun and never finished."""
        return (bytes(part.unfinished) for part in self._open.values() if part.unfinished)

    def close(self) -> None:
        """Close the files."""
        for part in self._open.values():
            part.file.close()
        self._open.clear()

    def _look(self) -> set[tuple[int, int]]:
        """Open what is new. From the newest on: then one that is renamed meanwhile is met again."""
        there: dict[tuple[int, int], _Part | None] = {}
        for path in family(self._file):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            found = os.fstat(file.fileno())
            key = (found.st_dev, found.st_ino)
            if key in self._open or key in there:
                file.close()
                there.setdefault(key, None)
            else:
                there[key] = _Part(file)
        for key, part in reversed(there.items()):
            if part is not None:
                self._open[key] = part
        return set(there)


class _Part:
    """One open file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.unfinished = bytearray()

    def read(self) -> Iterator[bytes]:
        if os.fstat(self.file.fileno()).st_size < self.file.tell():
            self.file.seek(0)
            self.unfinished.clear()
        while data := self.file.read(_READ_BYTES):
            *lines, rest = data.split(b"\n")
            for line in lines:
                yield bytes(self.unfinished) + line
                self.unfinished.clear()
            self.unfinished += rest
            if len(self.unfinished) > _MOST_UNFINISHED_BYTES:
                yield bytes(self.unfinished)
                self.unfinished.clear()
