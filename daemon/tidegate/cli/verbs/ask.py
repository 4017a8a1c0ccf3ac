"""The verbs that ask the running tidegate, over its control socket."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable

import msgspec

from tidegate.cli.failure import NOT_RUNNING, NOT_YET, REFUSED, USAGE, CliError
from tidegate.cli.places import find_places
from tidegate.cli.show.printable import printable, say, say_json, say_lines
from tidegate.config.places import Places, serving_dir, system_places
from tidegate.core.decoding import Undecodable
from tidegate.core.protocol.control import ControlReply, ControlRequest
from tidegate.watchdog.control import client
from tidegate.watchdog.control.client import SOCKET_NAME, NotRunning

_ID_BEGINNING = re.compile(r"[0-9a-f]{4,31}")
_MOST_TOLD = 10
ANSWER_LIMIT_S = 15.0  # the watchdog gives a worker 5 s
FORGET_LIMIT_S = 60.0  # it gives one 50 s to overwrite what goes
RELOAD_LIMIT_S = 90.0  # for one under way and one more, each of which may start a worker
UPGRADE_LIMIT_S = 90.0  # for the preflight and the new program's start
RECYCLE_LIMIT_S = 2 * 3630.0  # twice the default of drain.recycle_limit_s


def ask(places: Places, request: ControlRequest, limit_s: float = ANSWER_LIMIT_S) -> msgspec.Raw:
    """Send a request and return its result. Raises CliError: not running, no answer, refused."""
    reply = reply_to(places, request, limit_s)
    if not reply.ok:
        error = reply.error or f"{request.verb} was refused"
        if error.startswith("not a request") or error.endswith(
            "is not a verb that this tidegate knows"
        ):
            error += "; it is of another version than this command: `tidegate upgrade`"
        raise CliError(error, REFUSED)
    return reply.result


def reply_to(places: Places, request: ControlRequest, limit_s: float) -> ControlReply:
    """Send a request and return its answer, a refusal included. Raises CliError without one."""
    try:
        return client.ask(serving_dir(places), request, limit_s)
    except NotRunning as error:
        is_closed = isinstance(error.__cause__, PermissionError)
        raise CliError(
            closed_text(places) if is_closed else not_running_text(places), NOT_RUNNING
        ) from error
    except Undecodable as error:
        raise CliError(
            f"what answers at {places.runtime_dir / SOCKET_NAME} is not a tidegate: {error}",
            NOT_RUNNING,
        ) from error
    except TimeoutError as error:
        raise CliError(
            f"no answer to {request.verb} within {limit_s:g} s; see `tidegate status`", NOT_YET
        ) from error


def closed_text(places: Places) -> str:
    """Say that the control socket may not be opened by this user."""
    sock = places.runtime_dir / SOCKET_NAME
    return f"{sock} answers only the user whose it is, and root: put sudo before the command"


def not_running_text(places: Places) -> str:
    """Say that tidegate is not running, and which one may be meant instead."""
    text = f"tidegate is not running, or not with the runtime directory {places.runtime_dir}"
    return f"{text}; {other}" if (other := system_text(places)) else text


def system_text(places: Places) -> str | None:
    """Say how to reach the system's service, where there is one and these places are not its."""
    there = system_places(sys.platform).runtime_dir
    if os.geteuid() == 0 or there in (None, places.runtime_dir) or not there.is_dir():
        return None
    return "the service of the system answers only root: put sudo before the command"


def _ask_for_people(arguments: argparse.Namespace, request: ControlRequest) -> msgspec.Raw | None:
    """Send a request and return its result; with `--json` print it as it came, return None."""
    result = ask(find_places(arguments), request)
    if not arguments.json:
        return result
    say_json(result)
    return None


def status(arguments: argparse.Namespace) -> int:
    """Print the running tidegate's status."""
    if (result := _ask_for_people(arguments, ControlRequest(verb="status"))) is not None:
        from tidegate.cli.show import decode
        from tidegate.cli.show.status_page import show_status

        show_status(decode.read_status(result), verbose=arguments.verbose)
    return 0


def runs(arguments: argparse.Namespace) -> int:
    """Print the runs that are held, newest first; with `--all` those that are only written down."""
    request = ControlRequest(verb="runs", all=arguments.all)
    if (result := _ask_for_people(arguments, request)) is not None:
        from tidegate.cli.show import decode, screen

        console = screen.new_console(wide=arguments.wide)
        screen.show_runs(decode.read_runs(result), console, everywhere=arguments.all)
    return 0


def find_run(places: Places, given: str) -> str:
    """Return the whole id of the run that `given` is the beginning of, "run_" or not.

    The running tidegate is asked for its runs; what is a whole id, or the beginning of none, comes
    back as it is. Raises CliError where several begin so, and lists them.
    """
    digits = given.removeprefix("run_")
    if not _ID_BEGINNING.fullmatch(digits):
        return given
    from tidegate.cli.show import decode

    known = decode.read_runs(ask(places, ControlRequest(verb="runs", all=True)))
    found = {run.id: run for run in known if run.id.startswith(f"run_{digits}")}
    if not found:
        raise CliError(
            f"no run that begins with {given} is among the newest; "
            "`tidegate runs --all --wide` shows whole ids",
            REFUSED,
        )
    if len(found) > 1:
        told = [
            f"  {run.id}  {run.state}  {run.model}" for run in list(found.values())[:_MOST_TOLD]
        ]
        more = [f"  and {len(found) - _MOST_TOLD} more"] if len(found) > _MOST_TOLD else []
        several = "\n".join([*map(printable, told), *more])
        raise CliError(
            f"{given} is the beginning of several runs; give more of it:\n{several}", USAGE
        )
    return next(iter(found))


def models(arguments: argparse.Namespace) -> int:
    """Print the upstreams and what they have."""
    if (result := _ask_for_people(arguments, ControlRequest(verb="models"))) is not None:
        from tidegate.cli.show import decode
        from tidegate.cli.show.models import show_models
        from tidegate.cli.show.screen import new_console

        show_models(decode.read_models(result), new_console(wide=arguments.wide))
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    """Release stale runs and say how much memory that was."""
    request = ControlRequest(verb="sweep", finished=arguments.finished)
    if (result := _ask_for_people(arguments, request)) is not None:
        from tidegate.cli.show import decode, screen

        say_lines(screen.swept_text(decode.read_sweep(result)))
    return 0


def recycle(arguments: argparse.Namespace) -> int:
    """Replace the worker; wait until the former one is gone unless told not to."""
    request = ControlRequest(verb="recycle", wait=not arguments.no_wait)
    ask(find_places(arguments), request, RECYCLE_LIMIT_S)
    say("A new worker serves." if arguments.no_wait else "Recycled: the former worker is gone.")
    return 0


def upgrade(arguments: argparse.Namespace) -> int:
    """Have tidegate become the version that is installed now; no stream is cut."""
    places = find_places(arguments)
    former = _version(places)
    request = ControlRequest(verb="upgrade", wait=not arguments.no_wait)
    ask(places, request, UPGRADE_LIMIT_S + RECYCLE_LIMIT_S)
    say(f"{former} → {_version(places)}: a worker of the new version serves.")
    return 0


def _version(places: Places) -> str:
    from tidegate.cli.show import decode

    return decode.read_status(ask(places, ControlRequest(verb="status"))).version


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "status": status,
    "runs": runs,
    "models": models,
    "sweep": sweep,
    "recycle": recycle,
    "upgrade": upgrade,
}
