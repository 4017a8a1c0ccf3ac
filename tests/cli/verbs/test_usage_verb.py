"""`tidegate usage`: what is asked, and what a person reads of it in 80 columns."""

from __future__ import annotations

import json
import time
from io import StringIO
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from tidegate.cli.show.usage import show_usage
from tidegate.core.records.usage import GROUPS, UsageLine

DAY_S = 86400.0
LAPTOP = UsageLine(
    key="laptop", runs=1204, failed=12, unknown=3, input=34_000_000, output=1_234_567,
    cached=12_000_000, reasoning=4000, seconds=75_000.0, bytes=1, last=0.0,
)  # fmt: skip
NOTHING_TOLD = UsageLine(
    key="", runs=2, failed=0, unknown=2, input=0, output=0, cached=0, reasoning=0,
    seconds=7.0, bytes=1, last=0.0,
)  # fmt: skip


def shown(*lines: UsageLine, by: str = "token", columns: int = 80, **ago: float) -> list[str]:
    """What is printed, line by line; each was used last so many seconds ago."""
    out = StringIO()
    now = time.time()
    dated = [replace(line, last=now - ago.get(line.key or "none", 1.0)) for line in lines]
    show_usage(dated, by=by, since=now - DAY_S, console=Console(file=out, width=columns))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def words(line: str) -> str:
    """Its cells, whatever room is between them."""
    return " ".join(line.split())


def test_a_line_each_and_their_sum() -> None:
    """The columns are those that have something to tell, and no line is longer than 80."""
    lines = shown(LAPTOP, NOTHING_TOLD, laptop=3 * DAY_S)
    assert lines[0].startswith("Since 20")
    assert lines[1].split() == ["token", "runs", "failed", "in", "out", "time", "last"]
    assert words(lines[2]) == "laptop 1204 12 34M 1.23M 20 h 50 min 3 d ago"
    assert words(lines[3]) == "no token 2 0 unknown unknown 7 s just now"
    assert words(lines[4]) == "in all 1206 12 34M 1.23M 20 h 50 min"
    assert max(map(len, lines)) <= 80


def test_what_is_unknown_is_said_and_what_was_cached_or_thought() -> None:
    """It is no zero, and the sums say that they lack it."""
    assert shown(LAPTOP, NOTHING_TOLD)[5:] == [
        "Of what was sent 12M came from upstreams' caches.",
        "Of what was answered 4k were thought.",
        "Of 5 runs the tokens are unknown: no upstream told them.",
    ]
    whole = replace(LAPTOP, cached=0, reasoning=0, unknown=0, failed=0)
    lines = shown(whole)
    assert lines[1].split() == ["token", "runs", "in", "out", "time", "last"]
    assert len(lines) == 3  # one line is its own sum


def test_costs_are_shown_where_there_are_prices() -> None:
    """What has none has a dash, and how much that is is said; a cost is never guessed."""
    priced = replace(LAPTOP, cost=12.345, unpriced=4)
    other = replace(NOTHING_TOLD, key="tablet", unknown=1, input=812, output=1)
    lines = shown(priced, other)
    assert "cost" in lines[1]
    assert lines[2].split()[5] == "12.35"
    assert words(lines[3]).startswith("tablet 2 0 812 1 - ")
    assert lines[4].split()[6] == "12.35"
    assert lines[-1] == "Of 5 runs no price is set ([model.price] in the config)."
    assert max(map(len, lines)) <= 80
    assert not any("cost" in line for line in shown(LAPTOP, NOTHING_TOLD))


def test_a_long_name_has_a_line_and_times_go_first() -> None:
    """A name that fits a terminal without them is whole there; one that never does is cut, and
    the figures are not.
    """
    usual = replace(LAPTOP, key="hf.co/unsloth/Qwen3-30B-A3B-Instruct-GGUF:Q4_K_M")
    lines = shown(usual, by="model")
    assert lines[1].split() == ["model", "runs", "failed", "in", "out"]
    assert words(lines[2]) == f"{usual.key} 1204 12 34M 1.23M"
    name = "hf.co/" + "a-very-long-name-" * 6
    busy = replace(LAPTOP, key=name, input=999_999_999_999, output=999_900, cost=123456.7)
    lines = shown(busy, busy, by="model")
    assert max(map(len, lines)) <= 80
    for line in lines[2:4]:
        assert words(line).startswith("hf.co/a-very-long-name-a-very-long")
        assert words(line).endswith("… 1204 1000G 1000k 123456.70")
    wide = shown(busy, busy, by="model", columns=500)[2]
    assert words(wide) == f"{name} 1204 12 1000G 1000k 123456.70 20 h 50 min just now"


def test_nothing_used_is_a_sentence() -> None:
    """Not an empty table."""
    [line] = shown()
    assert line.startswith("No run has ended since 20")


@pytest.mark.parametrize("by", GROUPS)
def test_what_is_asked(tidegate: Any, watchdog: Any, by: str) -> None:
    """By what, and how far back; JSON is passed on."""
    watchdog.will("usage", {"object": "list", "data": []})
    assert tidegate("usage", "--by", by, "--since", "2h")[0] == 0
    [request] = watchdog.requests
    assert request.by == by
    assert request.since_s == pytest.approx(7200.0, abs=30.0)
    assert json.loads(tidegate("usage", "--json")[1]) == {"object": "list", "data": []}
    assert watchdog.requests[1].since_s == pytest.approx(7 * DAY_S, abs=30.0)


def test_wrong_words_are_told_which_are_right(tidegate: Any) -> None:
    """Before anything is asked."""
    code, _, err = tidegate("usage", "--since", "yore")
    assert (code, "2h, 3d" in err) == (64, True)
    code, _, err = tidegate("usage", "--by", "colour")
    assert (code, "token, model" in err) == (64, True)


def test_further_back_than_time_goes_is_all_there_is(tidegate: Any, watchdog: Any) -> None:
    """Nothing overflows."""
    watchdog.will("usage", {"object": "list", "data": []})
    assert tidegate("usage", "--since", "999999999w")[0] == 0
    assert watchdog.requests[0].since_s == pytest.approx(time.time(), abs=30.0)


@pytest.mark.parametrize(
    "error",
    [
        '"usage" is not a verb that this tidegate knows',
        "not a request: Object contains unknown field `by`",
    ],
)
def test_a_former_one_knows_no_usage(tidegate: Any, watchdog: Any, error: str) -> None:
    """Its words are shown, and what helps."""
    watchdog.will("usage", error=error)
    code, _, err = tidegate("usage", "--by", "model")
    assert code == 1
    assert err == (
        f"tidegate: {error}; it is of another version than this command: `tidegate upgrade`\n"
    )
