"""The steps of `tidegate service install` and `uninstall`: looked at first, said, then done."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from socket import AF_UNIX

import msgspec

from tidegate.cli.failure import BAD_CONFIG, REFUSED, Failure
from tidegate.cli.service.which import is_installed, is_there, name_of, platform_of, read_settings
from tidegate.cli.show.printable import say, say_lines
from tidegate.cli.verbs.detached import find_status
from tidegate.config.places import Places
from tidegate.core.settings import Settings
from tidegate.managers import account, placing
from tidegate.managers.base import Manager
from tidegate.managers.files import Change, File
from tidegate.managers.find import find
from tidegate.managers.job import NAME, Job, Scope
from tidegate.managers.launchd import plist
from tidegate.managers.sockets import parse
from tidegate.managers.systemd.unit import CREDENTIALS


def make_job(arguments: argparse.Namespace, chosen: Manager) -> tuple[Job, Settings]:
    """What the service runs, and the settings it will find. Raises Failure or ConfigError.

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
        raise Failure(f"{config}: there is no such file", BAD_CONFIG)
    settings = read_settings(config) if is_there(config) else Settings()
    stop_limit_s = settings.drain.stop_limit_s
    return msgspec.structs.replace(job, stop_limit_s=stop_limit_s), settings


def _given(flag: Path | None, variable: str, former: Path | None) -> Path | None:
    """A flag, else None for the environment to say, else what was said before."""
    return flag or (None if os.environ.get(variable) else former)


def check_writable(chosen: Manager) -> None:
    """Before anything is begun that could not be ended. Raises Failure."""
    if is_there(chosen.directory) and not os.access(chosen.directory, os.W_OK):
        raise Failure(f"{chosen.directory} cannot be written to; nothing was changed", REFUSED)


def check_reach(chosen: Manager, job: Job) -> None:
    if chosen.name != "systemd" or chosen.scope is Scope.USER:
        return
    drop_ins = sorted((chosen.directory / "tidegate.service.d").glob("*.conf"))
    if why := placing.unreachable(job, drop_ins):
        raise Failure(
            f"{why}.\nA service of the system needs its program where everybody may read it, such "
            "as /opt/tidegate (packaging/install.sh), and its places outside of homes. Or make it "
            "one of your own: tidegate service install --user",
            REFUSED,
        )


def numeric(addresses: Sequence[str]) -> list[str]:
    """As a service manager can open them: it resolves no names and chooses no ports.

    Raises Failure.
    """
    found = []
    for address in addresses:
        family, host, port = parse(address)
        if family == AF_UNIX:
            found.append(address)
            continue
        if port == 0:
            raise Failure(f"--socket: {address} of `listen` has to name a port", BAD_CONFIG)
        found.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return found


def check_alone(chosen: Manager, found: Places) -> None:
    """Another one in the same places holds the lock and the address. Raises Failure."""
    own = find_status(found)
    if own is not None and own.watchdog.pid != chosen.state().pid:
        raise Failure(
            f"another tidegate runs with these places, pid {own.watchdog.pid}; stop it first: "
            "tidegate stop",
            REFUSED,
        )


def show(files: Sequence[File], supplied: Path | None) -> None:
    """Each file before it is written: whole when it is new, else what changes."""
    if supplied:
        say(f"{supplied} does the same already; nothing is written.")
    for file in files:
        match file.compare():
            case Change.NEW:
                say(f"{file.path} (new):")
                say_lines("".join(f"  {line}\n" for line in file.text.splitlines()))
            case Change.NONE:
                say(f"{file.path} is as it should be.")
            case Change.OURS | Change.THEIRS:
                say(f"{file.path} changes:")
                say_lines("".join(f"  {line}\n" for line in file.difference().splitlines()))


def mention_other(chosen: Manager) -> None:
    """One of the system and one of a user are two, and may want the same address."""
    other = find(Scope.USER if chosen.scope is Scope.SYSTEM else Scope.SYSTEM)
    if is_installed(other) and other.state().active:
        say(f"{name_of(other)} runs a tidegate too; two cannot share an address.")


def prepare(chosen: Manager, job: Job) -> None:
    """The user, the directories and the config of a system service. Raises Failure."""
    try:
        if job.user and not account.exists(job.user):
            account.make_user(job.user, job.state_dir or Path("/"), platform_of(chosen))
            say(f"Made the user {job.user}.")
        is_linux_system = job.scope is Scope.SYSTEM and chosen.name == "systemd"
        credentials = Path(CREDENTIALS) if is_linux_system else None
        wanted = account.directories(job, credentials)
        for path in account.make_directories(wanted):
            say(f"Made the directory {path}.")
        for advice in account.misowned(wanted):
            say(f"{advice}")
        if job.scope is Scope.SYSTEM and job.config_file and account.make_config(job.config_file):
            say(f"Made an empty config, {job.config_file}.")
    except account.AccountError as error:
        raise Failure(str(error), REFUSED) from error


def kept_text(path: Path, kept: Path, chosen: Manager) -> str:
    what = f"{path.name} had been changed by hand; it is kept as {kept}."
    if chosen.name == "systemd":
        return (
            f"{what} To have a change stay, put it into a drop-in: `{chosen.words('edit')}` "
            "(only the keys that differ, under their [Section])."
        )
    return f"{what} launchd has no drop-ins: change the config instead, or the file again."


def advise_keys(settings: Settings, chosen: Manager) -> None:
    """Where a key goes that is in this terminal's environment, or in none."""
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


def advise_stop_limit(settings: Settings, chosen: Manager, job: Job) -> None:
    """launchd waits for a stop no longer than it likes."""
    if chosen.name == "launchd":
        asked_s = plist.exit_timeout_s(job)
        if warning := plist.stop_limit_warning(settings.drain.stop_limit_s, asked_s):
            say(f"{warning[0].upper()}{warning[1:]}.")


def say_what_stays(chosen: Manager, found: Places) -> None:
    """Nothing that a person made is removed by us; here is how they do it."""
    folder = found.config_file.parent
    left = [folder if folder.name == NAME else found.config_file, found.state_dir]
    there = sorted({str(path) for path in left if is_there(path)})
    if there:
        say(f"Config and state stay. To remove them too: rm -r {shlex.join(there)}")
    user = account.SERVICE_USERS[chosen.name]
    if chosen.scope is Scope.SYSTEM and account.exists(user):
        removal = account.removal(user, platform_of(chosen))
        say(f"The user {user} stays, for files do; then: {removal}")
