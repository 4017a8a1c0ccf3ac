"""A mistake in a config, as a value, and the error that carries all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

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


class ConfigError(Exception):
    """The config cannot be used. The text has one line per problem and holds no secret.

    `problems` are those of its first lines; what is wrong with the file as a whole is only a text.
    """

    def __init__(self, text: str, problems: Sequence[Mistake] = ()) -> None:
        super().__init__(text)
        self._problems = problems

    @property
    def lines(self) -> Iterator[tuple[str, Mistake | None]]:
        """Return each line with the mistake that it tells."""
        return zip_longest(str(self).split("\n"), self._problems)
