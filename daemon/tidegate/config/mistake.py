"""What is wrong with a config, as a value and as the error that carries all of it."""

from __future__ import annotations

from msgspec import Struct

MAX_PROBLEMS = 100  # are told; when those are mended the rest is told


class Problem(Struct, frozen=True):
    """One thing that is wrong. `key` is a path such as `upstream[1].limits.idle_s`."""

    key: str
    text: str


class ConfigError(Exception):
    """The config cannot be used. The text has one line per problem and holds no secret."""
