"""`tidegate version`: the versions to name in a report of a fault."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

from tidegate import __version__
from tidegate.cli.show.printable import say_json, say_lines

_SHOWN = ("aiohttp", "httptools", "msgspec", "psutil", "uvloop", "watchfiles")


def version(arguments: argparse.Namespace) -> int:
    """Print the versions of tidegate and of what it runs on."""
    versions = {
        "tidegate": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version_of(name) for name in _SHOWN},
    }
    if arguments.json:
        say_json(versions)
    else:
        say_lines("\n".join(f"{name} {value}" for name, value in versions.items()))
    return 0


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
