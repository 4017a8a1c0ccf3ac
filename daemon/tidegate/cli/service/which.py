"""Finds the service that a verb of `tidegate service` means, and names it for people."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from tidegate.cli.failure import NOT_RUNNING, REFUSED, USAGE, CliError
from tidegate.config import places
from tidegate.config.places import Places
from tidegate.managers import find as managers
from tidegate.managers import placing
from tidegate.managers.base import Manager, ManagerError, UnitState
from tidegate.managers.job import Scope


def find(arguments: argparse.Namespace, *, to_install: bool = False) -> Manager:
    """Return the manager that is meant; without a flag, the one with the service.

    Raises CliError.
    """
    asked = Scope.SYSTEM if arguments.system else Scope.USER if arguments.user else None
    if asked is Scope.USER and os.geteuid() == 0 and os.environ.get("SUDO_UID", "0") != "0":
        raise CliError("with sudo, --user would mean root's own service: leave out the sudo", USAGE)
    try:
        first = managers.find(asked)
    except ManagerError as error:
        raise CliError(str(error), NOT_RUNNING) from error
    if asked or to_install or is_installed(first):
        return first
    other = other_than(first)
    return other if is_installed(other) else first


def other_than(chosen: Manager) -> Manager:
    """Return this computer's manager of the other scope: the system's, or this user's."""
    return managers.find(Scope.USER if chosen.scope is Scope.SYSTEM else Scope.SYSTEM)


def is_installed(chosen: Manager) -> bool:
    """Tell whether the manager has the service; False where the manager cannot be asked."""
    try:
        return chosen.state().installed
    except ManagerError:
        return False


def installed(arguments: argparse.Namespace) -> Manager:
    """Return the manager, for a verb that changes the installed service, if this user may.

    Raises CliError.
    """
    chosen = find(arguments)
    if not chosen.state().installed:
        raise CliError(unknown_text(chosen), NOT_RUNNING)
    need_root(chosen, arguments)
    return chosen


def places_of(
    chosen: Manager, arguments: argparse.Namespace, state: UnitState | None = None
) -> Places:
    """Return where the service keeps its files: as its flags say, unless ours say otherwise."""
    command = (state or chosen.state()).command
    found = placing.places_of(command, chosen.scope, platform_of(chosen))
    return places.find(
        config=arguments.config or found.config_file,
        state_dir=arguments.state_dir or found.state_dir,
        runtime_dir=arguments.runtime_dir or found.runtime_dir,
    )


def need_root(chosen: Manager, arguments: argparse.Namespace) -> None:
    """Raise CliError with the sudo command where only root may change the service."""
    if chosen.scope is Scope.SYSTEM and os.geteuid() != 0:
        words = shlex.join(["sudo", *placing.program(), *_typed(arguments)])
        raise CliError(f"only root may change a service of the system; run:\n  {words}", REFUSED)


def check_writable(chosen: Manager) -> None:
    """Check that the manager's directory can be written to, before anything is begun.

    Raises CliError.
    """
    if is_there(chosen.directory) and not os.access(chosen.directory, os.W_OK):
        raise CliError(f"{chosen.directory} cannot be written to; nothing was changed", REFUSED)


def _typed(arguments: argparse.Namespace) -> list[str]:
    """Write the command again, with paths that mean the same from anywhere."""
    words = ["service", arguments.service_verb, "--system"]
    for flag, value in vars(arguments).items():
        if flag in {"verb", "service_verb", "system", "user"} or value in (None, False):
            continue
        words.append(f"--{flag.replace('_', '-')}")
        if value is not True:
            words.append(str(value.absolute() if isinstance(value, Path) else value))
    return words


def platform_of(chosen: Manager) -> str:
    """Return the platform of a manager, as `sys.platform` names it."""
    return "darwin" if chosen.name == "launchd" else "linux"


def name_of(chosen: Manager) -> str:
    """Name the manager for people: "systemd of this user"."""
    whose = "of the system" if chosen.scope is Scope.SYSTEM else "of this user"
    return f"{chosen.name} {whose}"


def unknown_text(chosen: Manager) -> str:
    """Say that the manager has no such service, and how to install it."""
    return f"{name_of(chosen)} has no tidegate service; run: {own_words(chosen, 'install')}"


def own_words(chosen: Manager, verb: str) -> str:
    """Write one of our own verbs as this user has to type it."""
    if chosen.scope is Scope.USER:
        return f"`tidegate service {verb}{' --user' if os.geteuid() == 0 else ''}`"
    needs_sudo = os.geteuid() != 0 and verb not in {"status", "logs"}
    return f"`{'sudo ' if needs_sudo else ''}tidegate service {verb} --system`"


def is_there(path: Path) -> bool:
    """Tell whether a path is there; False also where a directory above it is closed to us."""
    return os.access(path, os.F_OK)
