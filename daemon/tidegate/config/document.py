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
from tidegate.config.mistake import MAX_PROBLEMS, ConfigError, Mistake, Spot
from tidegate.core import decoding, toml
from tidegate.core.decoding import Undecodable
from tidegate.core.secret import hide_keys
from tidegate.core.text import visible
from tidegate.machine import private_file

MAX_FILE_BYTES = 1024 * 1024  # a config with a thousand upstreams is a tenth of it

_HEADER = re.compile(r"\s*+(\[\[?)([^\[\]#]++)\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")
_OUR_KEY = re.compile(r"\s*[a-z_.]{1,40}\s*=")
# In quotes with blanks and all, to the end of the line where none closes them; or without.
_LONG_WORD = re.compile(r"\"[^\"]*\"?|'[^']*'?|[^\s\"'\[\]{},=#]{9,}")
_LONG_QUOTED = 8  # characters that are no key
# Whose values are no secret, and are shown whole where they are wrong.
_PLAIN = {"listen", "allowed_hosts", "targets", "mode", "keep", "place", "allow_without_token"}
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
        text = self.text.splitlines()
        spots = [_spot(problem, line, text) for line, problem in told]
        if len(placed) > MAX_PROBLEMS:
            lines.append(f"and {len(placed) - MAX_PROBLEMS} more")
            spots.append(Spot(text=lines[-1]))
        known = [_shown(problem) for _, problem in told]
        return ConfigError("\n".join(lines), known, path=self.path, spots=spots)

    def _line(self, line: int | None, problem: Mistake) -> str:
        place = "" if self.path is None else f"{self.path}:{line}: " if line else f"{self.path}: "
        return f"{place}{_harmless(f'{problem.key}: {problem.text}')}"


def _spot(problem: Mistake, line: int | None, lines: list[str]) -> Spot:
    """Point at the value that is wrong, or at the key where there is none or it is unknown."""
    text = _harmless(f"{problem.key}: {problem.text}")
    if line is None:
        return Spot(text=text)
    name = re.split(r"[.\[]", re.sub(r"\[\d+\]$", "", problem.key))[-1]
    is_value = not problem.text.startswith(("unknown key", "is missing"))
    written = lines[line - 1]
    column = len(written) - len(written.lstrip())
    if is_value and _KEY.match(written):
        after = written.index("=") + 1
        column = after + len(written[after:]) - len(written[after:].lstrip())
    return _spot_at(text, line, column, written, is_plain=is_value and name in _PLAIN)


def _spot_at(text: str, line: int, column: int, written: str, *, is_plain: bool = False) -> Spot:
    return Spot(
        text=text,
        line=line,
        column=len(visible(written[:column])),
        excerpt=visible(written if is_plain else _veiled(written)),
    )


def _veiled(line: str) -> str:
    """Make longer words of a line unreadable, in their length: one may be a key in a wrong place.

    What stands before the first `=` is a key's name, as far as it looks like one of ours.
    """
    found = _OUR_KEY.match(line)
    begin = found.end() if found else 0
    return line[:begin] + _LONG_WORD.sub(_veiled_word, line[begin:])


def _veiled_word(word: re.Match[str]) -> str:
    text = word[0]
    if text[0] not in "\"'":
        return "*" * len(text)
    inner = text[1:].removesuffix(text[0])
    if len(inner) <= _LONG_QUOTED:
        return text
    return f"{text[0]}{'*' * len(inner)}{text[1 + len(inner) :]}"


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
        raise _syntax_error(path, text, hide_keys(str(error))) from None


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


def _syntax_error(path: Path, text: str, message: str) -> ConfigError:
    found = _TOML_PLACE.fullmatch(message)
    if found is None:
        return ConfigError(f"{path}: {message}", path=path, spots=[Spot(text=message)])
    what, line, column = found.groups()
    lines = text.split("\n")  # as tomllib counts them
    if line is None:
        what = f"{what} at the end of the file"
        spot = _spot_at(visible(what), len(lines), len(lines[-1]), lines[-1])
        return ConfigError(f"{path}:{len(lines)}: {what}", path=path, spots=[spot])
    spot = _spot_at(visible(what), int(line), int(column) - 1, lines[int(line) - 1])
    return ConfigError(f"{path}:{line}:{column}: {what}", path=path, spots=[spot])


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
