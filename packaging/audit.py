"""Looks at the lock files without a network: `make check` calls it, and so does CI.

Every requirement has hashes; what pyproject.toml asks for is locked, in a version that it allows;
nothing is below a floor in packages.toml; every licence is known and accepted. Known holes that
published since are asked for by `make audit`, which needs the package index.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parent))

import locks
from locks import Locked, normalized

KNOWN = Path(__file__).resolve().with_name("packages.toml")


def main() -> int:
    """Print what is wrong; the exit code says whether anything is."""
    wrong = audit(locks.ROOT, tomllib.loads(KNOWN.read_text()))
    for what in wrong:
        print(f"audit: {what}", file=sys.stderr)
    if not wrong:
        count = sum(len(locks.read(path)) for path in locks.ALL)
        print(f"audit: {count} locked packages, with hashes, and versions and licences as asked")
    return 1 if wrong else 0


def audit(root: Path, known: dict[str, Any]) -> list[str]:
    """Find what is wrong with the lock files and pyproject.toml in `root`, in words."""
    wanted = tomllib.loads((root / "pyproject.toml").read_text())
    runtime, build, dev = (locks.read(root / path.name) for path in locks.ALL)
    asked = (
        (locks.RUNTIME, runtime, wanted["project"]["dependencies"]),
        (locks.BUILD, build, wanted["build-system"]["requires"]),
        (locks.DEV, dev, wanted["dependency-groups"]["dev"]),
    )
    wrong: list[str] = []
    for path, locked, requirements in asked:
        wrong += _without_hashes(path.name, locked)
        wrong += _not_as_asked(path.name, locked, [Requirement(each) for each in requirements])
    everything = [*runtime, *build, *dev]
    wrong += _twice(everything)
    wrong += _below_a_floor(everything, wanted["project"]["dependencies"], known["floors"])
    wrong += _licences(runtime, known["licences"], known["accepted"]["runtime"])
    wrong += _licences(build, known["licences"], known["accepted"]["build"])
    unused = set(known["licences"]) - {each.key for each in (*runtime, *build)}
    wrong += [f"packages.toml knows {name}, which is not locked" for name in sorted(unused)]
    return wrong


def _without_hashes(where: str, locked: list[Locked]) -> list[str]:
    return [
        f"{where}: {each.pin} has no SHA-256; run make lock" for each in locked if not each.hashes
    ]


def _twice(locked: list[Locked]) -> list[str]:
    seen: set[str] = set()
    wrong = []
    for each in locked:
        if each.key in seen:
            wrong.append(f"{each.key} is locked twice")
        seen.add(each.key)
    return wrong


def _not_as_asked(where: str, locked: list[Locked], asked: list[Requirement]) -> list[str]:
    found = {each.key: each for each in locked}
    wrong = []
    for requirement in asked:
        pin = found.get(normalized(requirement.name))
        if pin is None:
            wrong.append(f"{where}: {requirement.name} is missing; pyproject.toml asks for it")
            continue
        if pin.version not in requirement.specifier:
            wrong.append(f"{where}: {pin.pin} is not what pyproject.toml asks for: {requirement}")
        if pin.marker.replace('"', "'") != str(requirement.marker or "").replace('"', "'"):
            wrong.append(f"{where}: {pin.pin} is for other systems than in pyproject.toml")
    return wrong


def _below_a_floor(locked: list[Locked], asked: list[str], floors: dict[str, str]) -> list[str]:
    wrong = [
        f"{each.pin} is below {floors[each.key]}, where a known hole was closed"
        for each in locked
        if each.key in floors and Version(each.version) < Version(floors[each.key])
    ]
    requirements = {normalized(each.name): each for each in map(Requirement, asked)}
    for name, floor in floors.items():
        if name not in requirements:
            wrong.append(
                f"packages.toml has a floor for {name}, which pyproject.toml does not ask for"
            )
            continue
        least = [
            Version(each.version) for each in requirements[name].specifier if each.operator == ">="
        ]
        if not least or max(least) < Version(floor):
            wrong.append(f"pyproject.toml allows {name} below {floor}: {requirements[name]}")
    return wrong


def _licences(locked: list[Locked], known: dict[str, str], accepted: list[str]) -> list[str]:
    wrong = []
    for each in locked:
        licence = known.get(each.key)
        if licence is None:
            wrong.append(f"{each.key}: its licence is not known; write it into packages.toml")
            continue
        parts = re.split(r" (?:AND|OR) ", licence)
        if unaccepted := [part for part in parts if part not in accepted]:
            wrong.append(f"{each.key}: {', '.join(unaccepted)} is no accepted licence")
        stated = _stated_licence(each)
        if stated is not None and stated != licence:
            wrong.append(f"{each.key}: packages.toml says {licence}, the package {stated}")
    return wrong


def _stated_licence(each: Locked) -> str | None:
    """Return the licence that the installed package of that version states in SPDX, if any."""
    try:
        about = metadata.metadata(each.name)
    except metadata.PackageNotFoundError:
        return None
    return about["License-Expression"] if about["Version"] == each.version else None


if __name__ == "__main__":
    sys.exit(main())
