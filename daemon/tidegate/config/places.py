"""Where tidegate keeps its files on this computer.

Three answers: the system's places when root runs it on a computer that has them (`/etc/tidegate`,
on a Mac `/Library/Application Support/tidegate`), the places of macOS on a Mac, and the XDG
directories everywhere else. A flag wins over the environment (`TIDEGATE_CONFIG`,
`TIDEGATE_STATE_DIR`, `TIDEGATE_RUNTIME_DIR`), which wins over these. `find` only looks;
`make_private` creates.

The runtime directory holds sockets, and the system copies a socket's path into about a hundred
bytes. That is checked here, where the message can say which setting to change, and not left to
a bind that fails with "AF_UNIX path too long".
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

# sockaddr_un holds 104 bytes on macOS and 108 on Linux, each with a closing zero.
MAX_SOCKET_PATH_BYTES = 103
STANDS_IN_NAME = "stands-in-for"  # a file that names the runtime directory which is gone
_LONGEST_SOCKET_NAME = "worker-99999.sock"

SYSTEM_CONFIG_DIR = Path("/etc/tidegate")
MAC_SYSTEM_DIR = Path("/Library/Application Support/tidegate")


class PlacesError(Exception):
    """A directory cannot be found, made or trusted. The text says which and what to do."""


class Places(Struct, frozen=True, kw_only=True):
    """Absolute paths; none of them need exist yet, except that a named config file must."""

    config_file: Path
    config_named: bool  # by a flag or the environment: then its absence is an error
    state_dir: Path  # tokens, logs, evidence: survives a restart of the computer
    runtime_dir: Path  # control.sock, tidegate.pid, the workers' sockets
    log_file: Path  # where a detached tidegate writes

    @property
    def named_config(self) -> Path | None:
        """Return the config file if a flag or the environment named it, for `config.load`."""
        return self.config_file if self.config_named else None


def find(
    *,
    config: Path | None = None,
    state_dir: Path | None = None,
    runtime_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    platform: str = sys.platform,
    uid: int | None = None,
) -> Places:
    """Find the places for these flags and this environment.

    Raises PlacesError when there is no home directory or the runtime directory's path is too
    long for a Unix socket.
    """
    uid = os.geteuid() if uid is None else uid
    usual = _usual(environ, platform, uid)
    named_config = config or _from_environment(environ, "TIDEGATE_CONFIG")
    named_state = state_dir or _from_environment(environ, "TIDEGATE_STATE_DIR")
    named_runtime = runtime_dir or _from_environment(environ, "TIDEGATE_RUNTIME_DIR")
    state = (named_state or usual.state_dir).absolute()
    fallback = fallback_dir(state)
    runtime = (named_runtime or usual.runtime_dir or fallback).absolute()
    _check_socket_room(runtime)
    return Places(
        config_file=(named_config or usual.config_file).absolute(),
        config_named=named_config is not None,
        state_dir=state,
        runtime_dir=runtime,
        log_file=usual.log_file if named_state is None else state / "tidegate.log",
    )


def fallback_dir(state_dir: Path) -> Path:
    """Return the runtime directory of a computer that has none, or where it was removed."""
    return state_dir / "run"


def serving_dir(places: Places) -> Path:
    """Return where a running tidegate has its sockets: the runtime directory, or its stand-in."""
    fallback = fallback_dir(places.state_dir)
    if (places.runtime_dir / "control.sock").exists():
        return places.runtime_dir
    try:
        named = (fallback / STANDS_IN_NAME).read_bytes()
    except OSError:
        return places.runtime_dir
    return fallback if named == os.fsencode(places.runtime_dir) else places.runtime_dir


def default_config_file() -> Path:
    """Return the config file that is read when none is named."""
    return _usual(os.environ, sys.platform, os.geteuid()).config_file


def make_private(directory: Path) -> None:
    """Create `directory` for its owner only (0700), with its parents.

    One that exists already is left as it is, unless others could write into it. Raises
    PlacesError.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise PlacesError(f"{directory}: {error.strerror}") from error
    if found.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise PlacesError(f"{directory}: belongs to another user")
    if found.st_mode & 0o022:
        raise PlacesError(f"{directory}: others can write into it; run: chmod 700 '{directory}'")


class DefaultPlaces(Struct, frozen=True, kw_only=True):
    """The default places, without flags and environment."""

    config_file: Path
    state_dir: Path
    log_file: Path
    runtime_dir: Path | None  # None: `run` in the state directory


def system_places(platform: str) -> DefaultPlaces:
    """Return the places of a service of the whole computer."""
    if platform == "darwin":
        return DefaultPlaces(
            config_file=MAC_SYSTEM_DIR / "config.toml",
            state_dir=MAC_SYSTEM_DIR / "state",
            log_file=Path("/Library/Logs/tidegate/tidegate.log"),
            runtime_dir=MAC_SYSTEM_DIR / "run",
        )
    state = Path("/var/lib/tidegate")
    return DefaultPlaces(
        config_file=SYSTEM_CONFIG_DIR / "config.toml",
        state_dir=state,
        log_file=state / "tidegate.log",
        runtime_dir=Path("/run/tidegate"),
    )


def _usual(environ: Mapping[str, str], platform: str, uid: int) -> DefaultPlaces:
    system = system_places(platform)
    if uid == 0 and system.config_file.parent.is_dir():
        return system
    home = _home(environ)
    if platform == "darwin":
        support = home / "Library" / "Application Support" / "tidegate"
        return DefaultPlaces(
            config_file=support / "config.toml",
            state_dir=support,
            log_file=home / "Library" / "Logs" / "tidegate" / "tidegate.log",
            runtime_dir=None,
        )
    config = _xdg(environ, "XDG_CONFIG_HOME") or home / ".config"
    state = (_xdg(environ, "XDG_STATE_HOME") or home / ".local" / "state") / "tidegate"
    return DefaultPlaces(
        config_file=config / "tidegate" / "config.toml",
        state_dir=state,
        log_file=state / "tidegate.log",
        runtime_dir=_xdg_runtime(environ, uid),
    )


def _xdg_runtime(environ: Mapping[str, str], uid: int) -> Path | None:
    """Return a directory that is emptied when the computer starts; None where there is none."""
    # cron and `ssh host tidegate status` often lack the variable although the directory is there.
    # One that belongs to another user came along with `su` or `sudo -E` and is not ours to use.
    for parent in (_xdg(environ, "XDG_RUNTIME_DIR"), Path(f"/run/user/{uid}")):
        if parent is not None and _belongs_to(parent, uid):
            return parent / "tidegate"
    return None


def _home(environ: Mapping[str, str]) -> Path:
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path.home()
    except RuntimeError as error:
        raise PlacesError(
            "there is no home directory: set HOME, or give --config, --state-dir and --runtime-dir"
        ) from error


def _xdg(environ: Mapping[str, str], name: str) -> Path | None:
    """Return an XDG variable's path; by the XDG rules a relative one counts as none."""
    path = _from_environment(environ, name)
    return path if path is not None and path.is_absolute() else None


def _from_environment(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(value) if (value := environ.get(name)) else None


def _belongs_to(directory: Path, uid: int) -> bool:
    try:
        return directory.stat().st_uid == uid
    except OSError:
        return False


def _check_socket_room(runtime_dir: Path) -> None:
    length = len(os.fsencode(runtime_dir / _LONGEST_SOCKET_NAME))
    if length > MAX_SOCKET_PATH_BYTES:
        raise PlacesError(
            f"{runtime_dir}: too long by {length - MAX_SOCKET_PATH_BYTES} bytes for the Unix "
            "sockets in it; choose a shorter one with --runtime-dir or TIDEGATE_RUNTIME_DIR"
        )
