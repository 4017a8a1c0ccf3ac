"""`tidegate notify test`: have the running tidegate send a test, and show what receivers answer."""

from __future__ import annotations

import argparse

from tidegate.cli.failure import REFUSED
from tidegate.cli.places import find_places
from tidegate.cli.show.decode import read_tested
from tidegate.cli.show.printable import say, say_json
from tidegate.cli.verbs.ask import ask
from tidegate.core.protocol.control import ControlRequest

# Eight receivers, each of which has 20 s, and as much for a message that is on its way just now.
TEST_LIMIT_S = 200.0


def notify(arguments: argparse.Namespace) -> int:
    """Print what each receiver answered; the exit code tells whether all took it."""
    request = ControlRequest(verb="notify-test", to=arguments.to)
    answer = ask(find_places(arguments), request, TEST_LIMIT_S)
    tested = read_tested(answer)
    if arguments.json:
        say_json(answer)
    else:
        for each in tested:
            say(f"{each.name}: {'delivered' if each.ok else 'NOT delivered'}, {each.answer}")
    return 0 if all(each.ok for each in tested) else REFUSED
