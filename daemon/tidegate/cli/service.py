"""`tidegate service …`: the same verbs under systemd and under launchd.

What is about to be written is shown first, and nothing is asked. What a person has changed is
kept. No key and no environment is ever copied into a unit or a property list.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import AF_UNIX

import msgspec

from tidegate import __version__, places
from tidegate.cli.background import READY_LIMIT_S, SERVING, find_status
from tidegate.cli.banner import base_url
from tidegate.cli.failure import BAD_CONFIG, NOT_RUNNING, NOT_YET, REFUSED, USAGE, Failure
from tidegate.cli.printable import printable
from tidegate.config import ConfigError
from tidegate.config.check import find_problems
from tidegate.config.convert import to_settings
from tidegate.config.document import read
from tidegate.config.problem import Problem
from tidegate.core.settings import Drain, Settings
from tidegate.install import account, launchd_plist, manager, placing
from tidegate.install.job import NAME, Job, Scope
from tidegate.install.manager import Manager, ManagerError, State
from tidegate.install.systemd_unit import CREDENTIALS
from tidegate.install.written import Change, File, WriteError
from tidegate.places import Places
from tidegate.service.control import SOCKET_NAME
from tidegate.service.listen import parse
from tidegate.service.status import Status

START_LIMIT_S = 120.0  # the unit's TimeoutStartSec is 90 s
STOP_MARGIN_S = 30.0  # beyond drain.stop_limit_s: the last error events, the way out, a slow disk
LOG_LINES = 15
_EVERY_S = 0.2
_SILENT_S = 5.0  # a service that is ready and still does not answer us is not ours to ask


# --- the verbs ---------------------------------------------------------------------------------


def install(arguments: argparse.Namespace) -> int:
    """Write what is needed, show it, start it with the computer, and start it now."""
    chosen = _find(arguments, to_install=True)
    if not arguments.dry_run:
        _need_root(chosen, arguments)
        _check_writable(chosen)
    job, settings = _job(arguments, chosen)
    _check_reach(chosen, job)
    command = " ".join(job.command)
    _check_alone(chosen, placing.places_of(command, chosen.scope, _platform(chosen)))
    wants_sockets = arguments.socket or chosen.opens_sockets()
    sockets = _numeric(settings.listen) if wants_sockets else []
    supplied = None if sockets else chosen.supplied(job)
    files = [] if supplied else chosen.files(job, sockets)
    changes = {file.path: file.compare() for file in files}
    _show(files, supplied)
    _mention_other(chosen)
    if arguments.dry_run:
        print(f"Nothing was changed. It would be enabled and started by {_name(chosen)}.")
        return 0
    _prepare(chosen, job)
    for file in files:
        if changes[file.path] is not Change.NONE and (kept := file.write()):
            print(_kept_text(file.path, kept, chosen))
    for note in chosen.enable(files):
        print(note)
    _advise_keys(settings, chosen)
    _advise_stop_limit(settings, chosen, job)
    if arguments.no_start:
        print(f"Installed, not started. {_service_words(chosen, 'start')} starts it.")
        return 0
    is_changed = any(change is not Change.NONE for change in changes.values())
    return _bring_up(chosen, arguments, is_changed=is_changed, opens_sockets=bool(sockets))


def uninstall(arguments: argparse.Namespace) -> int:
    """Stop it and remove what `install` wrote. Config, state and drop-ins stay."""
    chosen = _find(arguments)
    state = chosen.state()
    if not state.installed:
        print(f"{_name(chosen)} knows no tidegate; nothing to remove.")
        return 0
    _need_root(chosen, arguments)
    _check_writable(chosen)
    found = _places(chosen, arguments, state)
    print("Stopping …", flush=True)
    chosen.stop(_stop_limit_s(found), _tell)
    for note in chosen.remove():
        print(note)
    _say_what_stays(chosen, found)
    return 0


def start(arguments: argparse.Namespace) -> int:
    """Start it and return when it serves, or say why it does not."""
    chosen = _installed(arguments)
    state = chosen.state()
    if state.running:
        print(f"It runs already, pid {state.pid}.")
        return 0
    _check_alone(chosen, _places(chosen, arguments, state))
    # What waits to be started again would have a plain start wait, too.
    return _begin(chosen, arguments, chosen.restart if state.active else chosen.start)


def stop(arguments: argparse.Namespace) -> int:
    """Let the answers in flight finish, stop, and return when it is over."""
    chosen = _installed(arguments)
    state = chosen.state()
    if not state.active:
        print(f"It is stopped already: {state.word}.")
        return 0
    chosen.stop(_stop_limit_s(_places(chosen, arguments, state)), _tell)
    after = chosen.state()
    if after.result:
        print(f"Stopped, but not as it should: {after.result}")
        return REFUSED
    print("Stopped. It starts again with the computer." if after.enabled else "Stopped.")
    return 0


def restart(arguments: argparse.Namespace) -> int:
    """Stop it, start it, and return when it serves. A bad config leaves it as it is."""
    chosen = _installed(arguments)
    found = _places(chosen, arguments)
    if _is_there(found.config_file):
        _read_settings(found.config_file)
    return _begin(chosen, arguments, chosen.restart, _stop_limit_s(found))


def status(arguments: argparse.Namespace) -> int:
    """The manager's view and tidegate's own."""
    chosen = _find(arguments)
    state = chosen.state()
    own = find_status(_places(chosen, arguments, state)) if state.active else None
    code = 0 if state.running and state.pid else NOT_RUNNING
    if arguments.json:
        print(_as_json(chosen, state, own))
        return code
    for line in _state_lines(chosen, state):
        print(printable(line))
    if own is not None:
        from tidegate.cli.screen import show_status

        print()
        show_status(own)
    elif state.running:
        print(_silence_text(_places(chosen, arguments, state)))
    return code


def _silence_text(found: Places) -> str:
    sock = found.runtime_dir / SOCKET_NAME
    if os.access(sock, os.R_OK | os.W_OK):
        return "tidegate itself does not answer: it hangs, or is about to end."
    return f"tidegate itself answers only its own user and root, at {sock}."


def logs(arguments: argparse.Namespace) -> int:
    """Its log file, or its part of the journal."""
    from tidegate.cli.logs import read_arguments, show_file, show_journal

    wanted = read_arguments(arguments)
    chosen = _find(arguments)
    state = chosen.state()
    if not state.installed:
        raise Failure(_unknown_text(chosen), NOT_RUNNING)
    if file := placing.log_file_of(state.command):
        return show_file(file, wanted)
    return show_journal(chosen.scope, wanted)


def _begin(
    chosen: Manager,
    arguments: argparse.Namespace,
    action: Callable[[float, manager.Tell], None],
    beyond_s: float = 0.0,
) -> int:
    """Start or restart it, tell how far it is, and wait until it serves."""
    try:
        action(START_LIMIT_S + beyond_s, _tell)
    except ManagerError as error:
        raise _failure(chosen, str(error)) from error
    own = _wait_serving(chosen, _places(chosen, arguments))
    print(f"tidegate is ready, pid {chosen.state().pid}.")
    for address in own.listen if own else []:
        print(f"  Base URL  {base_url(address)}")
    print(f"  Status    {_service_words(chosen, 'status')}")
    if own and own.reason:
        print(f"  Note      {printable(own.reason)}")
    return 0


def _bring_up(
    chosen: Manager, arguments: argparse.Namespace, *, is_changed: bool, opens_sockets: bool
) -> int:
    state = chosen.state()
    if not state.active:
        return _begin(chosen, arguments, chosen.start)
    if is_changed or not state.running:
        print("It was started before, and is restarted.", flush=True)
        limit_s = _stop_limit_s(_places(chosen, arguments, state))
        if opens_sockets:  # sockets that are open stay as they were opened
            chosen.stop(limit_s, _tell)
            return _begin(chosen, arguments, chosen.start)
        return _begin(chosen, arguments, chosen.restart, limit_s)
    print(f"It runs already, pid {state.pid}.")
    own = find_status(_places(chosen, arguments, state))
    if own is not None and own.version != __version__:
        print(f"It is still version {own.version}; `tidegate upgrade` cuts no stream.")
    return 0


# --- which service -----------------------------------------------------------------------------


def _find(arguments: argparse.Namespace, *, to_install: bool = False) -> Manager:
    """The manager that is meant; without a flag the one that has the service. Raises Failure."""
    asked = Scope.SYSTEM if arguments.system else Scope.USER if arguments.user else None
    if asked is Scope.USER and os.geteuid() == 0 and os.environ.get("SUDO_UID", "0") != "0":
        raise Failure("with sudo, --user would mean root's own service: leave out the sudo", USAGE)
    try:
        first = manager.find(asked)
    except ManagerError as error:
        raise Failure(str(error), NOT_RUNNING) from error
    if asked or to_install or _is_installed(first):
        return first
    other = manager.find(Scope.USER if first.scope is Scope.SYSTEM else Scope.SYSTEM)
    return other if _is_installed(other) else first


def _is_installed(chosen: Manager) -> bool:
    try:
        return chosen.state().installed
    except ManagerError:
        return False


def _installed(arguments: argparse.Namespace) -> Manager:
    """For a verb that changes something: it is installed, and we may. Raises Failure."""
    chosen = _find(arguments)
    if not chosen.state().installed:
        raise Failure(_unknown_text(chosen), NOT_RUNNING)
    _need_root(chosen, arguments)
    return chosen


def _places(chosen: Manager, arguments: argparse.Namespace, state: State | None = None) -> Places:
    """Where the service keeps its things: as its flags say, unless ours say otherwise."""
    command = (state or chosen.state()).command
    found = placing.places_of(command, chosen.scope, _platform(chosen))
    return places.find(
        config=arguments.config or found.config_file,
        state_dir=arguments.state_dir or found.state_dir,
        runtime_dir=arguments.runtime_dir or found.runtime_dir,
    )


def _need_root(chosen: Manager, arguments: argparse.Namespace) -> None:
    if chosen.scope is Scope.SYSTEM and os.geteuid() != 0:
        words = shlex.join(["sudo", *placing.program(), *_typed(arguments)])
        raise Failure(f"only root may change a service of the system; run:\n  {words}", REFUSED)


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


def _platform(chosen: Manager) -> str:
    return "darwin" if chosen.name == "launchd" else "linux"


def _name(chosen: Manager) -> str:
    whose = "of the system" if chosen.scope is Scope.SYSTEM else "of this user"
    return f"{chosen.name} {whose}"


def _unknown_text(chosen: Manager) -> str:
    return f"{_name(chosen)} knows no tidegate; run: {_service_words(chosen, 'install')}"


def _service_words(chosen: Manager, verb: str) -> str:
    """One of our own verbs, as this person has to type it."""
    if chosen.scope is Scope.USER:
        return f"`tidegate service {verb}{' --user' if os.geteuid() == 0 else ''}`"
    needs_sudo = os.geteuid() != 0 and verb not in {"status", "logs"}
    return f"`{'sudo ' if needs_sudo else ''}tidegate service {verb} --system`"


# --- installing --------------------------------------------------------------------------------


def _job(arguments: argparse.Namespace, chosen: Manager) -> tuple[Job, Settings]:
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
        platform=_platform(chosen),
    )
    config = job.config_file
    if config is None:
        config = placing.places_of("", chosen.scope, _platform(chosen)).config_file
    elif arguments.config and not _is_there(config):
        raise Failure(f"{config}: there is no such file", BAD_CONFIG)
    settings = _read_settings(config) if _is_there(config) else Settings()
    stop_limit_s = settings.drain.stop_limit_s
    return msgspec.structs.replace(job, stop_limit_s=stop_limit_s), settings


def _is_there(path: Path) -> bool:
    """False also of what lies behind a door that is closed to us."""
    return os.access(path, os.F_OK)


def _given(flag: Path | None, variable: str, former: Path | None) -> Path | None:
    """A flag, else None for the environment to say, else what was said before."""
    return flag or (None if os.environ.get(variable) else former)


def _read_settings(path: Path) -> Settings:
    """The settings without their keys, which only the service itself can find.

    Raises ConfigError.
    """
    document = read(path)
    problems: list[Problem] = []
    settings = to_settings(dict(document.table), problems)
    if settings is not None:
        problems += find_problems(settings)
    if settings is None or problems:
        raise document.error(problems)
    return settings


def _check_writable(chosen: Manager) -> None:
    """Before anything is begun that could not be ended. Raises Failure."""
    if _is_there(chosen.directory) and not os.access(chosen.directory, os.W_OK):
        raise Failure(f"{chosen.directory} cannot be written to; nothing was changed", REFUSED)


def _check_reach(chosen: Manager, job: Job) -> None:
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


def _numeric(addresses: Sequence[str]) -> list[str]:
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


def _check_alone(chosen: Manager, found: Places) -> None:
    """Another one in the same places holds the lock and the address. Raises Failure."""
    own = find_status(found)
    if own is not None and own.watchdog.pid != chosen.state().pid:
        raise Failure(
            f"another tidegate runs with these places, pid {own.watchdog.pid}; stop it first: "
            "tidegate stop",
            REFUSED,
        )


def _show(files: Sequence[File], supplied: Path | None) -> None:
    """Each file before it is written: whole when it is new, else what changes."""
    if supplied:
        print(f"{supplied} does the same already; nothing is written.")
    for file in files:
        match file.compare():
            case Change.NEW:
                print(f"{file.path} (new):")
                print("".join(f"  {line}\n" for line in file.text.splitlines()))
            case Change.NONE:
                print(f"{file.path} is as it should be.")
            case Change.OURS | Change.THEIRS:
                print(f"{file.path} changes:")
                print("".join(f"  {line}\n" for line in file.difference().splitlines()))


def _mention_other(chosen: Manager) -> None:
    """One of the system and one of a user are two, and may want the same address."""
    other = manager.find(Scope.USER if chosen.scope is Scope.SYSTEM else Scope.SYSTEM)
    if _is_installed(other) and other.state().active:
        print(f"{_name(other)} runs a tidegate too; two cannot share an address.")


def _prepare(chosen: Manager, job: Job) -> None:
    """The user, the directories and the config of a system service. Raises Failure."""
    try:
        if job.user and not account.exists(job.user):
            account.make_user(job.user, job.state_dir or Path("/"), _platform(chosen))
            print(f"Made the user {job.user}.")
        is_linux_system = job.scope is Scope.SYSTEM and chosen.name == "systemd"
        credentials = Path(CREDENTIALS) if is_linux_system else None
        wanted = account.directories(job, credentials)
        for path in account.make_directories(wanted):
            print(f"Made the directory {path}.")
        for advice in account.misowned(wanted):
            print(f"{advice}")
        if job.scope is Scope.SYSTEM and job.config_file and account.make_config(job.config_file):
            print(f"Made an empty config, {job.config_file}.")
    except account.AccountError as error:
        raise Failure(str(error), REFUSED) from error


def _kept_text(path: Path, kept: Path, chosen: Manager) -> str:
    what = f"{path.name} had been changed by hand; it is kept as {kept}."
    if chosen.name == "systemd":
        return (
            f"{what} To have a change stay, put it into a drop-in: `{chosen.words('edit')}` "
            "(only the keys that differ, under their [Section])."
        )
    return f"{what} launchd has no drop-ins: change the config instead, or the file again."


def _advise_keys(settings: Settings, chosen: Manager) -> None:
    """Where a key goes that is in this terminal's environment, or in none."""
    for upstream in settings.upstreams:
        if upstream.api_key_env is None:
            continue
        if advice := chosen.key_advice(upstream.api_key_env, upstream.name):
            print(
                f'The key of upstream "{upstream.name}" is expected in ${upstream.api_key_env}, '
                f"which the service does not have: {advice}."
            )


def _advise_stop_limit(settings: Settings, chosen: Manager, job: Job) -> None:
    """launchd waits for a stop no longer than it likes."""
    if chosen.name == "launchd":
        asked_s = launchd_plist.exit_timeout_s(job)
        if warning := launchd_plist.stop_limit_warning(settings.drain.stop_limit_s, asked_s):
            print(f"{warning[0].upper()}{warning[1:]}.")


def _say_what_stays(chosen: Manager, found: Places) -> None:
    """Nothing that a person made is removed by us; here is how they do it."""
    folder = found.config_file.parent
    left = [folder if folder.name == NAME else found.config_file, found.state_dir]
    there = sorted({str(path) for path in left if _is_there(path)})
    if there:
        print(f"Config and state stay. To remove them too: rm -r {shlex.join(there)}")
    user = account.SERVICE_USERS[chosen.name]
    if chosen.scope is Scope.SYSTEM and account.exists(user):
        print(
            f"The user {user} stays, for files do; then: {account.removal(user, _platform(chosen))}"
        )


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
        limit_s = _read_settings(found.config_file).drain.stop_limit_s
    except (ConfigError, OSError):
        limit_s = Drain().stop_limit_s
    return limit_s + STOP_MARGIN_S


def _tell(text: str) -> None:
    print(f"  … {printable(text)}", flush=True)


# --- telling -----------------------------------------------------------------------------------


def _state_lines(chosen: Manager, state: State) -> list[str]:
    if not state.installed:
        return [_unknown_text(chosen)]
    starts = "starts with the computer" if chosen.scope is Scope.SYSTEM else "starts by itself"
    enabled = starts if state.enabled else "does not start by itself"
    pid = f", pid {state.pid}" if state.pid else ""
    rows = [
        ("", f"{_name(chosen)}: {state.word}{pid}, {enabled}"),
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
