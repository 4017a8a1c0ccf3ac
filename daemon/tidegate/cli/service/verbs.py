"""`tidegate service …`: the same verbs under systemd and under launchd.

What is about to be written is shown first, and nothing is asked. What the owner has changed is
kept. No key and no environment is ever copied into a unit or a property list.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable

import msgspec

from tidegate.cli.failure import NOT_RUNNING, REFUSED, CliError
from tidegate.cli.service.install import install
from tidegate.cli.service.starting import begin, check_alone, longest_stop_s, progress
from tidegate.cli.service.which import (
    check_writable,
    find,
    installed,
    is_there,
    name_of,
    need_root,
    places_of,
    platform_of,
    unknown_text,
)
from tidegate.cli.show.printable import say, say_lines
from tidegate.cli.verbs.detached import find_status
from tidegate.config import read_settings
from tidegate.config.places import Places
from tidegate.core.protocol.status import Status
from tidegate.managers import account, placing
from tidegate.managers.base import Manager, ManagerError, UnitState
from tidegate.managers.files import WriteError
from tidegate.managers.job import NAME, Scope
from tidegate.watchdog.control.client import SOCKET_NAME


def uninstall(arguments: argparse.Namespace) -> int:
    """Stop it and remove what `install` wrote. Config, state and drop-ins stay."""
    chosen = find(arguments)
    state = chosen.state()
    if not state.installed:
        say(f"{name_of(chosen)} has no tidegate service; nothing to remove.")
        return 0
    need_root(chosen, arguments)
    check_writable(chosen)
    found = places_of(chosen, arguments, state)
    say("Stopping …", flush=True)
    chosen.stop(longest_stop_s(found), progress)
    for note in chosen.remove():
        say_lines(note)
    _say_what_stays(chosen, found)
    return 0


def _say_what_stays(chosen: Manager, found: Places) -> None:
    """Say which files stay, for the owner made them, and how to remove them."""
    folder = found.config_file.parent
    left = [folder if folder.name == NAME else found.config_file, found.state_dir]
    there = sorted({str(path) for path in left if is_there(path)})
    if there:
        say(f"Config and state stay. To remove them too: rm -r {shlex.join(there)}")
    user = account.SERVICE_USERS[chosen.name]
    if chosen.scope is Scope.SYSTEM and account.exists(user):
        removal = account.removal(user, platform_of(chosen))
        say(f"The user {user} stays, for files do; then: {removal}")


def start(arguments: argparse.Namespace) -> int:
    """Start it and return when it serves, or say why it does not."""
    chosen = installed(arguments)
    state = chosen.state()
    if state.running:
        say(f"It is already running, pid {state.pid}.")
        return 0
    check_alone(chosen, places_of(chosen, arguments, state))
    # What waits to be started again would have a plain start wait, too.
    begin(chosen, arguments, chosen.restart if state.active else chosen.start)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Let the answers in flight finish, stop, and return when it is over."""
    chosen = installed(arguments)
    state = chosen.state()
    if not state.active:
        say(f"It is already stopped: {state.word}.")
        return 0
    chosen.stop(longest_stop_s(places_of(chosen, arguments, state)), progress)
    after = chosen.state()
    if after.result:
        say(f"Stopped, but not as it should: {after.result}")
        return REFUSED
    say("Stopped, until the computer starts again." if after.enabled else "Stopped.")
    return 0


def restart(arguments: argparse.Namespace) -> int:
    """Stop it, start it, and return when it serves. A bad config leaves it as it is."""
    chosen = installed(arguments)
    found = places_of(chosen, arguments)
    if is_there(found.config_file):
        read_settings(found.config_file)
    begin(chosen, arguments, chosen.restart, longest_stop_s(found))
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Print the manager's view of the service and tidegate's own."""
    chosen = find(arguments)
    state = chosen.state()
    own = find_status(places_of(chosen, arguments, state)) if state.active else None
    code = 0 if state.running and state.pid else NOT_RUNNING
    if arguments.json:
        say(_as_json(chosen, state, own))
        return code
    for line in _state_lines(chosen, state):
        say(line)
    if own is not None:
        from tidegate.cli.show.status_page import show_status

        say()
        show_status(own)
    elif state.running:
        say(_silence_text(places_of(chosen, arguments, state)))
    return code


def _silence_text(found: Places) -> str:
    sock = found.runtime_dir / SOCKET_NAME
    if os.access(sock, os.R_OK | os.W_OK):
        return "tidegate itself does not answer: it hangs, or is about to end."
    return f"tidegate itself answers only its own user and root, at {sock}."


def logs(arguments: argparse.Namespace) -> int:
    """Print the service's log: its file, or its part of the journal."""
    from tidegate.cli.verbs.logs import read_arguments, show_file, show_journal

    wanted = read_arguments(arguments)
    chosen = find(arguments)
    state = chosen.state()
    if not state.installed:
        raise CliError(unknown_text(chosen), NOT_RUNNING)
    if file := placing.log_file_of(state.command):
        return show_file(file, wanted)
    return show_journal(chosen.scope, wanted)


# --- telling -----------------------------------------------------------------------------------


def _state_lines(chosen: Manager, state: UnitState) -> list[str]:
    if not state.installed:
        return [unknown_text(chosen)]
    starts = "starts with the computer" if chosen.scope is Scope.SYSTEM else "starts by itself"
    enabled = starts if state.enabled else "does not start by itself"
    pid = f", pid {state.pid}" if state.pid else ""
    rows = [
        ("", f"{name_of(chosen)}: {state.word}{pid}, {enabled}"),
        ("File", str(state.file or "")),
        ("Drop-ins", ", ".join(map(str, state.drop_ins))),
        ("Runs", state.command),
        ("Says", state.said),
        ("Ended", state.result or ""),
        ("Restarts", str(state.restarts) if state.restarts else ""),
        ("Limits", _limits_text(state)),
    ]
    return [f"  {name:<9} {text}" if name else text for name, text in rows if text]


def _limits_text(state: UnitState) -> str:
    limits = state.limits
    parts = [
        None if limits.stop_s is None else f"killed {limits.stop_s:g} s after a stop",
        None if limits.watchdog_s is None else f"after {limits.watchdog_s:g} s of silence",
        None if limits.memory_bytes is None else f"at {limits.memory_bytes >> 20} MiB of memory",
        None if limits.open_files is None else f"{limits.open_files} open files",
    ]
    return ", ".join(part for part in parts if part)


def _as_json(chosen: Manager, state: UnitState, own: Status | None) -> str:
    view = msgspec.to_builtins(state, enc_hook=str)
    whole = {"manager": chosen.name, "scope": chosen.scope.value, "service": view}
    return json.dumps(whole | {"tidegate": None if own is None else msgspec.to_builtins(own)})


def run(arguments: argparse.Namespace) -> int:
    """Run one of the verbs. What a manager or a disk refuses becomes a CliError."""
    try:
        return VERBS[arguments.service_verb](arguments)
    except (ManagerError, WriteError) as error:
        raise CliError(str(error), NOT_RUNNING) from error
    finally:
        sys.stdout.flush()  # the complaint comes behind what led to it, also in a file


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "install": install,
    "uninstall": uninstall,
    "start": start,
    "stop": stop,
    "restart": restart,
    "status": status,
    "logs": logs,
}
