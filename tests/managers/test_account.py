"""The user and the directories of a system service."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from tidegate.managers import account
from tidegate.managers.account import AccountError
from tidegate.managers.job import Job, Scope


def test_user_on_linux_has_no_shell_and_no_home_of_its_own() -> None:
    """One command makes it, with a group of the same name."""
    (words,) = account.commands("tidegate", Path("/var/lib/tidegate"), "linux")
    assert words[:3] == ["useradd", "--system", "--user-group"]
    assert "--no-create-home" in words
    assert words[words.index("--shell") + 1] == "/usr/sbin/nologin"
    assert words[-1] == "tidegate"


def test_user_on_a_mac_gets_a_free_number() -> None:
    """The group comes first, the number is free, and the user cannot log in."""
    made = account.commands("_tidegate", Path("/x"), "darwin", taken=[300, 301, 303])
    assert made[0] == ["dscl", ".", "-create", "/Groups/_tidegate"]
    assert ["dscl", ".", "-create", "/Users/_tidegate", "UniqueID", "302"] in made
    assert ["dscl", ".", "-create", "/Users/_tidegate", "UserShell", "/usr/bin/false"] in made
    assert ["dscl", ".", "-create", "/Users/_tidegate", "IsHidden", "1"] in made
    assert made.index(["dscl", ".", "-create", "/Users/_tidegate"]) == 3


def test_no_free_number_is_said() -> None:
    """Two users never share one."""
    with pytest.raises(AccountError, match="no id"):
        account.commands("_tidegate", Path("/x"), "darwin", taken=account.MAC_IDS)


def system_job(root: Path, user: str | None) -> Job:
    return Job(
        scope=Scope.SYSTEM,
        program=("/usr/bin/tidegate",),
        config_file=root / "etc" / "config.toml",
        state_dir=root / "state",
        runtime_dir=root / "run",
        user=user,
    )


def test_directories_are_made_once_and_left_alone(tmp_path: Path) -> None:
    """Missing ones are made with their modes; one that is there keeps its own."""
    me = pwd.getpwuid(tmp_path.stat().st_uid).pw_name
    (tmp_path / "run").mkdir(mode=0o711)
    wanted = account.directories(system_job(tmp_path, me), tmp_path / "etc" / "credentials")
    made = account.make_directories(wanted)
    assert [path.name for path in made] == ["etc", "credentials", "state"]
    modes = {path.name: path.stat().st_mode & 0o777 for path in [*made, tmp_path / "run"]}
    assert modes == {"etc": 0o755, "credentials": 0o700, "state": 0o700, "run": 0o711}
    assert account.make_directories(wanted) == []


def test_user_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A directory cannot be given to a user who is not there."""
    wanted = account.directories(system_job(tmp_path, "no-such-user-here"), None)
    with pytest.raises(AccountError, match="no-such-user-here"):
        account.make_directories(wanted)


def test_config_of_the_owner_is_never_replaced(tmp_path: Path) -> None:
    """An empty config is written for all to read, and only where there is none."""
    path = tmp_path / "config.toml"
    assert account.make_config(path)
    assert path.stat().st_mode & 0o777 == 0o644
    path.write_text("mine")
    assert not account.make_config(path)
    assert path.read_text() == "mine"
