"""The user that a system service runs as, and the directories that have to be there for it.

systemd makes what lies in its own places by itself; the rest is made here. Everything that exists
already is left as it is. The user has no password, no shell and no home of its own, and stays when
the service goes, for its files do.
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from tidegate.managers.commands import CallError, environment, insist
from tidegate.managers.job import NAME, Job, Scope
from tidegate.managers.launchd.plist import SERVICE_USER

SERVICE_USERS = {"systemd": NAME, "launchd": SERVICE_USER}  # by the manager's name
KNOWN_LIMIT_S = 10.0
MAC_IDS = range(300, 400)  # of services; Apple's own lie below, people's above 500
FIRST_CONFIG = """\
# The configuration of tidegate. Empty, it looks for LLM servers on this computer.
# Every key and its default: docs/config.md. `tidegate check` says whether all is well.
"""


class AccountError(Exception):
    """The user or a directory cannot be made. The text says why."""


class Directory(Struct, frozen=True):
    """A directory that has to be there before the service starts."""

    path: Path
    mode: int
    owner: str | None = None  # None: the user who installs


def exists(user: str) -> bool:
    """Tell whether there is such a user."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def commands(user: str, home: Path, platform: str, taken: Iterable[int] = ()) -> list[list[str]]:
    """Return the commands that make the user; `taken` are the ids in use on a Mac."""
    if platform != "darwin":
        places = ["--no-create-home", "--home-dir", str(home), "--shell", "/usr/sbin/nologin"]
        return [["useradd", "--system", "--user-group", *places, user]]
    free = sorted(set(MAC_IDS) - set(taken))
    if not free:
        raise AccountError(f"no id between {MAC_IDS[0]} and {MAC_IDS[-1]} is free for {user}")
    number = str(free[0])
    group = {"": "", "PrimaryGroupID": number, "Password": "*"}
    person = {
        "": "",
        "UniqueID": number,
        "PrimaryGroupID": number,
        "UserShell": "/usr/bin/false",
        "NFSHomeDirectory": "/var/empty",
        "RealName": "tidegate",
        "Password": "*",
        "IsHidden": "1",
    }
    return [
        ["dscl", ".", "-create", record, *([key, value] if key else [])]
        for record, keys in ((f"/Groups/{user}", group), (f"/Users/{user}", person))
        for key, value in keys.items()
    ]


def removal(user: str, platform: str) -> str:
    """Return the command that removes the user, for people to type."""
    if platform == "darwin":
        return f"dscl . -delete /Users/{user}; dscl . -delete /Groups/{user}"
    return f"userdel {user}"


def make_user(user: str, home: Path, platform: str = sys.platform) -> None:
    """Make the user that the service runs as. Raises AccountError."""
    try:
        env = environment()
        taken = _mac_ids(env) if platform == "darwin" else []
        for words in commands(user, home, platform, taken):
            insist(words, env)
        _wait_known(user)
    except CallError as error:
        raise AccountError(f"cannot make the user {user}: {error}") from error


def _wait_known(user: str) -> None:
    """Wait until the user is known: a Mac's directory service takes a moment."""
    deadline_s = time.monotonic() + KNOWN_LIMIT_S
    while not exists(user):
        if time.monotonic() >= deadline_s:
            raise AccountError(f"the user {user} was made, but the system does not know it")
        time.sleep(0.1)


def _mac_ids(env: dict[str, str]) -> list[int]:
    """Return the ids of all users and groups: the last word of each line of both lists."""
    lists = (("/Users", "UniqueID"), ("/Groups", "PrimaryGroupID"))
    said = [insist(["dscl", ".", "-list", path, key], env) for path, key in lists]
    words = [line.split()[-1] for text in said for line in text.splitlines() if line.strip()]
    return [int(word) for word in words if word.lstrip("-").isdigit()]


def directories(job: Job, credentials: Path | None) -> list[Directory]:
    """List the directories of a system service; a user's own are made by `tidegate run`."""
    if job.scope is Scope.USER:
        return [Directory(job.log_file.parent, 0o755)] if job.log_file else []
    wanted = []
    if job.config_file:
        wanted.append(Directory(job.config_file.parent, 0o755))
    if credentials:
        wanted.append(Directory(credentials, 0o700))
    for path, mode in (
        (job.state_dir, 0o700),
        (job.runtime_dir, 0o750),
        (job.log_file and job.log_file.parent, 0o755),
    ):
        if path:
            wanted.append(Directory(path, mode, job.user))
    return wanted


def make_directories(wanted: Sequence[Directory]) -> list[Path]:
    """Make the directories that are missing, and return them. Raises AccountError."""
    made = []
    for each in wanted:
        if each.path.is_dir():
            continue
        try:
            each.path.mkdir(parents=True)
            each.path.chmod(each.mode)
            if each.owner:
                found = pwd.getpwnam(each.owner)
                os.chown(each.path, found.pw_uid, found.pw_gid)
        except (OSError, KeyError) as error:
            raise AccountError(f"cannot make the directory {each.path}: {error}") from error
        made.append(each.path)
    return made


def misowned(wanted: Sequence[Directory]) -> list[str]:
    """Say which directories do not belong to the service's user, each with the fix."""
    found = []
    for each in wanted:
        try:
            owner = pwd.getpwnam(each.owner).pw_uid if each.owner else None
            actual = each.path.stat().st_uid
        except (OSError, KeyError):
            continue
        if owner is not None and actual != owner:
            found.append(f"{each.path} does not belong to {each.owner}; run: {_chown(each)}")
    return found


def _chown(each: Directory) -> str:
    return f"chown -R {each.owner}: {shlex.quote(str(each.path))}"


def make_config(path: Path) -> bool:
    """Write an empty config for all to read, unless there is one. Raises AccountError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise AccountError(f"{path}: {error.strerror}") from error
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, 0o644)
        file.write(FIRST_CONFIG)
    return True
