"""Checks the config, and the files and directories that tidegate reads and writes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from tidegate.config import ConfigError, LoadedConfig
from tidegate.config.check import find_place_warnings
from tidegate.config.mistake import Mistake
from tidegate.config.places import Places
from tidegate.core.problems import Problem
from tidegate.core.settings import MIB, Settings
from tidegate.doctor.findings import finding
from tidegate.managers.systemd.unit import CREDENTIALS

FULL_BYTES = 64 * MIB  # less than the state of a few days: bundles, decisions, a log's rotation
LOW_BYTES = 512 * MIB
LOW_INODES = 1000
LOG_BYTES = 200 * MIB  # tidegate's own logs stay far below it
JOURNAL_BYTES = 4096 * MIB  # journald's own cap at most
_JOURNALS = (Path("/var/log/journal"), Path("/run/log/journal"))


def check_config(loaded: LoadedConfig | ConfigError, *, serves: bool) -> Iterator[Problem]:
    """Report what `tidegate check` says, a finding for each line of it.

    While a tidegate `serves`, keys that are missing here are those of its own environment.
    """
    if isinstance(loaded, ConfigError):
        for line, mistake in loaded.lines:
            yield _mistake(line, mistake, serves=serves)
        return
    for n, warning in enumerate(loaded.warnings):
        yield finding(
            "config-warning", warning, "change it in the config, or leave it if it is meant", str(n)
        )


def check_journal_place(settings: Settings | None, places: Places) -> Iterator[Problem]:
    """Check that the runtime directory is in memory, where the journal is to be there."""
    for warning in find_place_warnings(settings, places.runtime_dir) if settings else ():
        fix = "start tidegate with a runtime directory in memory, or change the config"
        yield finding("config-warning", warning, fix, "journal.place")


def _mistake(line: str, mistake: Mistake | None, *, serves: bool) -> Problem:
    command = f"run: {mistake.command}" if mistake and mistake.command else None
    if mistake and mistake.key == "auth.tokens_file":
        return finding("tokens-unusable", line, command or "restore or remove that file")
    if mistake is None or mistake.secret_of is None:
        fix = "correct it in the config; `tidegate check` says when it is good"
        return finding("config-bad", line, fix)
    upstream = str(mistake.secret_of)
    if serves:
        return finding(
            "key-not-here",
            f"this terminal does not have a key that the running tidegate has: {line}",
            "nothing; to have that upstream asked as well, give doctor the same environment",
            upstream,
        )
    fix = command or "put the key where the config says, readable by its user alone"
    return finding("key-unusable", line, fix, upstream)


def check_permissions(places: Places, credentials: Path = Path(CREDENTIALS)) -> Iterator[Problem]:
    """Check who may use the config file, the directories and systemd's credentials.

    Tokens, and keys that the config names by their path, are the config's affair.
    """
    yield from _check_credentials(credentials)
    try:
        mode = places.config_file.stat().st_mode
        if mode & 0o022:
            yield finding(
                "config-writable",
                f"others can write {places.config_file}, and so decide where prompts go",
                f"run: chmod go-w '{places.config_file}'",
            )
    except OSError:
        pass  # that it is missing or cannot be read is the config's affair
    for name, directory in (("state", places.state_dir), ("runtime", places.runtime_dir)):
        yield from _check_directory(name, directory)


def _check_credentials(directory: Path) -> Iterator[Problem]:
    """Check that only root can read them: systemd reads them as root, whatever their mode is."""
    try:
        exposed = [path for path in directory.iterdir() if path.stat().st_mode & 0o077]
        is_closed = not directory.stat().st_mode & 0o077
    except OSError:
        return
    if exposed and not is_closed:
        yield finding(
            "credential-exposed",
            f"others can read keys: {', '.join(map(str, exposed[:5]))}",
            f"run: sudo chmod -R go= '{directory}'",
        )


def _check_directory(name: str, directory: Path) -> Iterator[Problem]:
    try:
        found = directory.stat()
    except FileNotFoundError:
        return  # it is made at the first start
    except OSError as error:
        yield _unusable(name, directory, error.strerror or str(error))
        return
    if not stat.S_ISDIR(found.st_mode):
        yield _unusable(name, directory, "it is not a directory")
    elif found.st_mode & 0o022:
        yield finding(
            "directory-exposed",
            f"others can write into the {name} directory {directory}: tidegate refuses it",
            f"run: chmod 700 '{directory}'",
            name,
        )
    elif not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        yield _unusable(name, directory, "it may not be written by this user")


def check_stores(places: Places) -> Iterator[Problem]:
    """Check the files of the journal and the history, wherever they may be."""
    for name, parent, file in (
        ("journal", places.runtime_dir, "runs.db"),
        ("journal", places.state_dir, "runs.db"),
        ("history", places.state_dir, "history.db"),
    ):
        yield from _check_store(name, parent / name, file)


def _check_store(name: str, directory: Path, file: str) -> Iterator[Problem]:
    for path, is_kind, kind, mode in (
        (directory, stat.S_ISDIR, "a directory", os.R_OK | os.W_OK | os.X_OK),
        (directory / file, stat.S_ISREG, "a file", os.R_OK | os.W_OK),
    ):
        try:
            found = path.lstat()
        except (FileNotFoundError, PermissionError):
            return  # it is made when there is something to keep; what is above it is told already
        except OSError as error:
            why = error.strerror or str(error)
        else:
            why = "" if is_kind(found.st_mode) else f"it is not {kind}"
            if not why and not os.access(path, mode):
                why = "it may not be written by this user"
            elif not why and found.st_mode & 0o077:
                yield finding(
                    "store-exposed",
                    f"others can read {path}, where answers or who asked for them are kept",
                    f"run: chmod go= '{path}'",
                    name,
                )
        if why:
            yield finding(
                "store-unusable",
                f"the {name} cannot be kept in {path}: {why}",
                f"run doctor as the user that tidegate runs as; if it stays, move '{path}' away: "
                "it is made anew",
                name,
            )
            return


def _unusable(name: str, directory: Path, why: str) -> Problem:
    return finding(
        "directory-unusable",
        f"the {name} directory {directory} cannot be used: {why}",
        f"run doctor as the user that tidegate runs as, or choose another with --{name}-dir",
        name,
    )


def check_disk(
    name: str, directory: Path, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
) -> Iterator[Problem]:
    """Check the space and the inodes of the file system where `directory` is, or will be."""
    # By os.path, for pathlib raises where a parent may not be looked into.
    while not os.path.exists(directory) and directory != directory.parent:  # noqa: PTH110
        directory = directory.parent
    try:
        found = statvfs(directory)
    except OSError:
        return
    free_bytes = found.f_bavail * found.f_frsize
    fix = f"make room on the file system of {directory}: df -h '{directory}'"
    if free_bytes < FULL_BYTES:
        cause = f"only {free_bytes // MIB} MiB are free for the {name} directory {directory}"
        yield finding("disk-exhausted", cause, fix, name)
    elif free_bytes < LOW_BYTES:
        cause = f"{free_bytes // MIB} MiB are left for the {name} directory {directory}"
        yield finding("disk-low", cause, fix, name)
    if found.f_files and found.f_favail < LOW_INODES:
        yield finding(
            "inodes-low",
            f"only {found.f_favail} more files can be made in the {name} directory {directory}",
            f"remove small files there: df -i '{directory}'",
            name,
        )


def check_logs(state_dir: Path, journals: tuple[Path, ...] = _JOURNALS) -> Iterator[Problem]:
    """Check how large tidegate's logs and the journal have become."""
    ours = _size(state_dir, "*.log*")
    if ours > LOG_BYTES:
        yield finding(
            "logs-large",
            f"the logs in {state_dir} hold {ours // MIB} MiB",
            "tidegate keeps its own small; remove what a redirection or another program left there",
        )
    theirs = sum(_size(journal, "*/*.journal") for journal in journals)
    if theirs > JOURNAL_BYTES:
        yield finding(
            "journal-large",
            f"the journal holds {theirs // MIB} MiB",
            "run: sudo journalctl --vacuum-size=1G",
        )


def _size(directory: Path, pattern: str) -> int:
    total = 0
    try:
        for path in directory.glob(pattern):
            total += path.stat().st_size
    except OSError:
        return total
    return total
