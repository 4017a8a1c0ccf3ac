"""THREAT_MODEL.md names tests; they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+))?")


def test_every_test_that_is_named_is_there() -> None:
    """A defence is claimed only with a test that tries it, by the name that it has."""
    named = NAMED.findall((ROOT / "THREAT_MODEL.md").read_text())
    assert len(named) > 30
    missing = [f"{path}::{name}" for path, name in named if not _is_there(path, name)]
    assert missing == []


def test_every_row_names_a_test() -> None:
    """In the tables of attacks there is no row without one."""
    rows = [
        line
        for line in (ROOT / "THREAT_MODEL.md").read_text().splitlines()
        if line.startswith("| ") and line.count("|") == 4 and " tried by " not in line
    ]
    assert len(rows) > 25
    assert [row for row in rows if not NAMED.search(row)] == []


def _is_there(path: str, name: str) -> bool:
    file = ROOT / path
    if not file.exists():
        return False
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, functions)}
    return not name or name in found
