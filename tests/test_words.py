"""The words that people read: the subject is named, in the source, its messages and its docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from house import PACKAGE, ROOT

BANNED = re.compile(
    r"\b(nobody|somebody|whoever|can so|who asks|has come, and|tidegate runs already)\b",
    re.IGNORECASE,
)
TEXTS = sorted(
    [
        *PACKAGE.rglob("*.py"),
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("Makefile"),
    ]
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_subject_is_named(path: Path) -> None:
    """The client, the upstream, the watchdog: a sentence without its subject is a riddle."""
    lines = path.read_text().splitlines()
    found = [
        f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if BANNED.search(line)
    ]
    assert not found
