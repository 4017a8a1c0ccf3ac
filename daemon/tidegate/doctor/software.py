"""Checks Python and the libraries that this tidegate runs on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata

from tidegate.core.problems import Problem
from tidegate.doctor.findings import finding

OLDEST_PYTHON = (3, 11)
_AGAIN = "install tidegate again, which brings what it needs: pip install --upgrade tidegate"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*>=\s*([0-9][0-9.]*)")


def check_software(
    python: tuple[int, ...],
    requirements: list[str],
    versions: dict[str, str],
    *,
    compiled: bool,
) -> Iterator[Problem]:
    """Check the versions.

    `requirements` are as the package's metadata writes them, `versions` those that are installed.
    """
    if python[:2] < OLDEST_PYTHON:
        shown = ".".join(map(str, python[:3]))
        yield finding("python-old", f"Python {shown} is older than 3.11", "install a newer Python")
    for line in requirements:
        found = _REQUIREMENT.match(line)
        if found is None or found[1] not in versions:
            continue
        if numbers(versions[found[1]]) < numbers(found[2]):
            yield finding(
                "dependency-old",
                f"{found[1]} {versions[found[1]]} is older than {found[2]}, below which it has "
                "known defects",
                _AGAIN,
                found[1],
            )
    if not compiled:
        yield finding(
            "aiohttp-slow",
            "aiohttp runs without its compiled parts: every request costs several times as much",
            "unset AIOHTTP_NO_EXTENSIONS, or: pip install --force-reinstall --only-binary :all: "
            "aiohttp",
        )


def numbers(version: str) -> tuple[int, ...]:
    """Read a version as numbers: "3.14.5rc1" as (3, 14, 5)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in found[0].split(".")] if found else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def read() -> tuple[tuple[int, ...], list[str], dict[str, str]]:
    """Return Python's version, the requirements, and the installed versions.

    Without the package's metadata, as when it runs from its source, the latter two are empty.
    """
    python = tuple(sys.version_info[:3])
    try:
        requirements = metadata.requires("tidegate") or []
    except metadata.PackageNotFoundError:
        return python, [], {}
    versions = {}
    for line in requirements:
        if found := _REQUIREMENT.match(line):
            try:
                versions[found[1]] = metadata.version(found[1])
            except metadata.PackageNotFoundError:
                continue
    return python, requirements, versions


def are_compiled() -> bool:
    """Tell whether aiohttp has its C parts; without them a request costs several times as much."""
    from aiohttp import http_parser  # noqa: PLC0415

    return hasattr(http_parser, "HttpRequestParserC")
