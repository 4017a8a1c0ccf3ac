"""`tidegate usage` for a terminal of 80 columns or more.

Names of models are words of other people's servers: they are made printable, and cut where a line
ends. What no upstream said is called unknown, and never counts as nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.show.columns import Column, fitting_table
from tidegate.cli.show.screen import duration_text, new_console
from tidegate.core.records.usage import UsageLine
from tidegate.core.text import count
from tidegate.watchdog.control.status import show_age

_NAMELESS = {"token": "no token", "upstream": "none was asked"}
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

_LEAST_NAME, _WANTED_NAME = 16, 48  # columns
# A column's name, and what it shows of a line; in the row of sums the time of the last is left out.
_Figure = tuple[str, Callable[[UsageLine], str]]


def show_usage(
    lines: list[UsageLine], *, by: str, since: float, console: Console | None = None
) -> None:
    """Print a line for each key, their sum, and what is not in the figures."""
    console = console or new_console()
    from_when = time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
    if not lines:
        console.print(f"No run has ended since {from_when}, or there is no history of it.")
        return
    console.print(Text(f"Since {from_when}", style="dim"))
    console.print(_table(lines, by, console.width))
    for note in _notes(_sum(lines)):
        console.print(Text(note, style="dim"))


def _table(lines: list[UsageLine], by: str, width: int) -> Table:
    """Draw a row for each and one for all; a name is what one looks for, so that times go first."""
    sums = [_sum(lines)] if len(lines) > 1 else []
    keys = [line.key or _NAMELESS.get(by, "-") for line in lines]
    names = Column(
        name=by, cells=keys + ["in all"] * len(sums), least=_LEAST_NAME, wanted=_WANTED_NAME
    )
    figures = [
        Column(
            name=name,
            cells=[*map(show, lines), *("" if name == "last" else show(whole) for whole in sums)],
            right=True,
        )
        for name, show in _columns(lines)
    ]
    table = fitting_table([names, *figures], ("time", "last", "failed"), width)
    if sums:
        table.rows[-1].style = "bold"
    return table


def _columns(lines: list[UsageLine]) -> Iterator[_Figure]:
    """Yield what there is to show; without a failure or a price there is no column for it."""
    yield "runs", lambda line: str(line.runs)
    if any(line.failed for line in lines):
        yield "failed", lambda line: str(line.failed)
    yield "in", lambda line: _tokens(line, line.input)
    yield "out", lambda line: _tokens(line, line.output)
    if any(line.cost is not None for line in lines):
        yield "cost", lambda line: "-" if line.cost is None else f"{line.cost:.2f}"
    yield "time", lambda line: duration_text(line.seconds)
    yield "last", lambda line: _ago(time.time() - line.last)


def _notes(whole: UsageLine) -> Iterator[str]:
    if whole.cached:
        yield f"Of what was sent {_tokens(whole, whole.cached)} came from upstreams' caches."
    if whole.reasoning:
        yield f"Of what was answered {_tokens(whole, whole.reasoning)} were thought."
    if whole.unknown:
        yield f"Of {count(whole.unknown, 'run')} the tokens are unknown: no upstream told them."
    if whole.cost is not None and whole.unpriced:
        yield f"Of {count(whole.unpriced, 'run')} no price is set ([model.price] in the config)."


def _ago(age_s: float) -> str:
    return f"{show_age(age_s)} ago" if age_s >= 60 else "just now"


def _tokens(line: UsageLine, tokens: int) -> str:
    """Write a number of tokens as "812", "1.2k" or "34M"; "unknown" where none of them is known."""
    if line.unknown >= line.runs:
        return "unknown"
    for size, unit in _UNITS:
        if tokens >= size:
            amount = tokens / size
            return f"{amount:.0f}{unit}" if amount >= 100 else f"{amount:.3g}{unit}"
    return str(tokens)


def _sum(lines: list[UsageLine]) -> UsageLine:
    costs = [line.cost for line in lines if line.cost is not None]
    without = sum(line.runs - line.unknown for line in lines if line.cost is None)
    return UsageLine(
        key="",
        runs=sum(line.runs for line in lines),
        failed=sum(line.failed for line in lines),
        unknown=sum(line.unknown for line in lines),
        input=sum(line.input for line in lines),
        output=sum(line.output for line in lines),
        cached=sum(line.cached for line in lines),
        reasoning=sum(line.reasoning for line in lines),
        seconds=sum(line.seconds for line in lines),
        bytes=sum(line.bytes for line in lines),
        last=max(line.last for line in lines),
        cost=sum(costs) if costs else None,
        unpriced=without + sum(line.unpriced for line in lines if line.cost is not None),
    )
