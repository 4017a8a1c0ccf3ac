"""`tidegate start`, `stop` and `restart`, for machines without a service manager.

Where a service manager runs this tidegate, they refuse and name its command: it would start again
what was stopped, or two tidegates would compete for one address.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tidegate import config
from tidegate.cli.failure import NOT_RUNNING, NOT_YET, REFUSED, CliError
from tidegate.cli.places import find_places, stop_limit_s
from tidegate.cli.show.banner import base_url
from tidegate.cli.show.decode import read_status
from tidegate.cli.show.printable import say
from tidegate.cli.verbs.ask import ask, not_running_text
from tidegate.config.places import Places, PlacesError, make_private, serving_dir
from tidegate.core.protocol.control import ControlRequest
from tidegate.core.protocol.status import Status
from tidegate.logs.file import refuse_strange_link
from tidegate.logs.handler import unit_of
from tidegate.managers import base, placing
from tidegate.managers.base import Manager
from tidegate.managers.find import find
from tidegate.managers.job import NAME, Scope
from tidegate.watchdog import detach

READY_LIMIT_S = 45.0  # a worker has 30 s to become ready; a slow disk loads Python before that
STATUS_LIMIT_S = 2.0
STOP_MARGIN_S = 15.0  # beyond the time that answers in flight are given
TERM_LIMIT_S = 10.0
LOG_LINES = 15

SERVING = ("serving", "degraded", "recycling")


def start(arguments: argparse.Namespace) -> int:
    """Start in the background and return when it serves, or say why it does not."""
    places = find_places(arguments)
    if running := find_status(places):
        by = f", as a service of {running.manager}" if running.manager else ""
        say(f"tidegate is already running, pid {running.watchdog.pid}{by}.")
        return 0
    _leave_to_manager("start", places, None)
    return _start(places)


def _start(places: Places) -> int:
    config.load(places.named_config, places.state_dir)  # its mistakes belong on this terminal
    for directory in (places.state_dir, places.runtime_dir, places.log_file.parent):
        make_private(directory)
    seen = _open_log(places.log_file)
    try:
        # The command as it was called: where that is a link, an upgrade may have it lead elsewhere.
        command = [*placing.program(), "run", *_run_arguments(places)]
        lifeline = detach.spawn(command, places.log_file)
    except detach.DetachError as error:
        raise CliError(str(error), NOT_RUNNING) from error
    try:
        status = _wait_ready(places, lifeline, seen)
    finally:
        os.close(lifeline)
    say(f"tidegate is ready, pid {status.watchdog.pid}.")
    for address in status.listen:
        say(f"  Base URL  {base_url(address)}")
    say(f"  Log       {places.log_file}")
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Let the answers in flight finish, stop, and return when it is over."""
    places = find_places(arguments)
    _leave_to_manager("stop", places, find_status(places))
    return _stop(places)


def _stop(places: Places) -> int:
    pid_file = serving_dir(places) / "tidegate.pid"
    pid = detach.holder(pid_file)
    if pid is None:
        raise CliError(not_running_text(places), NOT_RUNNING)

    def is_over() -> bool:
        return detach.holder(pid_file) != pid

    try:
        ask(places, ControlRequest(verb="stop", wait=False))
    except CliError:
        _terminate(pid_file, pid)
    if not detach.wait_for(is_over, stop_limit_s(places) + STOP_MARGIN_S):
        _terminate(pid_file, pid)
        if not detach.wait_for(is_over, TERM_LIMIT_S):
            raise CliError(f"pid {pid} has been told to stop and is still there", NOT_YET)
    say("Stopped.")
    return 0


def restart(arguments: argparse.Namespace) -> int:
    """Stop if it runs, then start. A config that is not good leaves the running one alone."""
    places = find_places(arguments)
    _leave_to_manager("restart", places, find_status(places))
    config.load(places.named_config, places.state_dir)
    if detach.holder(serving_dir(places) / "tidegate.pid") is not None:
        _stop(places)
    return _start(places)


def _leave_to_manager(verb: str, places: Places, running: Status | None) -> None:
    """Raise CliError when a service manager runs it, with the command that the manager obeys."""
    if running is not None and running.manager is not None:
        words = _unit_words(verb, running.watchdog.pid) or f"tidegate service {verb}"
        by = running.manager
    elif (chosen := None if running else _manager_of(places)) is not None:
        words, by = f"tidegate service {verb} --{chosen.scope.value}", chosen.name
    else:
        return
    raise CliError(f"this tidegate is a service of {by}; run: {words}", REFUSED)


def _manager_of(places: Places) -> Manager | None:
    """Return the manager that starts or runs a tidegate with these places that does not answer."""
    for scope in Scope:
        try:
            chosen = find(scope)
            state = chosen.state()
            found = placing.places_of(state.command, scope)
        except (base.ManagerError, PlacesError):
            continue
        if state.active and found.runtime_dir == places.runtime_dir:
            return chosen
    return None


def _unit_words(verb: str, pid: int) -> str | None:
    """Return systemctl's command, where the unit has another name than ours."""
    try:
        unit, is_users = unit_of(Path(f"/proc/{pid}/cgroup").read_text(errors="replace"))
    except OSError:
        return None
    if unit in (None, f"{NAME}.service"):
        return None
    return f"systemctl{' --user' if is_users else ''} {verb} {unit}"


def _open_log(log_file: Path) -> int:
    """Return the log's length in bytes before the start. Raises CliError if it is not writable."""
    try:
        refuse_strange_link(log_file)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        fd = os.open(log_file, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CliError(f"cannot write the log {log_file}: {error.strerror}", NOT_RUNNING) from error
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _run_arguments(places: Places) -> list[str]:
    """Name the same places, whatever directory and environment the daemon starts in."""
    arguments = ["--state-dir", str(places.state_dir), "--runtime-dir", str(places.runtime_dir)]
    if places.named_config is not None:
        arguments += ["--config", str(places.named_config)]
    return [*arguments, "--log-file", str(places.log_file)]


def _wait_ready(places: Places, lifeline: int, seen: int) -> Status:
    """Wait for the daemon to serve; its status. Raises CliError with the end of its log."""
    latest: Status | None = None

    def is_settled() -> bool:
        nonlocal latest
        latest = find_status(places)
        return (latest is not None and latest.state in SERVING) or detach.is_gone(lifeline, 0)

    settled = detach.wait_for(is_settled, READY_LIMIT_S)
    if latest is not None and latest.state in SERVING:
        return latest
    what = "tidegate has ended" if settled else f"tidegate is not ready after {READY_LIMIT_S:g} s"
    log = "\n".join(_new_lines(places.log_file, seen)) or "(the log is empty)"
    code = NOT_RUNNING if settled else NOT_YET
    raise CliError(f"{what}; the end of {places.log_file}:\n{log}", code)


def find_status(places: Places) -> Status | None:
    """Return the status of the tidegate of these places; None when it does not answer."""
    try:
        return read_status(ask(places, ControlRequest(verb="status"), STATUS_LIMIT_S))
    except CliError:
        return None


def _new_lines(log_file: Path, seen: int) -> list[str]:
    """Return the last lines that were written since the log was `seen` bytes long."""
    with log_file.open("rb") as log:
        log.seek(seen if log_file.stat().st_size >= seen else 0)
        return log.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]


def _terminate(pid_file: Path, pid: int) -> None:
    """Send SIGTERM if that pid still holds the lock: no other process is ever hit."""
    if detach.holder(pid_file) == pid:
        os.kill(pid, signal.SIGTERM)


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "start": start,
    "stop": stop,
    "restart": restart,
}
