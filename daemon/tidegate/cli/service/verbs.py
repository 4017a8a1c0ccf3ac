"""`tidegate service …`: the same verbs under systemd and under launchd.

What is about to be written is shown first, and nothing is asked. What a person has changed is
kept. No key and no environment is ever copied into a unit or a property list.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

import msgspec

from tidegate import __version__
from tidegate.cli.failure import BAD_CONFIG, NOT_RUNNING, NOT_YET, REFUSED, Failure
from tidegate.cli.service.steps import (
    advise_keys,
    advise_stop_limit,
    check_alone,
    check_reach,
    check_writable,
    kept_text,
    make_job,
    mention_other,
    numeric,
    prepare,
    say_what_stays,
    show,
)
from tidegate.cli.service.which import (
    find,
    installed,
    is_there,
    name_of,
    need_root,
    own_words,
    places_of,
    platform_of,
    read_settings,
    unknown_text,
)
from tidegate.cli.show.banner import base_url
from tidegate.cli.show.printable import printable, say, say_lines
from tidegate.cli.verbs.detached import READY_LIMIT_S, SERVING, find_status
from tidegate.config import ConfigError
from tidegate.config.places import Places
from tidegate.core.protocol.status import Status
from tidegate.core.settings import Drain
from tidegate.managers import base, placing
from tidegate.managers.base import Manager, ManagerError, State
from tidegate.managers.files import Change, WriteError
from tidegate.managers.job import Scope
from tidegate.watchdog.control.client import SOCKET_NAME

START_LIMIT_S = 120.0  # the unit's TimeoutStartSec is 90 s
STOP_MARGIN_S = 30.0  # beyond drain.stop_limit_s: the last error events, the way out, a slow disk
LOG_LINES = 15
_EVERY_S = 0.2
_SILENT_S = 5.0  # a service that is ready and still does not answer us is not ours to ask


# --- the verbs ---------------------------------------------------------------------------------


def install(arguments: argparse.Namespace) -> int:
    """Write what is needed, show it, start it with the computer, and start it now."""
    chosen = find(arguments, to_install=True)
    if not arguments.dry_run:
        need_root(chosen, arguments)
        check_writable(chosen)
    job, settings = make_job(arguments, chosen)
    check_reach(chosen, job)
    command = " ".join(job.command)
    check_alone(chosen, placing.places_of(command, chosen.scope, platform_of(chosen)))
    wants_sockets = arguments.socket or chosen.opens_sockets()
    sockets = numeric(settings.listen) if wants_sockets else []
    supplied = None if sockets else chosen.supplied(job)
    files = [] if supplied else chosen.files(job, sockets)
    changes = {file.path: file.compare() for file in files}
    show(files, supplied)
    mention_other(chosen)
    if arguments.dry_run:
        say(f"Nothing was changed. It would be enabled and started by {name_of(chosen)}.")
        return 0
    prepare(chosen, job)
    for file in files:
        if changes[file.path] is not Change.NONE and (kept := file.write()):
            say(kept_text(file.path, kept, chosen))
    for note in chosen.enable(files):
        say_lines(note)
    advise_keys(settings, chosen)
    advise_stop_limit(settings, chosen, job)
    if arguments.no_start:
        say(f"Installed, not started. {own_words(chosen, 'start')} starts it.")
        return 0
    is_changed = any(change is not Change.NONE for change in changes.values())
    return _bring_up(chosen, arguments, is_changed=is_changed, opens_sockets=bool(sockets))


def uninstall(arguments: argparse.Namespace) -> int:
    """Stop it and remove what `install` wrote. Config, state and drop-ins stay."""
    chosen = find(arguments)
    state = chosen.state()
    if not state.installed:
        say(f"{name_of(chosen)} knows no tidegate; nothing to remove.")
        return 0
    need_root(chosen, arguments)
    check_writable(chosen)
    found = places_of(chosen, arguments, state)
    say("Stopping …", flush=True)
    chosen.stop(_stop_limit_s(found), _tell)
    for note in chosen.remove():
        say_lines(note)
    say_what_stays(chosen, found)
    return 0


def start(arguments: argparse.Namespace) -> int:
    """Start it and return when it serves, or say why it does not."""
    chosen = installed(arguments)
    state = chosen.state()
    if state.running:
        say(f"It runs already, pid {state.pid}.")
        return 0
    check_alone(chosen, places_of(chosen, arguments, state))
    # What waits to be started again would have a plain start wait, too.
    return _begin(chosen, arguments, chosen.restart if state.active else chosen.start)


def stop(arguments: argparse.Namespace) -> int:
    """Let the answers in flight finish, stop, and return when it is over."""
    chosen = installed(arguments)
    state = chosen.state()
    if not state.active:
        say(f"It is stopped already: {state.word}.")
        return 0
    chosen.stop(_stop_limit_s(places_of(chosen, arguments, state)), _tell)
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
    return _begin(chosen, arguments, chosen.restart, _stop_limit_s(found))


def status(arguments: argparse.Namespace) -> int:
    """The manager's view and tidegate's own."""
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
        from tidegate.cli.show.screen import show_status

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
    """Its log file, or its part of the journal."""
    from tidegate.cli.verbs.logs import read_arguments, show_file, show_journal

    wanted = read_arguments(arguments)
    chosen = find(arguments)
    state = chosen.state()
    if not state.installed:
        raise Failure(unknown_text(chosen), NOT_RUNNING)
    if file := placing.log_file_of(state.command):
        return show_file(file, wanted)
    return show_journal(chosen.scope, wanted)


def _begin(
    chosen: Manager,
    arguments: argparse.Namespace,
    action: Callable[[float, base.Tell], None],
    beyond_s: float = 0.0,
) -> int:
    """Start or restart it, tell how far it is, and wait until it serves."""
    try:
        action(START_LIMIT_S + beyond_s, _tell)
    except ManagerError as error:
        raise _failure(chosen, str(error)) from error
    own = _wait_serving(chosen, places_of(chosen, arguments))
    say(f"tidegate is ready, pid {chosen.state().pid}.")
    for address in own.listen if own else []:
        say(f"  Base URL  {base_url(address)}")
    say(f"  Status    {own_words(chosen, 'status')}")
    if own and own.reason:
        say(f"  Note      {own.reason}")
    return 0


def _bring_up(
    chosen: Manager, arguments: argparse.Namespace, *, is_changed: bool, opens_sockets: bool
) -> int:
    state = chosen.state()
    if not state.active:
        return _begin(chosen, arguments, chosen.start)
    if is_changed or not state.running:
        say("It was started before, and is restarted.", flush=True)
        limit_s = _stop_limit_s(places_of(chosen, arguments, state))
        if opens_sockets:  # sockets that are open stay as they were opened
            chosen.stop(limit_s, _tell)
            return _begin(chosen, arguments, chosen.start)
        return _begin(chosen, arguments, chosen.restart, limit_s)
    say(f"It runs already, pid {state.pid}.")
    own = find_status(places_of(chosen, arguments, state))
    if own is not None and own.version != __version__:
        say(f"It is still version {own.version}; `tidegate upgrade` cuts no stream.")
    return 0


# --- waiting -----------------------------------------------------------------------------------


def _wait_serving(chosen: Manager, found: Places) -> Status | None:
    """tidegate's own word that it serves; None where it cannot be asked. Raises Failure."""
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
            _tell(own.state)
        state = chosen.state()
        if not state.running:
            raise _failure(chosen, f"it ended again, {state.result or state.word}")
        if own is None and chosen.name == "systemd" and time.monotonic() - begun_s > _SILENT_S:
            return None  # READY came; its runtime directory may be closed to us
        time.sleep(_EVERY_S)
    raise _failure(chosen, f"it is not ready after {READY_LIMIT_S:g} s", NOT_YET)


def _failure(chosen: Manager, what: str, code: int | None = None) -> Failure:
    """With the end of its log, and the code that it ended with where that says more."""
    if code is None:
        try:
            code = BAD_CONFIG if chosen.state().exit_code == BAD_CONFIG else NOT_RUNNING
        except ManagerError:
            code = NOT_RUNNING
    lines = [printable(line) for line in chosen.last_lines(LOG_LINES)]
    log = "\n".join(["; the end of its log:", *(f"  {line}" for line in lines)]) if lines else ""
    return Failure(f"{what}{log}", code)


def _stop_limit_s(found: Places) -> float:
    try:
        limit_s = read_settings(found.config_file).drain.stop_limit_s
    except (ConfigError, OSError):
        limit_s = Drain().stop_limit_s
    return limit_s + STOP_MARGIN_S


def _tell(text: str) -> None:
    say(f"  … {text}", flush=True)


# --- telling -----------------------------------------------------------------------------------


def _state_lines(chosen: Manager, state: State) -> list[str]:
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


def _limits_text(state: State) -> str:
    limits = state.limits
    parts = [
        None if limits.stop_s is None else f"killed {limits.stop_s:g} s after a stop",
        None if limits.watchdog_s is None else f"after {limits.watchdog_s:g} s of silence",
        None if limits.memory_bytes is None else f"at {limits.memory_bytes >> 20} MiB of memory",
        None if limits.open_files is None else f"{limits.open_files} open files",
    ]
    return ", ".join(part for part in parts if part)


def _as_json(chosen: Manager, state: State, own: Status | None) -> str:
    view = msgspec.to_builtins(state, enc_hook=str)
    whole = {"manager": chosen.name, "scope": chosen.scope.value, "service": view}
    return json.dumps(whole | {"tidegate": None if own is None else msgspec.to_builtins(own)})


def run(arguments: argparse.Namespace) -> int:
    """One of the verbs. What a manager or a disk refuses becomes a Failure."""
    try:
        return VERBS[arguments.service_verb](arguments)
    except (ManagerError, WriteError) as error:
        raise Failure(str(error), NOT_RUNNING) from error
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
