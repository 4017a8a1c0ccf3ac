"""The text of the config file: reading it, parsing it, and finding the line of a key again.

`tomllib` keeps no positions, so a key's line is found by a second, simple look at the text: it
follows the headers and the `key =` at the beginning of lines. Inside a multi-line string it may
be fooled, which costs a wrong line number in an error text and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from tidegate.config import bounds
from tidegate.config.mistake import MAX_PROBLEMS, ConfigError, Mistake
from tidegate.core import decoding, toml
from tidegate.core.decoding import Undecodable
from tidegate.core.secret import hide_keys
from tidegate.core.text import visible
from tidegate.machine import private_file

MAX_FILE_BYTES = 1024 * 1024  # a config with a thousand upstreams is a tenth of it

_HEADER = re.compile(r"\s*+(\[\[?)([^\[\]#]++)\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")
_TOML_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)


class Document(Struct, frozen=True, kw_only=True):
    """A parsed file; `path` is None when there is no file."""

    path: Path | None
    text: str
    table: dict[str, object]

    def error(self, problems: list[Mistake]) -> ConfigError:
        """Make one error of these mistakes, in the order of the file.

        Each has the file, the line if it is known, and the key.
        """
        where = _lines_of_keys(self.text)
        placed = [(_nearest(problem.key, where), problem) for problem in problems]
        placed.sort(key=lambda each: each[0] or 0)
        told = placed[:MAX_PROBLEMS]
        lines = [self._line(line, problem) for line, problem in told]
        if len(placed) > MAX_PROBLEMS:
            lines.append(f"and {len(placed) - MAX_PROBLEMS} more")
        return ConfigError("\n".join(lines), [_shown(problem) for _, problem in told])

    def _line(self, line: int | None, problem: Mistake) -> str:
        place = "" if self.path is None else f"{self.path}:{line}: " if line else f"{self.path}: "
        return f"{place}{_harmless(f'{problem.key}: {problem.text}')}"


def _shown(problem: Mistake) -> Mistake:
    return replace(problem, command=problem.command and _harmless(problem.command))


def _harmless(text: str) -> str:
    return visible(hide_keys(text))


def read(path: Path) -> Document:
    """Read the file at `path`. Raises ConfigError when it cannot be read or is not TOML."""
    text = _text(path)
    try:
        bounds.check(text)
        return Document(path=path, text=text, table=toml.tables(text))
    except Undecodable as error:
        if error.line is not None:
            raise ConfigError(f"{path}:{error.line}: {error}") from None
        raise ConfigError(_syntax_error(path, text, hide_keys(str(error)))) from None


def _text(path: Path) -> str:
    try:
        data = private_file.read(path, max_bytes=MAX_FILE_BYTES, private=False)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except private_file.UnreadableFile as error:
        raise ConfigError(str(error)) from error
    try:
        return decoding.text(data)
    except Undecodable as error:
        raise ConfigError(f"{path}:{error.line}: {error}") from None


def _syntax_error(path: Path, text: str, message: str) -> str:
    found = _TOML_PLACE.fullmatch(message)
    if found is None:
        return f"{path}: {message}"
    what, line, column = found.groups()
    if line is None:
        return f"{path}:{text.count(chr(10)) + 1}: {what} at the end of the file"
    return f"{path}:{line}:{column}: {what}"


def _lines_of_keys(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _table_name(header[1], header[2].strip(), counts)
            lines.setdefault(table, number)
            lines.setdefault(table.partition("[")[0], number)  # the list itself is where it begins
        elif key := _KEY.match(line):
            name = re.sub("[\"']", "", key[1])
            lines.setdefault(f"{table}.{name}" if table else name, number)
    return lines


def _table_name(brackets: str, name: str, counts: dict[str, int]) -> str:
    """Name a table: the second `[[upstream]]` is upstream[1]; `[upstream.limits]` belongs to it."""
    name = re.sub("[\"' ]", "", name)
    if brackets == "[[":
        counts[name] = counts.get(name, -1) + 1
    first, dot, rest = name.partition(".")
    return f"{first}[{counts[first]}]{dot}{rest}" if first in counts else name


def _nearest(key: str, lines: dict[str, int]) -> int | None:
    """Return the line of the key, or of the table that it is in or missing from."""
    while key:
        if key in lines:
            return lines[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return None
