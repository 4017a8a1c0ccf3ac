"""Prints the answers of a running tidegate for people.

Reasons and errors come from upstreams and clients, so they are made printable first: an escape
sequence in an error text must not reach the terminal.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from tidegate.cli.show.columns import Column, fitting_table
from tidegate.cli.show.decode import SweepResult
from tidegate.cli.show.printable import printable
from tidegate.core.runs.summary import RunSummary

_WHOLE_ID = re.compile(r"run_[0-9a-f]{32}")
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
    """Print the runs as a table; newest first, as they come. `everywhere`: with where each is.

    On a console that is narrower than a program's ids are short, which every verb takes.
    """
    console = console or new_console()
    if not runs:
        console.print("No runs are known." if everywhere else "No runs are held.")
        return
    console.print(runs_table(runs, console.width, everywhere=everywhere))


def runs_table(
    runs: list[RunSummary],
    width: int,
    *,
    everywhere: bool = False,
    speeds: Mapping[str, float] | None = None,
) -> Table:
    """Draw the runs in so many columns; `speeds` are events a second, by id, where known."""
    is_wide = width >= _WIDE
    columns = [
        Column(name="run", cells=[run.id if is_wide else short_id(run.id) for run in runs]),
        Column(name="state", cells=[run.state for run in runs]),
        Column(name="model", cells=[run.model for run in runs], least=16),
        Column(name="upstream", cells=[run.upstream or "-" for run in runs], least=8),
    ]
    if everywhere:
        columns.append(Column(name="where", cells=[run.place for run in runs]))
    figures = {"age": [_run_age_text(run) for run in runs]}
    if speeds is not None:
        figures["events/s"] = [_speed_text(speeds.get(run.id)) for run in runs]
    figures |= {
        "events": [str(run.next_seq) for run in runs],
        "held": [size_text(run.bytes) for run in runs],
        "readers": [str(run.subscribers) for run in runs],
    }
    columns += [Column(name=name, cells=cells, right=True) for name, cells in figures.items()]
    columns.append(Column(name="reason", cells=[run.reason or "" for run in runs], least=16))
    dispensable = ("readers", "held", "events", "upstream", "reason", "where", "age")
    return fitting_table(columns, dispensable, width)


def _speed_text(per_s: float | None) -> str:
    return "-" if per_s is None else f"{per_s:.1f}"


def short_id(run: str) -> str:
    """Return the eight digits by which a person tells a run from the others."""
    return run[4:12] if _WHOLE_ID.fullmatch(run) else run


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


def new_console(*, wide: bool = False) -> Console:
    """Make a console as wide as the terminal; or of 500 columns, where the output is no terminal
    or a person asked for all.
    """
    if wide or not sys.stdout.isatty():
        return Console(width=_WIDE, highlight=False)
    return Console(highlight=False)
