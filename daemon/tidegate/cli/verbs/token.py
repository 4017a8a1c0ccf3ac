"""`tidegate token`: make, list and revoke tokens. A running tidegate obeys at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tidegate import config
from tidegate.cli.failure import NOT_RUNNING, REFUSED, CliError
from tidegate.cli.places import find_places
from tidegate.cli.show.printable import say, say_json
from tidegate.cli.verbs.ask import RELOAD_LIMIT_S, ask, system_text
from tidegate.config import tokens
from tidegate.config.places import Places, make_private
from tidegate.core import scopes
from tidegate.core.protocol.control import ControlRequest


def new(arguments: argparse.Namespace) -> int:
    """Print a new token, alone on stdout, so that a script can keep it."""
    places = find_places(arguments)
    make_private(places.state_dir)
    plaintext = tokens.new(_file(places), arguments.name, scope=arguments.scope)
    say(plaintext, flush=True)
    say("Keep it: it is stored as a hash and cannot be shown again.", file=sys.stderr)
    say(f"It may {scopes.MEANINGS[arguments.scope]}.", file=sys.stderr)
    _tell_the_running_one(places, "the token is made, but not yet accepted")
    return 0


def listing(arguments: argparse.Namespace) -> int:
    """Print the tokens' names and scopes; a token itself is stored nowhere."""
    file = _file(find_places(arguments))
    known = tokens.read(file)
    if arguments.json:
        say_json(known)
        return 0
    for token in known:
        say(f"{token.sha256[:12]}  {token.created:<25}  {token.scope:<5}  {token.name}")
    for warning in tokens.warnings(file, known):
        say(f"tidegate: warning: {warning}", file=sys.stderr)
    if not known:
        say("There is no token: authentication is off.", file=sys.stderr)
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Revoke a token."""
    places = find_places(arguments)
    token = tokens.revoke(_file(places), arguments.which)
    say(f"Revoked {token.name}.", flush=True)
    if not tokens.read(_file(places)):
        say("That was the last one: authentication is off from now on.", file=sys.stderr)
    _tell_the_running_one(places, "the token is gone from the file, but is STILL ACCEPTED")
    return 0


def _file(places: Places) -> Path:
    return config.tokens_path(places.named_config, places.state_dir)


def _tell_the_running_one(places: Places, otherwise: str) -> None:
    try:
        ask(places, ControlRequest(verb="reload"), RELOAD_LIMIT_S)
    except CliError as failure:
        if failure.code != NOT_RUNNING:
            raise CliError(f"{otherwise}: {failure}", REFUSED) from failure
        if other := system_text(places):
            say(f"That was the file in {_file(places).parent}; {other}.", file=sys.stderr)


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "new": new,
    "list": listing,
    "revoke": revoke,
}
