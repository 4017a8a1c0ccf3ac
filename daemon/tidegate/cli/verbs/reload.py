"""`tidegate reload`: have the config read again, and print what that changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from tidegate.cli.failure import BAD_CONFIG, NOT_YET, CliError
from tidegate.cli.places import find_places
from tidegate.cli.show import decode
from tidegate.cli.show.printable import say, say_json
from tidegate.cli.verbs.ask import RELOAD_LIMIT_S, reply_to
from tidegate.core.protocol.control import ControlReply, ControlRequest
from tidegate.core.protocol.reload import Reloaded, SettingChange, Why
from tidegate.core.settings import Effect

_SUFFIX = {
    Effect.NEW_WORKER: "recycled",
    Effect.RESTART: "with a restart: the service manager opened the sockets",
}


def reload(arguments: argparse.Namespace) -> int:
    """Print what changed and when it counts, or raise CliError with what to do."""
    reply = reply_to(find_places(arguments), ControlRequest(verb="reload"), RELOAD_LIMIT_S)
    if not reply.ok:
        return _refused(reply, json=arguments.json)
    if arguments.json:
        say_json(reply.result)
        return 0
    done = decode.read_reload(reply.result)
    if done is None:
        say("The config is good; tidegate starts with it.")
        return 0
    for warning in done.warnings:
        say(f"tidegate: warning: {warning}", file=sys.stderr)
    for line in reload_lines(done):
        say(line)
    return 0


def _refused(reply: ControlReply, *, json: bool) -> int:
    """Return 78 for a mistake in the config, which stays until it is fixed, else 75: try again."""
    why = decode.read_refusal(reply.result)
    code = BAD_CONFIG if why in (None, Why.CONFIG) else NOT_YET
    error = reply.error or "the reload was refused"
    if not json:
        raise CliError(error, code)
    shown = {"error": error, "refused": why.value if why else None}
    say_json(shown)
    return code


def reload_lines(done: Reloaded) -> Iterator[str]:
    """Say what the reload did, a line for each change."""
    if done.unparked:
        yield "The config is good again: tidegate serves."
    elif done.earlier is not None:
        ago = f"{done.earlier.ago_s:.0f} s ago"
        yield f"Nothing changed just now. The file had been taken up by itself {ago}:"
        yield from _lines(done.earlier.changes)
    elif not done.changes:
        yield "Nothing changed."
    yield from _lines(done.changes)


def _lines(changes: list[SettingChange]) -> Iterator[str]:
    for change in changes:
        yield f"{change.text()} ({_SUFFIX.get(change.effect, change.effect.value)})"
