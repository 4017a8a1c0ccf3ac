"""What systemctl prints, read; what it complains of, in words that say what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidegate.managers import base
from tidegate.managers.base import ManagerError, exit_text
from tidegate.managers.find import find
from tidegate.managers.job import Scope
from tidegate.managers.systemd import control
from tidegate.managers.systemd.control import Systemd
from tidegate.managers.systemd.show import span_s

FAKE = """#!/bin/sh
echo "$@" >>"$0.calls"
case "$*" in
{cases}
esac
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl of this test's own on the PATH; `say` gives it answers."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "systemctl"


def say(fake: Path, cases: dict[str, str]) -> None:
    """For each shell pattern of arguments what to run."""
    lines = "\n".join(f"{pattern}) {script}\n;;" for pattern, script in cases.items())
    fake.write_text(FAKE.replace("{cases}", lines))
    fake.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45s", 45.0),
        ("1min 30s", 90.0),
        ("2h 5min", 7500.0),
        ("1month 2d", 30.44 * 86400 + 2 * 86400),
        ("1.5s", 1.5),
        ("200ms", 0.2),
        ("infinity", None),
        ("0", None),
        ("", None),
    ],
)
def test_time_spans_are_read(text: str, seconds: float | None) -> None:
    """A span as systemd writes it is a number of seconds; none is None."""
    assert span_s(text) == (None if seconds is None else pytest.approx(seconds))


SHOWN = r"""cat <<'END'
LoadState=loaded
ActiveState=activating
SubState=auto-restart
MainPID=0
UnitFileState=enabled
FragmentPath=/etc/systemd/system/tidegate.service
DropInPaths=/etc/systemd/system/tidegate.service.d/a.conf /run/b.conf
Result=exit-code
StatusText=failed: 5 workers = too many
NRestarts=3
ExecMainCode=1
ExecMainStatus=75
ExecStart={ path=/usr/bin/tidegate ; argv[]=/usr/bin/tidegate run --config /a ; b/c.toml ; ignore_errors=no ; start_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
TimeoutStopUSec=45s
WatchdogUSec=1min
MemoryMax=infinity
MemoryHigh=536870912
LimitNOFILE=65536
END"""  # noqa: E501


def test_state_is_what_systemd_has_in_force(fake: Path) -> None:
    """Every field comes from `systemctl show`, so drop-ins count."""
    say(fake, {"*show*": SHOWN})
    state = Systemd(Scope.SYSTEM).state()
    assert (state.installed, state.enabled, state.active, state.running) == (
        True,
        True,
        True,
        False,
    )
    assert state.word == "activating (auto-restart)"
    assert state.pid is None
    assert state.said == "failed: 5 workers = too many"
    assert (state.result or "").startswith("exit code 75 (try again")
    assert (state.exit_code, state.restarts) == (75, 3)
    assert [path.name for path in state.drop_ins] == ["a.conf", "b.conf"]
    assert state.command == "/usr/bin/tidegate run --config /a ; b/c.toml"
    assert state.limits == base.UnitLimits(
        stop_s=45.0, watchdog_s=60.0, memory_bytes=512 << 20, open_files=65536
    )


def test_unknown_unit_is_not_installed(fake: Path) -> None:
    """A unit that systemd has not found is not there, whatever defaults it shows."""
    say(fake, {"*show*": "echo LoadState=not-found; echo ActiveState=inactive"})
    assert not Systemd(Scope.USER).state().installed


def test_manager_of_a_user_that_is_not_there_is_said(fake: Path) -> None:
    """`su` and cron have no session; the message says what makes one."""
    say(fake, {"*": "echo 'Failed to connect to bus: No medium found' >&2; exit 1"})
    with pytest.raises(ManagerError, match="sudo loginctl enable-linger"):
        Systemd(Scope.USER).state()


def test_what_only_root_may_is_said(fake: Path) -> None:
    """polkit's refusal becomes the advice to use sudo."""
    refusal = "Failed to reload daemon: Interactive authentication required."
    say(fake, {"*daemon-reload*": f"echo '{refusal}' >&2; exit 1"})
    with pytest.raises(ManagerError, match="run it with sudo"):
        Systemd(Scope.SYSTEM).enable([])


def test_other_complaints_are_passed_on_with_the_command(fake: Path) -> None:
    """An unforeseen error is shown as systemctl said it."""
    say(fake, {"*daemon-reload*": "echo 'Failed: the moon is full' >&2; exit 1"})
    with pytest.raises(ManagerError, match="systemctl daemon-reload: Failed: the moon is full"):
        Systemd(Scope.SYSTEM).enable([])


def test_start_has_a_limit_of_its_own(fake: Path) -> None:
    """A systemctl that never returns is left, and the person is told where to look."""
    say(
        fake, {"*show*": "echo LoadState=loaded", "*reset-failed*": ":", "*start*": "exec sleep 60"}
    )
    with pytest.raises(ManagerError, match=r"not finished within 0\.5 s and goes on"):
        Systemd(Scope.SYSTEM).start(0.5, print)


def test_status_lines_are_told_as_they_change(fake: Path) -> None:
    """Each new line of the service is told once; what it said before is no news."""
    until = 'until [ "$(grep -c " show " "$0.calls")" -gt 8 ]; do sleep 0.05; done'
    show = (
        'n=$(grep -c " show " "$0.calls"); echo LoadState=loaded; echo StatusText=line $((n / 3))'
    )
    say(fake, {"*show*": show, "*reset-failed*": ":", "*stop*": until})
    told: list[str] = []
    Systemd(Scope.SYSTEM).stop(30, told.append)
    assert told[:2] == ["line 1", "line 2"]
    assert len(told) == len(set(told))


def test_computer_without_a_manager_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where systemd is not the init, the verb for such computers is named."""
    monkeypatch.setattr(control, "_BOOTED", tmp_path / "nothing")
    with pytest.raises(ManagerError, match="use `tidegate start`"):
        find(platform="linux")


@pytest.mark.parametrize(
    ("uid", "asked", "scope"),
    [
        (0, None, Scope.SYSTEM),
        (1000, None, Scope.USER),
        (0, Scope.USER, Scope.USER),
        (1000, Scope.SYSTEM, Scope.SYSTEM),
    ],
)
def test_root_means_the_system_and_others_themselves(
    uid: int, asked: Scope | None, scope: Scope
) -> None:
    """Without a wish root gets the system's manager, anybody else their own."""
    found = find(asked, platform="darwin", environ={"HOME": "/Users/ann"}, uid=uid)
    assert (found.name, found.scope) == ("launchd", scope)
    folder = (
        "/Library/LaunchDaemons" if scope is Scope.SYSTEM else "/Users/ann/Library/LaunchAgents"
    )
    assert str(found.directory) == folder


def test_exit_codes_say_what_they_mean() -> None:
    """Known codes are explained; others are shown as they are."""
    assert exit_text(78) == "exit code 78 (bad configuration)"
    assert exit_text(203) == "exit code 203 (the program cannot be executed)"
    assert exit_text(3) == "exit code 3"
