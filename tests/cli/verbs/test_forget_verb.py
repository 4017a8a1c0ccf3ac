"""`tidegate forget`: what is asked before, and what is said after."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where a person types."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    os.close(ours)


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, unless a test has one."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


def test_a_run_is_forgotten(tidegate: Any, watchdog: Any) -> None:
    """A script that names one means it."""
    watchdog.will("forget", {"runs": 1})
    code, out, _ = tidegate("forget", "run_abc")
    assert (code, out) == (0, "Forgotten: run_abc, its answer and its row in the history.\n")
    assert [(each.run, each.verb) for each in watchdog.requests] == [("run_abc", "forget")]
    assert json.loads(tidegate("forget", "run_abc", "--json")[1]) == {"runs": 1}


def test_a_run_that_is_not_known_is_an_error(tidegate: Any, watchdog: Any) -> None:
    """For what was not there cannot be said to be forgotten."""
    watchdog.will("forget", {"runs": 0})
    assert tidegate("forget", "run_abc") == (1, "", "tidegate: no run run_abc is known\n")


def test_all_are_forgotten_when_told_twice(tidegate: Any, watchdog: Any) -> None:
    """Without a terminal only with --yes."""
    watchdog.will("forget", {"runs": 310})
    code, _, err = tidegate("forget", "--all")
    assert (code, "give --yes" in err, watchdog.requests) == (64, True, [])
    code, out, _ = tidegate("forget", "--all", "--yes")
    assert (code, out) == (0, "Forgotten: 310 runs, answers and rows. What still runs is kept.\n")
    assert [each.run for each in watchdog.requests] == [None]
    watchdog.will("forget", {"runs": 0})
    assert tidegate("forget", "--all", "--yes")[0] == 0


@pytest.mark.parametrize("arguments", [["forget"], ["forget", "run_abc", "--all"]], ids=len)
def test_one_or_all_and_not_both(tidegate: Any, watchdog: Any, arguments: list[str]) -> None:
    """Nothing is asked of the running one."""
    code, _, err = tidegate(*arguments)
    assert (code, "the id of a run, or --all" in err) == (64, True)
    assert watchdog.requests == []


@pytest.mark.parametrize(("typed", "is_meant"), [("yes\n", True), ("Y\n", True), ("\n", False)])
@pytest.mark.parametrize("arguments", [["run_abc"], ["--all"]], ids=str)
def test_a_person_is_asked(
    tidegate: Any, watchdog: Any, terminal: int, arguments: list[str], typed: str, is_meant: bool
) -> None:
    """Anything but yes leaves all as it is."""
    watchdog.will("forget", {"runs": 1})
    os.write(terminal, typed.encode())
    code, out, _ = tidegate("forget", *arguments)
    assert "for good. Type yes to go on:" in out
    assert (code == 0, len(watchdog.requests)) == (is_meant, int(is_meant))
    assert ("Nothing was forgotten." in out) is not is_meant


def test_what_could_not_be_forgotten_is_said(tidegate: Any, watchdog: Any) -> None:
    """With the reason, and an exit code."""
    watchdog.will("forget", error="the journal is paused: the disk is full")
    code, out, err = tidegate("forget", "run_abc")
    assert (code, out, "the disk is full" in err) == (1, "", True)
