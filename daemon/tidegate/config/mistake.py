"""A mistake in a config, as a value, and the error that carries all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from msgspec import Struct

MAX_PROBLEMS = 100  # are listed; when those are fixed, the rest is


class Mistake(Struct, frozen=True):
    """One mistake in a config. `key` is a path such as `upstream[1].limits.idle_s`.

    `secret_of` is the place in the list of an upstream whose key, or secret header, is not to be
    had where the config says. `command` puts it right, where one does; the text ends with it.
    """

    key: str
    text: str
    secret_of: int | None = None
    command: str | None = None


class Spot(Struct, frozen=True, kw_only=True):
    """Where in the file something is wrong, for one who looks at it.

    `excerpt` is the line with what may be a secret made unreadable; `column` counts from 0 in it.
    Without a `line` it is not known where, or it is the file as a whole.
    """

    text: str
    line: int | None = None
    column: int = 0
    excerpt: str = ""


class ConfigError(Exception):
    """The config cannot be used. The text has one line per problem and holds no secret.

    `problems` are those of its first lines; what is wrong with the file as a whole is only a text.
    `spots` tell the same for a screen: of the file at `path`, one each, and what is left over.
    """

    def __init__(
        self,
        text: str,
        problems: Sequence[Mistake] = (),
        *,
        path: Path | None = None,
        spots: Sequence[Spot] = (),
    ) -> None:
        super().__init__(text)
        self._problems = problems
        self.path = path
        self.spots = spots

    @property
    def lines(self) -> Iterator[tuple[str, Mistake | None]]:
        """Return each line with the mistake that it tells."""
        return zip_longest(str(self).split("\n"), self._problems)
