"""`tidegate service install`: make a plan, print it, carry it out.

The plan is a list of steps, and there is no other list: what `--dry-run` prints is what is carried
out without it. Making the plan changes nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from socket import AF_UNIX

import msgspec
from msgspec import Struct

from tidegate.cli.failure import BAD_CONFIG, REFUSED, CliError
from tidegate.cli.service.starting import bring_up, check_alone
from tidegate.cli.service.which import (
    check_writable,
    find,
    is_installed,
    is_there,
    name_of,
    need_root,
    other_than,
    own_words,
    platform_of,
)
from tidegate.cli.show.printable import say, say_lines
from tidegate.config import read_settings
from tidegate.core.settings import Settings
from tidegate.managers import account, placing
from tidegate.managers.base import Manager
from tidegate.managers.files import File, FileChange
from tidegate.managers.job import Job, Scope
from tidegate.managers.launchd import plist
from tidegate.managers.sockets import parse
from tidegate.managers.systemd.unit import CREDENTIALS


class InstallStep(Struct, frozen=True):
    """One part of an installation: the lines that announce it, and what carries it out.

    `act` says what came of it; without one there is nothing to do.
    """

    shown: Sequence[str]
    act: Callable[[], None] | None = None


def install(arguments: argparse.Namespace) -> int:
    """Write what is needed, show it, start it with the computer, and start it now."""
    chosen = find(arguments, to_install=True)
    if not arguments.dry_run:
        need_root(chosen, arguments)
        check_writable(chosen)
    steps = list(plan(arguments, chosen))
    for step in steps:
        for line in step.shown:
            say(line)
    if arguments.dry_run:
        say("Nothing was changed.")
        return 0
    try:
        for step in steps:
            if step.act:
                step.act()
    except account.AccountError as error:
        raise CliError(str(error), REFUSED) from error
    return 0


# --- the plan ------------------------------------------------------------------------------------


def plan(arguments: argparse.Namespace, chosen: Manager) -> Iterator[InstallStep]:
    """List the steps in order. Raises CliError, ConfigError, ManagerError, WriteError."""
    job, settings = make_job(arguments, chosen)
    check_reach(chosen, job)
    command = " ".join(job.command)
    check_alone(chosen, placing.places_of(command, chosen.scope, platform_of(chosen)))
    wants_sockets = arguments.socket or chosen.opens_sockets()
    sockets = numeric(settings.listen) if wants_sockets else []
    supplied = None if sockets else chosen.supplied(job)
    files = [] if supplied else chosen.files(job, sockets)
    changes = [file.compare() for file in files]
    yield from _preparing(chosen, job)
    if supplied:
        yield InstallStep([f"{supplied} does the same already; nothing is written."])
    for file, change in zip(files, changes, strict=True):
        yield _writing(file, change, chosen)
    other = other_than(chosen)
    if is_installed(other) and other.state().active:
        yield InstallStep([f"{name_of(other)} runs a tidegate too; two cannot share an address."])
    begun = "enabled" if arguments.no_start else "enabled and started"
    yield InstallStep(
        [f"Then it is {begun} by {name_of(chosen)}."], partial(_enable, chosen, files)
    )
    yield InstallStep([], partial(_advise, chosen, job, settings))
    if arguments.no_start:
        text = f"Installed, not started. {own_words(chosen, 'start')} starts it."
        yield InstallStep([], partial(say, text))
    else:
        is_changed = any(change is not FileChange.NONE for change in changes)
        start = partial(bring_up, is_changed=is_changed, opens_sockets=bool(sockets))
        yield InstallStep([], partial(start, chosen, arguments))


def _preparing(chosen: Manager, job: Job) -> Iterator[InstallStep]:
    """Make the user, the directories and the config of a service, where they are missing."""
    if job.user and not account.exists(job.user):
        make = partial(_make_user, job.user, job.state_dir or Path("/"), platform_of(chosen))
        yield InstallStep([f"The user {job.user} (new)."], make)
    is_linux_system = job.scope is Scope.SYSTEM and chosen.name == "systemd"
    wanted = account.directories(job, Path(CREDENTIALS) if is_linux_system else None)
    missing = [f"{each.path} (new directory)." for each in wanted if not is_there(each.path)]
    yield InstallStep(missing, partial(_make_directories, wanted))
    config = job.config_file
    if job.scope is Scope.SYSTEM and config and not is_there(config):
        yield InstallStep([f"{config} (new, without a setting)."], partial(_make_config, config))


def _writing(file: File, change: FileChange, chosen: Manager) -> InstallStep:
    """Write a file, shown whole when it is new, else with what changes."""
    match change:
        case FileChange.NONE:
            return InstallStep([f"{file.path} is as it should be."])
        case FileChange.NEW:
            head, body = f"{file.path} (new):", file.text
        case FileChange.OURS | FileChange.THEIRS:
            head, body = f"{file.path} changes:", file.difference()
    lines = [f"  {line}" for line in body.splitlines()]
    return InstallStep([head, *lines, ""], partial(_write, file, chosen))


def make_job(arguments: argparse.Namespace, chosen: Manager) -> tuple[Job, Settings]:
    """Return what the service runs, and its settings. Raises CliError or ConfigError.

    What it was given when it was installed before stays, unless it is given something else now.
    """
    state = chosen.state()
    former = placing.named(state.command) if state.installed else {}
    job = placing.job(
        chosen.scope,
        placing.program(),
        config=_given(arguments.config, "TIDEGATE_CONFIG", former.get("--config")),
        state_dir=_given(arguments.state_dir, "TIDEGATE_STATE_DIR", former.get("--state-dir")),
        runtime_dir=_given(
            arguments.runtime_dir, "TIDEGATE_RUNTIME_DIR", former.get("--runtime-dir")
        ),
        platform=platform_of(chosen),
    )
    config = job.config_file
    if config is None:
        config = placing.places_of("", chosen.scope, platform_of(chosen)).config_file
    elif arguments.config and not is_there(config):
        raise CliError(f"{config}: there is no such file", BAD_CONFIG)
    settings = read_settings(config) if is_there(config) else Settings()
    stop_limit_s = settings.drain.stop_limit_s
    return msgspec.structs.replace(job, stop_limit_s=stop_limit_s), settings


def _given(flag: Path | None, variable: str, former: Path | None) -> Path | None:
    """Return a flag, else None for the environment to say, else what was said before."""
    return flag or (None if os.environ.get(variable) else former)


def check_reach(chosen: Manager, job: Job) -> None:
    """Raise CliError when a service of the system could not read its program or its places."""
    if chosen.name != "systemd" or chosen.scope is Scope.USER:
        return
    drop_ins = sorted((chosen.directory / "tidegate.service.d").glob("*.conf"))
    if why := placing.unreachable(job, drop_ins):
        raise CliError(
            f"{why}.\nA service of the system needs its program where everybody may read it, such "
            "as /opt/tidegate (packaging/install.sh), and its places outside of homes. Or make it "
            "one of your own: tidegate service install --user",
            REFUSED,
        )


def numeric(addresses: Sequence[str]) -> list[str]:
    """Write addresses as a service manager can open them: it resolves no names, chooses no ports.

    Raises CliError.
    """
    found = []
    for address in addresses:
        family, host, port = parse(address)
        if family == AF_UNIX:
            found.append(address)
            continue
        if port == 0:
            raise CliError(f"--socket: {address} of `listen` has to name a port", BAD_CONFIG)
        found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return found


# --- carrying it out -----------------------------------------------------------------------------


def _make_user(user: str, home: Path, platform: str) -> None:
    account.make_user(user, home, platform)
    say(f"Made the user {user}.")


def _make_directories(wanted: Sequence[account.Directory]) -> None:
    for path in account.make_directories(wanted):
        say(f"Made the directory {path}.")
    for advice in account.misowned(wanted):
        say(advice)


def _make_config(path: Path) -> None:
    if account.make_config(path):
        say(f"Made an empty config, {path}.")


def _write(file: File, chosen: Manager) -> None:
    if kept := file.write():
        say(kept_text(file.path, kept, chosen))


def _enable(chosen: Manager, files: Sequence[File]) -> None:
    for note in chosen.enable(files):
        say_lines(note)


def _advise(chosen: Manager, job: Job, settings: Settings) -> None:
    advise_keys(settings, chosen)
    if chosen.name == "launchd":  # which waits for a stop no longer than it likes
        asked_s = plist.exit_timeout_s(job)
        if warning := plist.stop_limit_warning(settings.drain.stop_limit_s, asked_s):
            say(f"{warning[0].upper()}{warning[1:]}.")


def kept_text(path: Path, kept: Path, chosen: Manager) -> str:
    """Say where a file went that its owner had changed, and how such a change stays."""
    what = f"{path.name} had been changed by hand; it is kept as {kept}."
    if chosen.name == "systemd":
        return (
            f"{what} To have a change stay, put it into a drop-in: `{chosen.words('edit')}` "
            "(only the keys that differ, under their [Section])."
        )
    return f"{what} launchd has no drop-ins: change the config instead, or the file again."


def advise_keys(settings: Settings, chosen: Manager) -> None:
    """Say where a key goes that is in this terminal's environment, or in none."""
    for upstream in settings.upstreams:
        for name, source in upstream.headers.items():
            if isinstance(source, str) or source.env is None:
                continue
            if chosen.key_advice(source.env, upstream.name):
                say(
                    f'The header {name} of upstream "{upstream.name}" is expected in the '
                    "environment, and the service's has none: write it into a 0600 file and name "
                    'that in the config with { file = "…" }.'
                )
        if upstream.api_key_env is None:
            continue
        if advice := chosen.key_advice(upstream.api_key_env, upstream.name):
            say(
                # Not the variable: some people write the key itself there.
                f'The key of upstream "{upstream.name}" is expected in the environment, and the '
                f"service's has none: {advice}."
            )
