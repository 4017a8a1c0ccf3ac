"""Writes the formula for Homebrew: one resource for each package that requirements.lock pins.

`make homebrew` writes packaging/homebrew/tidegate.rb. A release gives its source archive as well,
`make homebrew ARGS="--sdist dist/tidegate-VERSION.tar.gz --output dist/tidegate.rb"`; without one
the formula's own checksum is all zeros, which Homebrew refuses.

Where each archive is published is asked of the package index by `uv`, which writes a lock file of
the standard form (pylock.toml) without building anything; its SHA-256 must be one of those that
requirements.lock has for that package.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import locks  # noqa: E402
from locks import Locked  # noqa: E402

PUBLISHED = "https://files.pythonhosted.org/"
PYTHON = "3.13"
UNKNOWN = "0" * 64


def main() -> int:
    """Write the formula."""
    parser = argparse.ArgumentParser(description="Write the formula for Homebrew.")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help="the source archive released")
    parser.add_argument("--output", type=Path, default=HERE / "tidegate.rb", metavar="FILE")
    parser.add_argument("--pylock", type=Path, metavar="FILE", help="instead of asking the index")
    arguments = parser.parse_args()
    locked = pins()
    if arguments.pylock:
        pylock = arguments.pylock.read_text()
    else:
        wanted = [f"{name}=={each.version}" for name, each in locked.items()]
        pylock = locks.ask_index(wanted, "pylock.toml", "--python-version", PYTHON)
    resources = "\n".join(
        _resource(package, locked[package["name"]]) for package in _sources(pylock, locked)
    )
    own = hashlib.sha256(arguments.sdist.read_bytes()).hexdigest() if arguments.sdist else UNKNOWN
    text = (HERE / "tidegate.rb.in").read_text()
    text = text.replace("@VERSION@", _version()).replace("@SHA256@", own)
    arguments.output.write_text(text.replace("@RESOURCES@\n", resources))
    print(arguments.output)
    return 0


def pins() -> dict[str, Locked]:
    """Return what `make run` installs, by names as the index spells them."""
    return {each.key: each for each in locks.read(locks.RUNTIME)}


def _version() -> str:
    text = (ROOT / "daemon/tidegate/__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "daemon/tidegate/__init__.py has no __version__"
    return found[1]


def _sources(pylock: str, locked: dict[str, Locked]) -> list[dict[str, Any]]:
    packages: list[dict[str, Any]] = tomllib.loads(pylock)["packages"]
    found = {package["name"]: package["version"] for package in packages}
    if found != {name: each.version for name, each in locked.items()}:
        sys.exit(f"the index has something else than the lock: {found}")
    for package in packages:
        name, sdist = package["name"], package["sdist"]
        # A mirror serves the same paths under a name of its own; a formula is for everybody.
        if not sdist["url"].startswith(PUBLISHED):
            sys.exit(f"{name}: its address is that of a mirror; ask the index itself")
        if sdist["hashes"]["sha256"] not in locked[name].hashes:
            sys.exit(f"{name}: requirements.lock has another SHA-256 for its source archive")
    return packages


def _resource(package: dict[str, Any], locked: Locked) -> str:
    sdist = package["sdist"]
    lines = [
        f'  resource "{package["name"]}" do',
        f'    url "{sdist["url"]}"',
        f'    sha256 "{sdist["hashes"]["sha256"]}"',
        "  end",
    ]
    if locked.only_linux:
        lines = ["  on_linux do", *(f"  {line}" for line in lines), "  end"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
