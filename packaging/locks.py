"""The lock files: which version of each package, and the SHA-256 of every file it may come as.

    python packaging/locks.py      `make lock`: ask the index for the hashes anew

A version is raised by hand, in the line that pins it; then `make lock` writes the hashes of what
the index has of that version, for every system and Python. pip installs nothing else. What runs
(requirements.lock), what builds the package (requirements-build.lock) and what only checks and
tests need (requirements-dev.lock) are apart. The package index is asked by `uv`, in an environment
that is gone afterwards; reading a lock needs neither.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ROOT / "requirements.lock"
BUILD = ROOT / "requirements-build.lock"
DEV = ROOT / "requirements-dev.lock"
ALL = (RUNTIME, BUILD, DEV)
UV = "uv>=0.7"
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
PIN = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.+?))?(?=\s+--hash=|$)"
)


class LockError(Exception):
    """A lock file says something that it must not."""


@dataclass(frozen=True, slots=True)
class Locked:
    """One package in one version."""

    name: str  # as the lock spells it
    version: str
    marker: str  # where it is installed; empty: everywhere
    hashes: tuple[str, ...]  # SHA-256, in hex and in order

    @property
    def key(self) -> str:
        """Return the name as the index spells it."""
        return normalized(self.name)

    @property
    def only_linux(self) -> bool:
        """Tell whether a Mac goes without it."""
        return self.marker == 'sys_platform == "linux"'

    @property
    def pin(self) -> str:
        """Write it without its hashes."""
        marker = f"; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{marker}"

    def written(self) -> str:
        """Write it as in a lock file."""
        return (
            " \\\n    ".join([self.pin, *(f"--hash=sha256:{each}" for each in self.hashes)]) + "\n"
        )


def normalized(name: str) -> str:
    """Write a package's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path = RUNTIME) -> list[Locked]:
    """Read what a lock file pins. Raises LockError; that there are hashes is the audit's check."""
    found = []
    for line in _logical_lines(path.read_text()):
        if not line or line.startswith(("#", "-r ")):
            continue
        locked = _locked(line)
        if locked is None:
            raise LockError(f"{path.name}: this is no pin: {line[:80]}")
        found.append(locked)
    return found


def _locked(line: str) -> Locked | None:
    """Read the pin on a whole line, if there is one and nothing else."""
    pin = PIN.match(line)
    if pin is None or HASH.sub("", line[pin.end() :]).strip():
        return None
    hashes = tuple(HASH.findall(line))
    return Locked(pin["name"], pin["version"], pin["marker"] or "", hashes)


def _logical_lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def rewrite(text: str, hashes: dict[str, tuple[str, ...]]) -> str:
    """Write the text of a lock file with these hashes, by normalized name; comments stay."""
    lines = []
    for line in _logical_lines(text):
        locked = _locked(line)
        if locked is None:
            lines.append(f"{line}\n")
        else:
            lines.append(replace(locked, hashes=hashes[locked.key]).written())
    return "".join(lines)


def ask_index(pins: list[str], form: str, *options: str) -> str:
    """Have `uv pip compile` resolve these pins: "requirements.txt" or "pylock.toml".

    Exits when that fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(Path(scratch, "venv"), with_pip=True)
        python = Path(scratch, "venv/bin/python")
        _run([str(python), "-m", "pip", "install", "--quiet", UV])
        pinned, written = Path(scratch, "pins.txt"), Path(scratch, form)
        pinned.write_text("".join(f"{pin}\n" for pin in pins))
        uv = str(python.with_name("uv"))
        _run(
            [uv, "pip", "compile", "--quiet", "--no-deps", "--format", form, *options]
            + ["-o", str(written), str(pinned)]
        )
        return written.read_text()


def main() -> int:
    """Write the hashes anew."""
    pins = [each.pin for path in ALL for each in read(path)]
    options = ("--universal", "--generate-hashes", "--no-header", "--no-annotate")
    answer = ask_index(pins, "requirements.txt", *options)
    with tempfile.TemporaryDirectory() as scratch:
        answered = Path(scratch, "answer")
        answered.write_text(answer)
        hashes = {each.key: each.hashes for each in read(answered)}
    for path in ALL:
        path.write_text(rewrite(path.read_text(), hashes))
        print(path)
    return 0


def _run(words: list[str]) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout.decode(errors='replace')}")


if __name__ == "__main__":
    sys.exit(main())
