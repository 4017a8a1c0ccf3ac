"""`tidegate doctor`: one page that says what is fine, what is not, and how to fix it.

Exit codes: 0 nothing is wrong, or only worth a note · 1 warnings · 2 errors. A config that cannot
be used is a finding like any other, and no reason to stop looking.
"""

from __future__ import annotations

import argparse

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.places import find_places
from tidegate.cli.show.printable import printable, say
from tidegate.cli.show.screen import new_console
from tidegate.core.problems import Problem, Severity
from tidegate.core.text import visible_json
from tidegate.doctor.examination import Check, Examination, examine

EXIT_CODES = {None: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 2}
_STYLES = {Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


def doctor(arguments: argparse.Namespace) -> int:
    """Examine everything, print it, and return the exit code of the worst finding."""
    places = find_places(arguments)
    report = examine(places, asks_tokens=not arguments.no_tokens)
    if arguments.json:
        say(report_json(report))
    else:
        show_report(report)
    return EXIT_CODES[report.worst]


def report_json(report: Examination) -> str:
    """Write the examination as JSON."""
    counts = {s.value: sum(p.severity is s for p in report.problems) for s in Severity}
    worst = report.worst.value if report.worst else None
    page = {"worst": worst, "counts": counts, "checks": report.checks, "problems": report.problems}
    return visible_json(msgspec.json.encode(page).decode())


def show_report(report: Examination, console: Console | None = None) -> None:
    """Print what is fine in a line each, and what is not with its fix."""
    console = console or new_console()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=7)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for check in report.checks:
        _add_check(grid, check)
    console.print(grid)
    console.print(Text(_conclusion(report), style="bold"))


def _add_check(grid: Table, check: Check) -> None:
    name = Text(printable(check.name))
    if not check.problems:
        grid.add_row(Text("ok", style="green"), name, Text(printable(check.text)))
        return
    for problem in sorted(check.problems, key=lambda each: _ORDER.index(each.severity)):
        word = Text(problem.severity.value, style=_STYLES[problem.severity])
        grid.add_row(word, name, Text(printable(problem.cause)))
        grid.add_row("", "", Text(printable(_fix(problem)), style="dim"))
        name = Text("")


def _fix(problem: Problem) -> str:
    return f"→ {problem.fix}  [{problem.id}]"


def _conclusion(report: Examination) -> str:
    if report.worst is None:
        return "All is well."
    counts = [(sum(p.severity is s for p in report.problems), s.value) for s in _ORDER]
    said = ", ".join(f"{n} {word}" + "s" * (n != 1) for n, word in counts if n)
    return f"Found: {said}."
