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


ONE, TWO = f"run_01234567{'0' * 24}", f"run_012389ab{'0' * 24}"


def listed(*ids: str) -> dict[str, Any]:
    """What `runs` answers when these are known."""
    of = {
        "object": "run", "state": "completed", "reason": None, "model": "m\x1b[2J", "upstream": "b",
        "attempts": 1, "created": 0.0, "ended": 1.0, "first_seq": 0, "next_seq": 1, "bytes": 1,
        "subscribers": 0, "place": "journal",
    }  # fmt: skip
    return {"object": "list", "data": [{"id": name, **of} for name in ids]}


@pytest.mark.parametrize("given", ["01234567", "run_01234567", "01234", ONE])
def test_the_beginning_of_an_id_is_enough(tidegate: Any, watchdog: Any, given: str) -> None:
    """Of those that only the files know, too; the running one is told the whole id."""
    watchdog.will("runs", listed(ONE, TWO))
    watchdog.will("forget", {"runs": 1})
    code, out, _ = tidegate("forget", given)
    assert (code, out.startswith(f"Forgotten: {ONE},")) == (0, True)
    assert watchdog.requests[-1].run == ONE
    assert [each.all for each in watchdog.requests[:-1]] == ([] if given == ONE else [True])


def test_several_that_begin_so_are_listed_and_kept(tidegate: Any, watchdog: Any) -> None:
    """Nothing is forgotten until it is clear which one is meant."""
    watchdog.will("runs", listed(ONE, TWO))
    code, out, err = tidegate("forget", "0123")
    assert (code, out) == (64, "")
    assert [name in err for name in (ONE, TWO, "\x1b")] == [True, True, False]
    watchdog.will("runs", listed(TWO))
    code, _, err = tidegate("forget", "01234567")
    assert (code, "no run that begins with 01234567" in err) == (1, True)
    assert {each.verb for each in watchdog.requests} == {"runs"}


def test_one_known_in_two_places_is_one(tidegate: Any, watchdog: Any) -> None:
    """Two workers may list the same run."""
    watchdog.will("runs", listed(ONE, ONE))
    watchdog.will("forget", {"runs": 1})
    assert tidegate("forget", "01234567")[0] == 0
