"""`tidegate top`: how it is and what runs, drawn anew every two seconds until Ctrl-C.

It asks what `status` and `runs` ask, and no more often. While none answers it says so and goes on,
for a restart is one of the things that one watches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tidegate.cli.failure import CliError
from tidegate.cli.places import find_places
from tidegate.cli.show import decode
from tidegate.cli.show.printable import printable, say_json
from tidegate.cli.show.screen import new_console, runs_table
from tidegate.cli.show.status_page import status_parts
from tidegate.cli.verbs.ask import ask
from tidegate.config.places import Places
from tidegate.core.protocol.control import ControlRequest
from tidegate.core.protocol.status import Status
from tidegate.core.runs.summary import RunSummary
from tidegate.core.text import count

EVERY_S = 2.0
_ANSWER_LIMIT_S = 6.0  # the watchdog gives a worker 5 s
_LEAST_RUNS = 3  # are shown on the smallest terminal


class Picture(msgspec.Struct, frozen=True):
    """What was answered at one moment, as it came."""

    status: msgspec.Raw
    runs: msgspec.Raw


class Speeds:
    """Remember how far each run was at the last picture."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._events: dict[str, int] = {}

    def take(self, runs: list[RunSummary], now_s: float) -> dict[str, float]:
        """Return the events a second of those under way that were seen before, by id."""
        span_s = now_s - self._at_s
        speeds = {
            run.id: max(0, run.next_seq - self._events[run.id]) / span_s
            for run in runs
            if run.ended is None and run.id in self._events and span_s > 0
        }
        self._at_s, self._events = now_s, {run.id: run.next_seq for run in runs}
        return speeds


def top(arguments: argparse.Namespace) -> int:
    """Draw until Ctrl-C, or once where asked or where there is no terminal to draw on."""
    places = find_places(arguments)
    try:
        if arguments.json:
            return _print_json(places, once=arguments.once)
        console = new_console()
        if arguments.once or not console.is_terminal or console.is_dumb_terminal:
            return _print_once(places, console)
        return _draw(places, console)
    except KeyboardInterrupt:
        return 0


def _print_json(places: Places, *, once: bool) -> int:
    while True:
        say_json(_look(places))
        if once:
            return 0
        sys.stdout.flush()
        time.sleep(EVERY_S)


def _print_once(places: Places, console: Console) -> int:
    status, runs = _read(_look(places))
    for part in _parts(status, runs, None, console, len(runs)):
        console.print(part)
    return 0


def _draw(places: Places, console: Console) -> int:
    speeds = Speeds()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                status, runs = _read(_look(places))
            except CliError as error:
                told: list[RenderableType] = [
                    Text(printable(str(error))),
                    Text("Asked again soon."),
                ]
            else:
                known = speeds.take(runs, time.monotonic())
                room = _room(status, console)
                told = list(_parts(status, runs, known, console, room))
            live.update(Group(*told), refresh=True)
            time.sleep(EVERY_S)


def _look(places: Places) -> Picture:
    """Ask for both. Raises CliError."""
    status = ask(places, ControlRequest(verb="status"), _ANSWER_LIMIT_S)
    return Picture(status, ask(places, ControlRequest(verb="runs"), _ANSWER_LIMIT_S))


def _read(picture: Picture) -> tuple[Status, list[RunSummary]]:
    """Decode it; what is under way comes first, each as it came: the newest first."""
    runs = decode.read_runs(picture.runs)
    return decode.read_status(picture.status), sorted(runs, key=lambda run: run.ended is not None)


def _room(status: Status, console: Console) -> int:
    """Return how many runs fit below what is said of the whole, and above the last line."""
    taken = sum(len(console.render_lines(part)) for part in status_parts(status))
    return max(_LEAST_RUNS, console.height - taken - 3)


def _parts(
    status: Status,
    runs: list[RunSummary],
    speeds: dict[str, float] | None,
    console: Console,
    room: int,
) -> Iterator[RenderableType]:
    yield from status_parts(status)
    yield Text()
    if not runs:
        yield Text("No runs are held.")
        return
    shown = runs[:room]
    yield runs_table(shown, console.width, speeds=speeds)
    if more := len(runs) - len(shown):
        yield Text(f"and {count(more, 'run')} more", style="dim")
