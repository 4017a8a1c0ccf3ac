"""Starts a service and waits until it serves; else says why not, with the end of its log."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from tidegate import __version__
from tidegate.cli.failure import BAD_CONFIG, NOT_RUNNING, NOT_YET, REFUSED, CliError
from tidegate.cli.places import stop_limit_s
from tidegate.cli.service.which import own_words, places_of
from tidegate.cli.show.banner import base_url
from tidegate.cli.show.printable import printable, say
from tidegate.cli.verbs.detached import READY_LIMIT_S, SERVING, find_status
from tidegate.config.places import Places
from tidegate.core.protocol.status import Status
from tidegate.managers.base import Manager, ManagerError, Progress

START_LIMIT_S = 120.0  # the unit's TimeoutStartSec is 90 s
STOP_MARGIN_S = 30.0  # beyond drain.stop_limit_s: the last error events, the way out, a slow disk
LOG_LINES = 15
_EVERY_S = 0.2
_SILENT_S = 5.0  # a service that is ready and still does not answer us is not ours to ask


def begin(
    chosen: Manager,
    arguments: argparse.Namespace,
    action: Callable[[float, Progress], None],
    beyond_s: float = 0.0,
) -> None:
    """Start or restart it, tell how far it is, and wait until it serves."""
    try:
        action(START_LIMIT_S + beyond_s, progress)
    except ManagerError as error:
        raise _failure(chosen, str(error)) from error
    own = _wait_serving(chosen, places_of(chosen, arguments))
    say(f"tidegate is ready, pid {chosen.state().pid}.")
    for address in own.listen if own else []:
        say(f"  Base URL  {base_url(address)}")
    say(f"  Status    {own_words(chosen, 'status')}")
    if own and own.reason:
        say(f"  Note      {own.reason}")


def bring_up(
    chosen: Manager, arguments: argparse.Namespace, *, is_changed: bool, opens_sockets: bool
) -> None:
    """Start it, or restart one that runs if its files have changed; then wait until it serves."""
    state = chosen.state()
    if not state.active:
        begin(chosen, arguments, chosen.start)
    elif is_changed or not state.running:
        say("It was started before, and is restarted.", flush=True)
        limit_s = longest_stop_s(places_of(chosen, arguments, state))
        if opens_sockets:  # sockets that are open stay as they were opened
            chosen.stop(limit_s, progress)
            begin(chosen, arguments, chosen.start)
        else:
            begin(chosen, arguments, chosen.restart, limit_s)
    else:
        say(f"It is already running, pid {state.pid}.")
        own = find_status(places_of(chosen, arguments, state))
        if own is not None and own.version != __version__:
            say(f"It is still version {own.version}; `tidegate upgrade` cuts no stream.")


def check_alone(chosen: Manager, found: Places) -> None:
    """Raise CliError when another one in the same places holds the lock and the address."""
    own = find_status(found)
    if own is not None and own.watchdog.pid != chosen.state().pid:
        raise CliError(
            f"another tidegate runs with these places, pid {own.watchdog.pid}; stop it first: "
            "tidegate stop",
            REFUSED,
        )


def _wait_serving(chosen: Manager, found: Places) -> Status | None:
    """Wait until tidegate says that it serves; None where it cannot be asked. Raises CliError."""
    begun_s = time.monotonic()
    latest = None
    while time.monotonic() - begun_s < READY_LIMIT_S:
        own = find_status(found)
        if own is not None and own.state in SERVING:
            return own
        if own is not None and own.state == "parked":
            raise _failure(chosen, f"it is parked and serves nothing: {own.reason}", BAD_CONFIG)
        if own is not None and own.state != latest:
            latest = own.state
            progress(own.state)
        state = chosen.state()
        if not state.running:
            raise _failure(chosen, f"it ended again, {state.result or state.word}")
        if own is None and chosen.name == "systemd" and time.monotonic() - begun_s > _SILENT_S:
            return None  # READY came; its runtime directory may be closed to us
        time.sleep(_EVERY_S)
    raise _failure(chosen, f"it is not ready after {READY_LIMIT_S:g} s", NOT_YET)


def _failure(chosen: Manager, what: str, code: int | None = None) -> CliError:
    """Make the error, with the end of the log, and the service's exit code where that says more."""
    if code is None:
        try:
            code = BAD_CONFIG if chosen.state().exit_code == BAD_CONFIG else NOT_RUNNING
        except ManagerError:
            code = NOT_RUNNING
    lines = [printable(line) for line in chosen.last_lines(LOG_LINES)]
    log = "\n".join(["; the end of its log:", *(f"  {line}" for line in lines)]) if lines else ""
    return CliError(f"{what}{log}", code)


def longest_stop_s(found: Places) -> float:
    """Return how long a stop of the service in these places may take, in seconds."""
    return stop_limit_s(found) + STOP_MARGIN_S


def progress(text: str) -> None:
    """Print one line of progress."""
    say(f"  … {text}", flush=True)
