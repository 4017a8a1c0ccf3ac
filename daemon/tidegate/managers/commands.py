"""Runs other programs' commands: with a time limit, their whole output read, in plain English.

What they say is parsed and shown to people, so their language is fixed and nothing pages or
colours it. A failure becomes one sentence with the command in it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from msgspec import Struct

LIMIT_S = 30.0  # none of them works for long; a manager that is busy booting answers late

_PLAIN = {"LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "", "SYSTEMD_URLIFY": "0"}


class CallError(Exception):
    """The command is not there, did not answer, or failed. The text is for people."""


class CommandResult(Struct, frozen=True):
    """A command's exit code and output."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Return what it complained of, in one line."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return "; ".join(line.strip() for line in lines if line.strip()) or f"exit code {self.code}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with every program's language set to plain English."""
    return {**os.environ, **_PLAIN, **(extra or {})}


def call(words: Sequence[str], env: Mapping[str, str], limit_s: float = LIMIT_S) -> CommandResult:
    """Run a command to its end. Raises CallError when it cannot be run, or takes too long."""
    try:
        done = subprocess.run(  # noqa: S603  (a fixed program; no shell reads its words)
            list(words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(env),
            timeout=limit_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise CallError(f"there is no {words[0]} on this computer") from error
    except subprocess.TimeoutExpired as error:
        raise CallError(f"no answer within {limit_s:g} s: {shlex.join(words)}") from error
    except OSError as error:
        raise CallError(f"{words[0]}: {error.strerror}") from error
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return CommandResult(done.returncode, out, err)


def insist(words: Sequence[str], env: Mapping[str, str]) -> str:
    """Run a command and return what it printed. Raises CallError also when it failed."""
    done = call(words, env)
    if done.code != 0:
        raise CallError(f"{shlex.join(words)}: {done.complaint}")
    return done.out
