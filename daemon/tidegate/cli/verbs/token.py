"""`tidegate token`: make, list and revoke tokens. A running tidegate obeys at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tidegate import config
from tidegate.cli.failure import BAD_CONFIG, NOT_RUNNING, REFUSED, CliError
from tidegate.cli.places import find_places
from tidegate.cli.show.decode import read_status
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
    """Revoke a token, but not the last one while others can reach what would then be open."""
    places = find_places(arguments)
    token = tokens.revoke(_file(places), arguments.which, before_last=partial(_check_last, places))
    say(f"Revoked {token.name}.", flush=True)
    if not tokens.read(_file(places)):
        say("That was the last one: authentication is off from now on.", file=sys.stderr)
    _tell_the_running_one(places, "the token is gone from the file, but is STILL ACCEPTED")
    return 0


def _check_last(places: Places) -> None:
    """Check that tidegate may go without a token. Raises CliError."""
    kept = "the token is kept, and nothing has changed"
    try:
        exposed = config.find_token_needs(places.named_config, _bound(places))
    except config.ConfigError as error:
        raise CliError(
            f"{error}\nThis is the last token, and with such a config it cannot be told whether "
            f"others would come in without one: {kept}. Mend the config, or make another token "
            "first: `tidegate token new NAME`",
            BAD_CONFIG,
        ) from error
    if exposed:
        raise CliError(
            f"this is the last token, and others can reach {', '.join(exposed)}: {kept}. First "
            "make another one (`tidegate token new NAME`), set `listen` to 127.0.0.1 alone, or "
            "set auth.allow_without_token = true; a changed config has to be in force before "
            "(`tidegate reload`)",
            REFUSED,
        )


def _bound(places: Places) -> list[str]:
    """List where the running tidegate listens, by config or service manager; none: nowhere."""
    try:
        return read_status(ask(places, ControlRequest(verb="status"))).listen
    except CliError as failure:
        if failure.code == NOT_RUNNING:
            return []
        raise CliError(
            f"the last token is kept, for it may be needed: {failure}", failure.code
        ) from (failure)


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
