"""Which service a verb of `tidegate service` means, and what it is called to a person."""

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
    """The manager that is meant; without a flag the one that has the service. Raises CliError."""
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
    """This computer's manager of the other scope: one of the system and one of a user are two."""
    return managers.find(Scope.USER if chosen.scope is Scope.SYSTEM else Scope.SYSTEM)


def is_installed(chosen: Manager) -> bool:
    try:
        return chosen.state().installed
    except ManagerError:
        return False


def installed(arguments: argparse.Namespace) -> Manager:
    """For a verb that changes something: it is installed, and we may. Raises CliError."""
    chosen = find(arguments)
    if not chosen.state().installed:
        raise CliError(unknown_text(chosen), NOT_RUNNING)
    need_root(chosen, arguments)
    return chosen


def places_of(
    chosen: Manager, arguments: argparse.Namespace, state: UnitState | None = None
) -> Places:
    """Where the service keeps its things: as its flags say, unless ours say otherwise."""
    command = (state or chosen.state()).command
    found = placing.places_of(command, chosen.scope, platform_of(chosen))
    return places.find(
        config=arguments.config or found.config_file,
        state_dir=arguments.state_dir or found.state_dir,
        runtime_dir=arguments.runtime_dir or found.runtime_dir,
    )


def need_root(chosen: Manager, arguments: argparse.Namespace) -> None:
    if chosen.scope is Scope.SYSTEM and os.geteuid() != 0:
        words = shlex.join(["sudo", *placing.program(), *_typed(arguments)])
        raise CliError(f"only root may change a service of the system; run:\n  {words}", REFUSED)


def check_writable(chosen: Manager) -> None:
    """Before anything is begun that could not be ended. Raises CliError."""
    if is_there(chosen.directory) and not os.access(chosen.directory, os.W_OK):
        raise CliError(f"{chosen.directory} cannot be written to; nothing was changed", REFUSED)


def _typed(arguments: argparse.Namespace) -> list[str]:
    """The command again, with paths that mean the same from anywhere."""
    words = ["service", arguments.service_verb, "--system"]
    for flag, value in vars(arguments).items():
        if flag in {"verb", "service_verb", "system", "user"} or value in (None, False):
            continue
        words.append(f"--{flag.replace('_', '-')}")
        if value is not True:
            words.append(str(value.absolute() if isinstance(value, Path) else value))
    return words


def platform_of(chosen: Manager) -> str:
    return "darwin" if chosen.name == "launchd" else "linux"


def name_of(chosen: Manager) -> str:
    whose = "of the system" if chosen.scope is Scope.SYSTEM else "of this user"
    return f"{chosen.name} {whose}"


def unknown_text(chosen: Manager) -> str:
    return f"{name_of(chosen)} knows no tidegate; run: {own_words(chosen, 'install')}"


def own_words(chosen: Manager, verb: str) -> str:
    """One of our own verbs, as this person has to type it."""
    if chosen.scope is Scope.USER:
        return f"`tidegate service {verb}{' --user' if os.geteuid() == 0 else ''}`"
    needs_sudo = os.geteuid() != 0 and verb not in {"status", "logs"}
    return f"`{'sudo ' if needs_sudo else ''}tidegate service {verb} --system`"


def is_there(path: Path) -> bool:
    """False also of what lies behind a door that is closed to us."""
    return os.access(path, os.F_OK)
