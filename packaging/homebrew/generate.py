"""Writes the formula for Homebrew: one resource for each package that requirements.lock pins.

`make homebrew` writes packaging/homebrew/tidegate.rb. A release gives its source archive as well,
`make homebrew ARGS="--sdist dist/tidegate-VERSION.tar.gz --output dist/tidegate.rb"`; without one
the formula's own checksum is all zeros, which Homebrew refuses.

Where each archive is published, and its SHA-256, is asked of the package index by `uv`, which
writes a lock file of the standard form (pylock.toml) without building anything.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UV = "uv>=0.7"  # the first that writes pylock.toml
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
    pylock = arguments.pylock.read_text() if arguments.pylock else _ask_index(pins())
    resources = "\n".join(_resource(package) for package in _sources(pylock))
    own = hashlib.sha256(arguments.sdist.read_bytes()).hexdigest() if arguments.sdist else UNKNOWN
    text = (HERE / "tidegate.rb.in").read_text()
    text = text.replace("@VERSION@", _version()).replace("@SHA256@", own)
    arguments.output.write_text(text.replace("@RESOURCES@\n", resources))
    print(arguments.output)
    return 0


def pins() -> dict[str, str]:
    """What `make run` installs: names as the index spells them, and versions."""
    text = (ROOT / "requirements.lock").read_text().split("# To build the package")[0]
    found = re.findall(r"^([\w.-]+)==([^;\s]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def only_linux() -> set[str]:
    """Those that are not installed on a Mac."""
    text = (ROOT / "requirements.lock").read_text()
    return set(re.findall(r'^([\w.-]+)==\S+; sys_platform == "linux"', text, re.MULTILINE))


def _version() -> str:
    text = (ROOT / "daemon/tidegate/__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "daemon/tidegate/__init__.py has no __version__"
    return found[1]


def _ask_index(wanted: dict[str, str]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(Path(scratch, "venv"), with_pip=True)
        python = Path(scratch, "venv/bin/python")
        _run([str(python), "-m", "pip", "install", "--quiet", UV])
        pinned = Path(scratch, "pins.txt")
        pinned.write_text("".join(f"{name}=={version}\n" for name, version in wanted.items()))
        written = Path(scratch, "pylock.toml")
        _run(
            [str(python.with_name("uv")), "pip", "compile", "--quiet", "--no-deps"]
            + ["--format", "pylock.toml", "--python-version", PYTHON, "-o", str(written)]
            + [str(pinned)]
        )
        return written.read_text()


def _sources(pylock: str) -> list[dict[str, Any]]:
    packages: list[dict[str, Any]] = tomllib.loads(pylock)["packages"]
    found = {package["name"]: package["version"] for package in packages}
    if found != pins():
        sys.exit(f"the index has something else than the lock: {found}")
    for package in packages:
        # A mirror serves the same paths under a name of its own; a formula is for everybody.
        if not package["sdist"]["url"].startswith(PUBLISHED):
            sys.exit(f"{package['name']}: its address is that of a mirror; ask the index itself")
    return packages


def _resource(package: dict[str, Any]) -> str:
    sdist = package["sdist"]
    lines = [
        f'  resource "{package["name"]}" do',
        f'    url "{sdist["url"]}"',
        f'    sha256 "{sdist["hashes"]["sha256"]}"',
        "  end",
    ]
    if package["name"] in only_linux():
        lines = ["  on_linux do", *(f"  {line}" for line in lines), "  end"]
    return "\n".join(lines) + "\n"


def _run(words: list[str]) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout.decode(errors='replace')}")


if __name__ == "__main__":
    sys.exit(main())
