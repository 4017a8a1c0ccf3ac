"""`tidegate usage`: who used how many tokens of what, as the history of the running one has it."""

from __future__ import annotations

import argparse
import time
from datetime import datetime

from tidegate.cli.places import find_places
from tidegate.cli.show.printable import say_json
from tidegate.cli.verbs.ask import ask
from tidegate.cli.verbs.logs import moment
from tidegate.core.protocol.control import ControlRequest


def usage(arguments: argparse.Namespace) -> int:
    """Print a line for each token, model, upstream, day or format. Raises CliError."""
    since = max(0.0, moment(arguments.since, datetime.now()))
    request = ControlRequest(verb="usage", by=arguments.by, since_s=max(0.0, time.time() - since))
    result = ask(find_places(arguments), request)
    if arguments.json:
        say_json(result)
        return 0
    from tidegate.cli.show import decode
    from tidegate.cli.show.screen import new_console
    from tidegate.cli.show.usage import show_usage

    console = new_console(wide=arguments.wide)
    show_usage(decode.read_usage(result), by=arguments.by, since=since, console=console)
    return 0
