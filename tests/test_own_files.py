"""A link that was put where tidegate writes is refused, and what it leads to is as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate.logs import file
from tidegate.machine.private_file import check_own_directory, open_own
from tidegate.watchdog import detach
from tidegate.watchdog.guard import bundle, decision_log
from tidegate.watchdog.pid_file import PidFile

TEXT = "not to be touched\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """What a link leads to."""
    path = tmp_path / "victim"
    path.write_text(TEXT)
    return path


def hold(place: Path) -> None:
    """Hold the pid file there."""
    PidFile(place).hold()


def append(place: Path) -> None:
    """Append a decision."""
    place.rename(place.with_name(decision_log.FILE_NAME))
    decision_log.DecisionLog(place.parent)._append(b"{}\n")


def write(place: Path) -> None:
    """Open it as ours."""
    os.close(open_own(place, os.O_WRONLY | os.O_CREAT))


@pytest.mark.parametrize("act", [hold, append, write])
@pytest.mark.parametrize("dangles", [False, True])
def test_a_link_is_refused(
    tmp_path: Path, victim: Path, act: Callable[[Path], None], dangles: bool
) -> None:
    """The error says what to do; neither is the target changed, nor one made that was not there."""
    place = tmp_path / "place"
    target = tmp_path / "nowhere" if dangles else victim
    place.symlink_to(target)
    with pytest.raises(OSError, match="is a symbolic link; remove it"):
        act(place)
    assert victim.read_text() == TEXT
    assert not (tmp_path / "nowhere").exists()


def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path: Path) -> None:
    """It could be waited for without end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"not a regular file|No such device"):
        open_own(tmp_path / "pipe", os.O_WRONLY)
    with pytest.raises(OSError, match="not a regular file"):
        open_own(tmp_path / "pipe", os.O_RDONLY)


def test_a_directory_of_bundles_that_is_a_link(tmp_path: Path) -> None:
    """Nothing is written there, and no old one removed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    kept = [elsewhere / f"2026010{n}T000000Z-a.json" for n in range(9)]
    for each in kept:
        each.write_text("{}")
    (tmp_path / bundle.DIRECTORY).symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"[Tt]oo many levels|Not a directory"):
        bundle.write(tmp_path, {"a": 1}, "kind", "reason", 1.0)
    assert sorted(elsewhere.iterdir()) == kept
    with pytest.raises(OSError, match="not a directory"):
        check_own_directory(kept[0])


def test_decisions_behind_a_link_are_not_shown(tmp_path: Path, victim: Path) -> None:
    """A bundle has what we wrote, and nothing of another file."""
    victim.write_text('{"secret":1}\n')
    (tmp_path / decision_log.FILE_NAME).symlink_to(victim)
    assert decision_log.tail(tmp_path, 1000) == []


def test_a_pid_file_that_is_a_link_names_no_process(tmp_path: Path, victim: Path) -> None:
    """So no process is told to stop for it."""
    (tmp_path / "pid").symlink_to(victim)
    with pytest.raises(OSError, match="remove it"):
        detach.holder(tmp_path / "pid")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_a_log_behind_a_link_of_another_user(tmp_path: Path, victim: Path) -> None:
    """Our own keeps the log on another disk; that of another user may lead anywhere."""
    link = tmp_path / "log"
    link.symlink_to(victim)
    file.refuse_strange_link(link)
    os.lchown(link, 12345, 12345)
    with pytest.raises(OSError, match="link of another user"):
        file.LogFile(link, rotates=False)
    assert victim.read_text() == TEXT
