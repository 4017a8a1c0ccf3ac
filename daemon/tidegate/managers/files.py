"""The files that an installation writes, told apart from those that their owner changed.

Each carries a line with a hash of all its other lines. A file whose hash is right was written by
some version of tidegate and may be replaced; any other one is its owner's work, and is kept beside
the new one as `NAME.bak-` and the time. Files appear whole or not at all.
"""

from __future__ import annotations

import difflib
import os
import re
import time
from collections.abc import Callable
from enum import Enum
from hashlib import sha256
from pathlib import Path

from msgspec import Struct

_MARK = re.compile(r"^.*\btidegate wrote this file, sha256 ([0-9a-f]{64})\b.*\n", re.MULTILINE)


class FileChange(Enum):
    """The effect of writing a file."""

    NEW = "new"
    NONE = "none"
    OURS = "ours"  # replaces what a version of tidegate wrote
    THEIRS = "theirs"  # replaces what the owner wrote or changed


class WriteError(Exception):
    """A file cannot be read, written or removed. The text says which and why."""


class File(Struct, frozen=True):
    """One file of an installation, its mark included."""

    path: Path
    text: str

    def compare(self) -> FileChange:
        """Compare it with what is in its place. Raises WriteError."""
        former = _read(self.path)
        if former is None:
            return FileChange.NEW
        if former == self.text and not self.path.is_symlink():
            return FileChange.NONE
        return FileChange.OURS if is_ours(self.path) else FileChange.THEIRS

    def difference(self) -> str:
        """Return a unified diff from what is there; the marks are left out."""
        former = unmarked(_read(self.path) or "").splitlines(keepends=True)
        latter = unmarked(self.text).splitlines(keepends=True)
        name = str(self.path)
        return "".join(difflib.unified_diff(former, latter, name, f"{name} (new)"))

    def write(self) -> Path | None:
        """Put the file in place, readable for all; where a former one was kept.

        Raises WriteError.
        """
        kept = keep(self.path) if self.compare() is FileChange.THEIRS else None
        beside = self.path.with_name(f".{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.unlink(missing_ok=True)
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o644)  # whatever the umask
                file.write(self.text)
                file.flush()
                os.fsync(fd)
            beside.replace(self.path)
        except OSError as error:
            raise WriteError(f"{error.filename or self.path}: {error.strerror}") from error
        return kept


def marked(text: str, comment: Callable[[str], str], line: int = 0) -> str:
    """Put the mark before that line of `text`; `comment` makes a comment of a sentence."""
    lines = text.splitlines(keepends=True)
    digest = sha256(text.encode()).hexdigest()
    mark = comment(f"tidegate wrote this file, sha256 {digest}") + "\n"
    return "".join([*lines[:line], mark, *lines[line:]])


def unmarked(text: str) -> str:
    """Remove the mark from `text`."""
    return _MARK.sub("", text, count=1)


def is_ours(path: Path) -> bool:
    """Tell whether the file is as some version of tidegate wrote it. Raises WriteError."""
    text = _read(path)
    if text is None or path.is_symlink():
        return False
    found = _MARK.search(text)
    return found is not None and found[1] == sha256(unmarked(text).encode()).hexdigest()


def keep(path: Path) -> Path:
    """Move the file out of the way and return its new name. Raises WriteError."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for n in range(100):
        kept = path.with_name(f"{path.name}.bak-{stamp}" + (f"-{n}" if n else ""))
        if not os.path.lexists(kept):
            break
    try:
        path.rename(kept)
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error
    return kept


def remove(path: Path) -> Path | None:
    """Remove what we wrote; what the owner changed is kept, and its new name returned.

    Raises WriteError.
    """
    if not os.path.lexists(path):
        return None
    if not is_ours(path):
        return keep(path)
    try:
        path.unlink()
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        # A symbolic link into nothing is something all the same.
        return "" if path.is_symlink() else None
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror}") from error
