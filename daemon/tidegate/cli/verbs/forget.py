"""`tidegate forget`: remove what is kept of a run, or of all that are over."""

from __future__ import annotations

import argparse
import sys

from tidegate.cli.failure import REFUSED, USAGE, CliError
from tidegate.cli.places import find_places
from tidegate.cli.show.printable import say, say_json
from tidegate.cli.verbs.ask import FORGET_LIMIT_S, ask, find_run
from tidegate.core.protocol.control import ControlRequest
from tidegate.core.text import count


def forget(arguments: argparse.Namespace) -> int:
    """Have the running tidegate forget, and say what it forgot. Raises CliError."""
    run: str | None = arguments.which
    if (run is None) != arguments.all:
        raise CliError("forget: give the id of a run, or --all", USAGE)
    places = find_places(arguments)
    if run is not None:
        run = find_run(places, run)
    if not arguments.yes and not _is_meant(run):
        say("Nothing was forgotten.")
        return REFUSED
    result = ask(places, ControlRequest(verb="forget", run=run), FORGET_LIMIT_S)
    from tidegate.cli.show import decode

    forgotten = decode.read_forgotten(result)
    if run is not None and not forgotten:
        raise CliError(f"no run {run} is known", REFUSED)
    if arguments.json:
        say_json(result)
    elif run is not None:
        say(f"Forgotten: {run}, its answer and its row in the history.")
    else:
        say(f"Forgotten: {count(forgotten, 'run')}, answers and rows. What still runs is kept.")
    return 0


def _is_meant(run: str | None) -> bool:
    """Ask on a terminal. Without one a single run is meant; all need --yes. Raises CliError."""
    if not sys.stdin.isatty():
        if run is None:
            raise CliError("forget --all: there is no terminal to ask at; give --yes", USAGE)
        return True
    what = f"run {run}" if run is not None else "every answer and the whole history"
    say(f"This removes {what} for good. Type yes to go on:", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
