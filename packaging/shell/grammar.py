"""The command line as a value: which verbs there are, and what each takes.

Read from the parser, so that completions and the manual cannot tell of another command than the
one that runs. argparse has no public way to ask for this; what it keeps has not changed for years.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from enum import Enum

from msgspec import Struct


class WordKind(Enum):
    """The kind of word that follows a flag, as far as a shell can help with it."""

    NOTHING = "nothing"
    FILE = "file"
    DIRECTORY = "directory"
    CHOICE = "choice"
    TEXT = "text"


class Flag(Struct, frozen=True, kw_only=True):
    """An option, or a positional argument: that has no names."""

    names: tuple[str, ...]
    help: str
    kind: WordKind
    metavar: str = ""
    choices: tuple[str, ...] = ()
    required: bool = False
    repeats: bool = False


class Verb(Struct, frozen=True, kw_only=True):
    """A verb, or with an empty `path` the whole command."""

    path: tuple[str, ...]
    help: str
    flags: tuple[Flag, ...]
    arguments: tuple[Flag, ...]
    verbs: tuple[Verb, ...]

    @property
    def name(self) -> str:
        """Return the verb's last word; "" for the whole command."""
        return self.path[-1] if self.path else ""

    def walk(self) -> Iterator[Verb]:
        """Yield this verb, and every one below it."""
        yield self
        for verb in self.verbs:
            yield from verb.walk()


def read(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Verb:
    """Read the verbs and flags that this parser understands."""
    flags: list[Flag] = []
    arguments: list[Flag] = []
    verbs: list[Verb] = []
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            verbs += [read(inner, (*path, name)) for name, inner in action.choices.items()]
        elif action.help is not argparse.SUPPRESS:
            (flags if action.option_strings else arguments).append(_flag(action))
    return Verb(
        path=path,
        help=parser.description or "",
        flags=tuple(flags),
        arguments=tuple(arguments),
        verbs=tuple(verbs),
    )


def _flag(action: argparse.Action) -> Flag:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return Flag(
        names=tuple(action.option_strings),
        help=(action.help or "") % vars(action),
        kind=_kind(action, metavar),
        metavar="" if action.nargs == 0 else metavar,
        choices=tuple(map(str, action.choices or ())),
        required=action.required,
        repeats=action.nargs in ("*", "+", argparse.REMAINDER),
    )


def _kind(action: argparse.Action, metavar: str) -> WordKind:
    if action.nargs == 0:
        return WordKind.NOTHING
    if action.choices:
        return WordKind.CHOICE
    return {"FILE": WordKind.FILE, "DIR": WordKind.DIRECTORY}.get(metavar, WordKind.TEXT)
