"""What the doctor learns of a service: asked through the managers' own readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor.bench import GOOD_JOB, GOOD_UNIT
from tidegate.doctor import services
from tidegate.managers.job import Scope

DEAF = "echo 'Failed to connect to bus: No medium found' >&2; exit 1"


def put(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Programs of this test's own, and no others, on the PATH."""
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_both_managers_of_systemd_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's shows its unit; a user's that is not there says why, with what makes one."""
    say = f"cat <<'END'\n{GOOD_UNIT}END"
    case = f'case "$1" in --user) {DEAF} ;; esac\n{say}'
    put(tmp_path, monkeypatch, systemctl=case)
    monkeypatch.setattr(services, "is_booted", lambda: True)
    system, user = services.read("linux", uid=1000)
    assert (system.scope, system.is_loaded, system.unreadable) == (Scope.SYSTEM, True, None)
    assert system.shown["OOMPolicy"] == "continue"
    assert (user.scope, user.is_loaded) == (Scope.USER, False)
    assert "enable-linger" in (user.unreadable or "")


def test_root_misses_no_manager_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root seldom has one, so its absence is not told."""
    put(tmp_path, monkeypatch, systemctl=DEAF)
    monkeypatch.setattr(services, "is_booted", lambda: True)
    assert [each.scope for each in services.read("linux", uid=0)] == [Scope.SYSTEM]


def test_without_systemd_there_is_none_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container, or another init."""
    monkeypatch.setattr(services, "is_booted", lambda: False)
    assert services.read("linux", uid=1000) == []


def test_launchd_is_asked_in_each_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of the user at large is found when no login at the screen exists."""
    say = f"cat <<'END'\n{GOOD_JOB}END"
    case = f'case "$2" in user/1000/*) {say}\n;; gui/*) exit 125 ;; *) exit 113 ;; esac'
    put(tmp_path, monkeypatch, launchctl=case, pmset="echo ' sleep 0'")
    system, user = services.read("darwin", uid=1000)
    assert (system.scope, system.is_loaded, system.unreadable) == (Scope.SYSTEM, False, None)
    assert (user.printed, user.pmset) == (GOOD_JOB, " sleep 0\n")
