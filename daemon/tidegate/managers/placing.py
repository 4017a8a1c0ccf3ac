"""Works out the job of this computer's service: its program, its places, its user.

A service does not see the environment of the terminal it was installed from. So whatever that
environment moves is named in the command line, and nothing else is.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tidegate
from tidegate.config import places
from tidegate.config.places import Places, PlacesError
from tidegate.managers.job import NAME, Job, Scope
from tidegate.managers.launchd import plist

_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
_SEES_HOMES = re.compile(r"^\s*ProtectHome\s*=\s*(no|false|off|0)\s*$", re.MULTILINE)
_FLAGS = ("--config", "--state-dir", "--runtime-dir", "--log-file")


def program(called: str | None = None) -> tuple[str, ...]:
    """Return the words that run `tidegate` here. A symbolic link stays: an upgrade may move it."""
    path = Path(sys.argv[0] if called is None else called).absolute()
    if path.name == NAME and os.access(path, os.X_OK) and path.is_file():
        return (str(path),)
    return (sys.executable, "-P", "-m", "tidegate")


def job(
    scope: Scope,
    program: tuple[str, ...],
    *,
    config: Path | None = None,
    state_dir: Path | None = None,
    runtime_dir: Path | None = None,
    stop_limit_s: float = 30.0,
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
    uid: int | None = None,
) -> Job:
    """Make the job for these flags. Raises PlacesError."""
    uid = os.geteuid() if uid is None else uid
    if scope is Scope.SYSTEM:
        named = _named(config, state_dir, runtime_dir, environ)
        return _system_job(program, named, stop_limit_s, platform)
    here = places.find(
        config=config,
        state_dir=state_dir,
        runtime_dir=runtime_dir,
        environ=environ,
        platform=platform,
        uid=uid,
    )
    there = _usual(environ, platform, uid)
    usual_config = there.config_file if there else None
    is_named = here.config_named or (here.config_file != usual_config and here.config_file.exists())
    return Job(
        scope=scope,
        program=program,
        config_file=here.config_file if is_named else None,
        state_dir=None if there and here.state_dir == there.state_dir else here.state_dir,
        runtime_dir=None if there and here.runtime_dir == there.runtime_dir else here.runtime_dir,
        log_file=here.log_file if platform == "darwin" else None,
        stop_limit_s=stop_limit_s,
    )


def places_of(command: str, scope: Scope, platform: str = sys.platform) -> Places:
    """Return where the tidegate of this command line, as a manager shows it, keeps its files.

    Raises PlacesError.
    """
    told = named(command)
    if scope is Scope.SYSTEM:
        usual = _system_job((NAME,), (None, None, None), 0.0, platform)
        fallback = (usual.config_file, usual.state_dir, usual.runtime_dir)
    else:
        fallback = (None, None, None)
    return places.find(
        config=told.get("--config") or fallback[0],
        state_dir=told.get("--state-dir") or fallback[1],
        runtime_dir=told.get("--runtime-dir") or fallback[2],
        environ=service_environ(os.environ, os.geteuid()),
        platform=platform,
    )


def _usual(environ: Mapping[str, str], platform: str, uid: int) -> Places | None:
    """Return a user's default places; None when its home's path is too long for sockets."""
    try:
        return places.find(environ=service_environ(environ, uid), platform=platform, uid=uid)
    except PlacesError:
        return None


def named(command: str) -> dict[str, Path]:
    """Return the places that a command line names, by their flags."""
    return {flag: path for flag in _FLAGS if (path := _flag(command, flag))}


def log_file_of(command: str) -> Path | None:
    """Return the file that the tidegate of this command line logs to, if it was given one."""
    return _flag(command, "--log-file")


def service_environ(environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """Return the part of the environment that a user's service sees too."""
    try:
        home = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = environ.get("HOME", "/")
    runtime = Path(f"/run/user/{uid}")
    return {"HOME": home} | ({"XDG_RUNTIME_DIR": str(runtime)} if runtime.is_dir() else {})


def unreachable(job: Job, drop_ins: Sequence[Path]) -> str | None:
    """Say why a system service could not run this program, if so.

    The unit hides people's homes and has a /tmp of its own, unless one of the owner's drop-ins
    says otherwise; and the service's user has to be let through to the files.
    """
    sees_homes = any(_SEES_HOMES.search(_text(each)) for each in drop_ins)
    for path in _needed(job):
        hidden = next((each for each in _HIDDEN if path.is_relative_to(each)), None)
        if hidden and not sees_homes:
            return f"{path} lies in {hidden}, which a system service does not see"
        if closed := _closed(path, job.user):
            return f"{path}: {closed} lets only its owner through"
    return None


def _needed(job: Job) -> Iterable[Path]:
    """Yield the program, its interpreter, our package, and the places that were named."""
    yield from (Path(word) for word in job.program if word.startswith("/"))
    yield Path(job.program[0]).resolve()
    yield Path(sys.executable).resolve()
    yield Path(tidegate.__file__).parent
    yield from (path for path in (job.config_file, job.state_dir, job.runtime_dir) if path)


def _closed(path: Path, user: str | None) -> Path | None:
    """Return the directory above `path` that other users may not pass, nor this one own."""
    for parent in reversed(path.parents):
        try:
            found = parent.stat()
            if not found.st_mode & stat.S_IXOTH and found.st_uid != _uid(user):
                return parent
        except FileNotFoundError:
            return None  # it will be made
        except OSError:
            return parent
    return None


def _uid(user: str | None) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid if user else None
    except KeyError:
        return None


def _system_job(
    program: tuple[str, ...],
    named: tuple[Path | None, Path | None, Path | None],
    stop_limit_s: float,
    platform: str,
) -> Job:
    config, state, runtime = named
    usual = places.system_places(platform)
    on_mac = platform == "darwin"
    return Job(
        scope=Scope.SYSTEM,
        program=program,
        config_file=config or usual.config_file,
        state_dir=state or usual.state_dir,
        runtime_dir=runtime or usual.runtime_dir,
        log_file=usual.log_file if on_mac else None,
        user=plist.SERVICE_USER if on_mac else NAME,
        stop_limit_s=stop_limit_s,
    )


def _named(
    config: Path | None,
    state_dir: Path | None,
    runtime_dir: Path | None,
    environ: Mapping[str, str],
) -> tuple[Path | None, Path | None, Path | None]:
    """Return the flags' paths, or what the environment says instead; absolute."""

    def one(flag: Path | None, variable: str) -> Path | None:
        value = flag or (Path(environ[variable]) if environ.get(variable) else None)
        return value.absolute() if value else None

    return (
        one(config, "TIDEGATE_CONFIG"),
        one(state_dir, "TIDEGATE_STATE_DIR"),
        one(runtime_dir, "TIDEGATE_RUNTIME_DIR"),
    )


def _flag(command: str, flag: str) -> Path | None:
    """Return a flag's value in a command line whose words are only joined: up to the next flag."""
    found = re.search(rf" {flag} (.+?)(?= --[a-z]|$)", command)
    return Path(found[1]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
