"""`tidegate models`: what the screen says of upstreams, their models and the aliases."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from tidegate.cli.show.decode import ModelListing
from tidegate.cli.show.models import show_models
from tidegate.core.upstreams.summary import ModelAlias, ModelState, UpstreamModels

LISTING = {
    "object": "list",
    "data": [
        {
            "name": "box",
            "url": "http://127.0.0.1:11434",
            "kind": "ollama",
            "state": "ok",
            "aside_s": None,
            "models": [
                {"name": "llama3:8b", "loaded": True, "first_output_s": 0.34, "per_s": 52.4},
                {"name": "[red]phi", "loaded": False, "first_output_s": 71.0},
            ],
            "total": 2,
        },
        {
            "name": "cloud",
            "url": "https://api.example.com/v1",
            "kind": "other",
            "state": "set aside",
            "aside_s": 11.2,
            "last_error": "\x1b[2Jrefused",
            "models": [{"name": "\x1b[31mbig", "per_s": 7.25, "unit": "events/s"}],
            "total": 301,
        },
        {"name": "new", "url": "unix:/run/x", "kind": None, "state": "unknown", "total": 0},
    ],
    "aliases": [{"name": "fast", "targets": ["box/llama3:8b", "cloud/big"]}],
}


def lines_of(out: str) -> list[str]:
    """Without the spaces that only align."""
    return [" ".join(line.split()) for line in out.splitlines()]


def upstream(**more: object) -> UpstreamModels:
    known = {"name": "box", "url": "u", "kind": None, "state": "ok"}
    return UpstreamModels(**(known | more))  # type: ignore[arg-type]


def shown(
    *upstreams: UpstreamModels, aliases: list[ModelAlias] | None = None, width: int = 80
) -> str:
    """On a terminal of so many columns."""
    console = Console(file=io.StringIO(), width=width, highlight=False, force_terminal=False)
    show_models(ModelListing(data=list(upstreams), aliases=aliases or []), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_upstream_is_a_block_with_its_models(tidegate, watchdog):
    """State, address, what is loaded, the last figures, what else there is, and the aliases."""
    watchdog.will("models", LISTING)
    code, out, _ = tidegate("models")
    assert code == 0
    lines = lines_of(out)
    assert "box (ollama): ok" in lines
    assert "llama3:8b yes 340 ms 52 tokens/s" in lines
    assert "[red]phi no 1 min 11 s -" in lines
    assert "cloud: set aside for 12 s more" in lines
    assert "\\x1b[31mbig unknown - 7.2 events/s" in lines
    assert "and 300 more" in lines
    assert "new: not asked yet" in lines
    assert "it has listed no model yet" in lines
    assert "fast box/llama3:8b, then cloud/big" in lines


def test_no_escape_sequence_comes_through(tidegate, watchdog):
    """Names and errors are other people's words."""
    watchdog.will("models", LISTING)
    _, out, _ = tidegate("models")
    assert "\x1b" not in out
    assert "[2Jrefused" in out


def test_json_is_what_the_daemon_says(tidegate, watchdog):
    """Unchanged, for programs."""
    watchdog.will("models", LISTING)
    assert json.loads(tidegate("models", "--json")[1]) == LISTING


def test_without_upstreams_it_says_what_to_do(tidegate, watchdog):
    """And the demonstration's names are there to be tried."""
    demo = {"name": "demo", "targets": ["tidegate/demo"]}
    watchdog.will("models", {"data": [], "aliases": [demo]})
    code, out, _ = tidegate("models")
    assert code == 0
    assert out.startswith("No upstream is configured")
    assert "[[upstream]]" in out
    assert "demo tidegate/demo" in lines_of(out)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "box: ok"),
        ({"state": "unreachable"}, "box: unreachable"),
        ({"state": "failing", "kind": "lm studio"}, "box (lm studio): failing"),
        ({"state": "set aside", "aside_s": 0.2}, "box: set aside for 1 s more"),
        ({"state": "set aside", "aside_s": 0.0}, "box: set aside, the next request tries it"),
        (
            {"state": "set aside", "aside_s": 40.0, "on_trial": True},
            "box: set aside, one request is trying it",
        ),
    ],
)
def test_how_an_upstream_is_in_words(more, text):
    """One line, whatever befell it."""
    assert shown(upstream(**more)).splitlines()[0] == text


def test_eighty_columns_are_enough():
    """Figures go before a name is cut; where it takes any width, all of both is there."""
    name, target = "org/" + "Q" * 190, "Z" * 150
    model = ModelState(
        name=name, loaded=None, first_output_s=3599.0, per_s=12345.6, unit="events/s"
    )
    told = upstream(url="http://" + "h" * 100, models=[model], total=1)
    aliases = [ModelAlias(name="a" * 100, targets=[f"box/{target}", "box/z"])]
    out = shown(told, aliases=aliases)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert (out.count("Q") >= 40, "…" in out, out.count("Z")) == (True, True, 150)
    whole = shown(told, aliases=aliases, width=500)
    assert whole.count("Q") == 190
    for words in ("unknown", "59 min 59 s", "12346 events/s"):
        assert words in whole


def test_a_long_error_stays_below_its_upstream():
    """Its further lines begin where its first one does."""
    error = "upstream cannot be reached: " + "connection refused, " * 8
    lines = shown(upstream(last_error=error, models=[], total=0)).splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("  last error: "))
    assert all(re.match(r"  \S", line) for line in lines[first : first + 3])
    assert max(map(len, lines)) <= 80
