"""Runs the matrix of clients by hand, and writes the page that keeps it.

`PYTHONPATH=tests .venv/bin/python -m clients.matrix [--write] [NAME …]`

It prints the table and what went wrong. `--write` keeps a whole matrix without a fault as
docs/clients.md. A NAME picks drivers by a part of their file's name.
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clients.cells import COLUMNS, DRIVERS, SITUATIONS, Column, Driver
from clients.stage import Outcome, Stage, missing, stage
from fakes import llama
from fakes.scenario import ROOT

PAGE = ROOT / "docs" / "clients.md"
VERSIONS = "## Versions"
AT_ONCE = 2  # as many as CI has cores

INTRODUCTION = """\
# Clients

Each cell is a program that uses the client as its users do, against a running gateway. ✓ is run in
CI and has to pass; a number alone stands where nothing can be tried, and says why below. This page
is written by `PYTHONPATH=tests .venv/bin/python -m clients.matrix --write`; the programs are in
`tests/clients/drivers`.
"""

CLAUDE_CODE = """\
## Claude Code

`tests/clients/test_claude_code.py` runs the real one against a gateway with tokens, on the genuine
llama.cpp server. A key of another service that it has besides does not matter:

```sh
export ANTHROPIC_BASE_URL=http://127.0.0.1:8433
export ANTHROPIC_AUTH_TOKEN=tg-…          # where the gateway has tokens
export ANTHROPIC_DEFAULT_HAIKU_MODEL=qwen3 # its smaller model, for small questions
claude --model qwen3                       # a model or an alias of the gateway
```

Its words and tools are 48 KiB, some 12,000 tokens, before the first question: the model needs room.
"""

CODEX = """\
## Codex

`tests/clients/test_codex.py` runs the real one over WebSocket, two turns, on the genuine llama.cpp
server. In `~/.codex/config.toml`:

```toml
model = "qwen3"            # a model or an alias of the gateway
model_provider = "tidegate"

[model_providers.tidegate]
name = "tidegate"
base_url = "http://127.0.0.1:8433/v1"
wire_api = "responses"
supports_websockets = true
env_key = "TIDEGATE_TOKEN" # where the gateway has tokens
```

With `supports_websockets` a turn sends only what is new; without it Codex sends everything by POST.
"""


def reasons() -> list[str]:
    """Why cells are not tried, or not wholly: each once, in the order of the table."""
    each = [
        reason
        for column in COLUMNS
        for name in SITUATIONS
        if (reason := column.without.get(name) or column.partly.get(name))
    ]
    return list(dict.fromkeys(each))


def mark(column: Column, situation: str, outcomes: dict[tuple[str, str], bool] | None) -> str:
    """What stands in a cell. Without outcomes, as if all had gone well."""
    reason = column.without.get(situation) or column.partly.get(situation)
    note = f"({reasons().index(reason) + 1})" if reason else ""
    if situation in column.without:
        return note
    went = True if outcomes is None else outcomes.get((column.key, situation))
    return f"{ {True: '✓', False: 'FAILED', None: 'not run'}[went] } {note}".rstrip()


def table(outcomes: dict[tuple[str, str], bool] | None = None) -> str:
    """The matrix, and under it the reasons."""
    head = ["client", "format", *SITUATIONS]
    rows = [
        [column.title, column.format, *(mark(column, name, outcomes) for name in SITUATIONS)]
        for column in COLUMNS
    ]
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, ["-" * width for width in widths], *rows]
    ]
    return (
        "\n".join(lines)
        + "\n\n"
        + "".join(
            f"{number}. {reason[0].upper()}{reason[1:]}.\n"
            for number, reason in enumerate(reasons(), 1)
        )
    )


def fixed_part() -> str:
    """The page as far as it follows from the cells alone."""
    meanings = "".join(f"| {name} | {text} |\n" for name, text in SITUATIONS.items())
    tried = f"## What is tried\n\n| | |\n|---|---|\n{meanings}"
    return "\n".join([INTRODUCTION, table(), tried, CLAUDE_CODE, CODEX, ""])


def page(versions: dict[str, str], day: datetime.date) -> str:
    """The whole page."""
    listed = "".join(f"| {name} | {version} |\n" for name, version in sorted(versions.items()))
    return (
        f"{fixed_part()}{VERSIONS}\n\nLast written on {day.isoformat()} with:\n\n"
        f"| | |\n|---|---|\n{listed}"
    )


def results(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], bool]:
    """Which cells went well."""
    return {
        (cell.column, cell.situation): cell.error is None
        for outcome in outcomes
        for cell in outcome.cells
    }


def run(stage: Stage, drivers: Iterable[Driver]) -> list[Outcome]:
    """Run drivers, a few at a time."""

    def timed(driver: Driver) -> Outcome:
        start_s = time.monotonic()
        outcome = stage.run(driver)
        print(f"{driver.name}: {time.monotonic() - start_s:.1f} s", file=sys.stderr)
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(timed, drivers))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    chosen = [d for d in DRIVERS if not given.name or any(part in d.file for part in given.name)]
    for driver in chosen:
        if said := missing(driver):
            print(f"{driver.name}: {said}", file=sys.stderr)
    chosen = [driver for driver in chosen if not missing(driver)]
    with tempfile.TemporaryDirectory(prefix="tg-llama-") as folder:
        server = llama.start(Path(folder))
        try:
            with stage(server.url) as standing:
                outcomes = run(standing, chosen)
        finally:
            server.stop()
    went = results(outcomes)
    for outcome in outcomes:
        for cell in outcome.failures():
            print(f"--- {cell.column}, {cell.situation}\n{cell.error}\n")
    print(table(went))
    is_whole = all(went.get((each.key, cell)) for each in COLUMNS for cell in each.cells)
    if given.write and is_whole:
        versions = {
            driver.package(name): text
            for driver, outcome in zip(chosen, outcomes, strict=True)
            for name, text in outcome.versions.items()
        }
        PAGE.write_text(page(versions, datetime.datetime.now(datetime.UTC).date()))
    return 0 if all(went.values()) and (is_whole or not given.write) else 1


if __name__ == "__main__":
    sys.exit(main())
