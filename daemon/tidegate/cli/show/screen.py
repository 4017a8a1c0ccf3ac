"""Prints the answers of a running tidegate for people.

Reasons and errors come from upstreams and clients, so they are made printable first: an escape
sequence in an error text must not reach the terminal.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.show.decode import SweepResult
from tidegate.cli.show.printable import printable
from tidegate.core.runs.summary import RunSummary

_ROOMY = 130  # columns in which a run is one line
_ID_WIDTH = 36  # "run_" and 32 digits
_WIDE = 500  # columns without a terminal: a program that reads tables wants no wrapped lines


def swept_text(swept: SweepResult) -> str:
    """Say what was swept: one line, and one more for each reason."""
    if not swept.runs:
        return "Nothing to sweep."
    lines = [f"Swept {count_text(swept.runs, 'run')}, {size_text(swept.bytes)}."]
    lines += [f"  {runs}: {printable(reason)}" for reason, runs in swept.reasons.items()]
    return "\n".join(lines)


def show_runs(
    runs: list[RunSummary], console: Console | None = None, *, everywhere: bool = False
) -> None:
    """Print the runs as a table; newest first, as they come. `everywhere`: with where each is."""
    console = console or new_console()
    if not runs:
        console.print("No runs are known." if everywhere else "No runs are held.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    (_fill_wide if console.width >= _ROOMY else _fill_narrow)(table, runs, everywhere=everywhere)
    console.print(table)


def _fill_wide(table: Table, runs: list[RunSummary], *, everywhere: bool) -> None:
    for name in ("run", "state", "model", "upstream", *(["where"] if everywhere else [])):
        table.add_column(name, overflow="fold")
    for name in ("age", "events", "held", "readers"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for run in runs:
        cells = (
            run.id,
            run.state,
            run.model,
            run.upstream or "-",
            *([run.place] if everywhere else []),
            _run_age_text(run),
            str(run.next_seq),
            size_text(run.bytes),
            str(run.subscribers),
            run.reason or "",
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))


def _fill_narrow(table: Table, runs: list[RunSummary], *, everywhere: bool) -> None:
    """Fill 80 columns: the id stays whole, to be copied, and the reason stands below it."""
    table.add_column("run", overflow="fold", width=_ID_WIDTH)
    table.add_column("state", no_wrap=True)
    table.add_column("model", overflow="fold")
    if everywhere:
        table.add_column("where", no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    for run in runs:
        about = Text(printable(run.id))
        if run.reason:
            about.append(f"\n{printable(run.reason)}", style="dim")
        places = [run.place] if everywhere else []
        age = " ".join(_run_age_text(run).split(" ")[:2])  # the unit that matters most
        cells = (run.state, run.model, *places, age)
        table.add_row(about, *(Text(printable(cell)) for cell in cells))


def _run_age_text(run: RunSummary) -> str:
    return duration_text(max(time.time() - run.created, 0))


def size_text(size: int) -> str:
    """Write a size as "212 MiB": three digits are enough to judge by."""
    if abs(size) < 1024:
        return f"{size} bytes"
    amount, units = size / 1024, ["KiB", "MiB", "GiB"]
    while abs(amount) >= 1000 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if abs(amount) >= 100 else f"{amount:.3g} {units[0]}"


def duration_text(seconds: float) -> str:
    """Write a duration as "9 d 4 h": the two units that matter."""
    minutes, whole_seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole_seconds} s" if minutes else f"{whole_seconds} s"


def count_text(number: int, noun: str) -> str:
    """Write "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def new_console() -> Console:
    """Make a console as wide as the terminal, or 500 columns where the output is no terminal."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(width=_WIDE)
