"""Reads what `launchctl print` shows of the job; nothing else does.

It tells what launchd has loaded, which may be older than the file.
"""

from __future__ import annotations

import re
from pathlib import Path

from tidegate.managers.base import UnitLimits, UnitState, exit_text


def state(text: str, path: Path) -> UnitState:
    """Read how the loaded job is; `path` is where its file belongs."""
    code = number(text, "last exit code")
    word = value(text, "state") or "loaded"
    timeout_s = number(text, "exit timeout")
    return UnitState(
        installed=True,
        enabled=path.exists(),
        active=True,
        running=word == "running",
        word=word,
        pid=number(text, "pid"),
        result=exit_text(code) if code else value(text, "last terminating signal"),
        exit_code=code,
        restarts=max(0, (number(text, "runs") or 1) - 1),
        file=Path(value(text, "path") or path),
        command=" ".join(block(text, "arguments")),
        limits=UnitLimits(stop_s=None if timeout_s is None else float(timeout_s)),
    )


def value(text: str, key: str) -> str | None:
    """Read a line `key = value` of the job itself, not of what is nested in it."""
    found = re.search(rf"^\t{re.escape(key)} = (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def number(text: str, key: str) -> int | None:
    """Read the number that a value begins with: "78: EX_CONFIG" is 78, "(never exited)" is none."""
    found = re.match(r"-?\d+", value(text, key) or "")
    return int(found[0]) if found else None


def block(text: str, key: str) -> list[str]:
    """Read the lines of `key = { … }`."""
    found = re.search(rf"^\t{re.escape(key)} = {{\n(.*?)^\t}}", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for line in found[1].splitlines()] if found else []
