"""Which command line a service is given, and which programs a service can run."""

from __future__ import annotations

import pwd
import sys
import tempfile
from pathlib import Path

import pytest

from tidegate.managers import placing
from tidegate.managers.job import Job, Scope

PROGRAM = ("/usr/bin/tidegate",)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home that this user has for the password file and the environment alike."""
    home = Path("/home/ann")
    monkeypatch.setattr(placing, "service_environ", lambda _environ, _uid: {"HOME": str(home)})
    return home


def test_home_that_is_no_place_for_sockets_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a long home every place is named, once the runtime directory is a short one."""
    long = "/home/" + "x" * 120
    monkeypatch.setattr(placing, "service_environ", lambda _environ, _uid: {"HOME": long})
    environ = {"HOME": long}
    job = placing.job(
        Scope.USER, PROGRAM, runtime_dir=Path("/r"), environ=environ, platform="linux", uid=1000
    )
    assert job.command[-4:] == [
        *("--state-dir", f"{long}/.local/state/tidegate", "--runtime-dir", "/r")
    ]


def test_system_service_has_every_place_named() -> None:
    """A service of the system runs as a user of its own, in the system's places."""
    job = placing.job(Scope.SYSTEM, PROGRAM, environ={}, platform="linux", uid=0)
    assert job.user == "tidegate"
    assert job.command == [
        *("/usr/bin/tidegate", "run", "--config", "/etc/tidegate/config.toml"),
        *("--state-dir", "/var/lib/tidegate", "--runtime-dir", "/run/tidegate"),
    ]


def test_system_service_of_a_mac_logs_to_a_file() -> None:
    """launchd keeps no journal."""
    job = placing.job(Scope.SYSTEM, PROGRAM, environ={}, platform="darwin", uid=0)
    assert job.user == "_tidegate"
    assert job.command[-2:] == ["--log-file", "/Library/Logs/tidegate/tidegate.log"]


def test_users_service_in_the_usual_places_names_none(home: Path) -> None:
    """Where the service would look by itself, nothing is said."""
    job = placing.job(Scope.USER, PROGRAM, environ={"HOME": str(home)}, platform="linux", uid=1000)
    assert job.command == ["/usr/bin/tidegate", "run"]


def test_what_the_terminal_moves_is_named(home: Path) -> None:
    """A service does not see XDG_STATE_HOME of the terminal, so its effect is written down."""
    environ = {"HOME": str(home), "XDG_STATE_HOME": "/data", "TIDEGATE_CONFIG": "/c.toml"}
    job = placing.job(Scope.USER, PROGRAM, environ=environ, platform="linux", uid=1000)
    assert job.config_file == Path("/c.toml")
    assert job.state_dir == Path("/data/tidegate")


def test_relative_flags_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service starts in another directory than this one."""
    monkeypatch.chdir(tmp_path)
    for scope in Scope:
        job = placing.job(scope, PROGRAM, config=Path("c.toml"), state_dir=Path("s"))
        assert job.config_file == tmp_path / "c.toml"
        assert job.state_dir == tmp_path / "s"


def test_places_are_read_from_the_command_line() -> None:
    """A manager shows words joined by spaces; paths may have some of their own."""
    command = "/usr/bin/tidegate run --config /a b/c.toml --state-dir /s t --runtime-dir /r --park"
    places = placing.places_of(command, Scope.SYSTEM, "linux")
    assert str(places.config_file) == "/a b/c.toml"
    assert str(places.state_dir) == "/s t"
    assert str(places.runtime_dir) == "/r"


def test_program_is_the_command_or_the_interpreter(tmp_path: Path) -> None:
    """A `tidegate` that can be executed is named as it was called, link or not."""
    script, link = tmp_path / "real", tmp_path / "tidegate"
    script.write_text("")
    script.chmod(0o755)
    link.symlink_to(script)
    assert placing.program(str(link)) == (str(link),)
    assert placing.program("/x/tidegate/__main__.py") == (sys.executable, "-P", "-m", "tidegate")


def job(program: Path) -> Job:
    return Job(scope=Scope.SYSTEM, program=(str(program),))


@pytest.fixture
def open_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the program is judged, wherever this interpreter and the checkout lie."""
    monkeypatch.setattr(placing, "_needed", lambda job: [Path(job.program[0])])


@pytest.mark.usefixtures("open_elsewhere")
def test_program_in_a_home_is_hidden_from_a_system_service(tmp_path: Path) -> None:
    """The unit hides homes, unless a drop-in of the owner's shows them."""
    hidden = job(Path("/home/ann/.local/bin/tidegate"))
    why = placing.unreachable(hidden, [])
    assert why is not None
    assert "/home/ann/.local/bin/tidegate lies in /home" in why
    drop_in = tmp_path / "own.conf"
    drop_in.write_text("[Service]\nProtectHome = no\n")
    assert "does not see" not in (placing.unreachable(hidden, [drop_in]) or "")


@pytest.mark.usefixtures("open_elsewhere")
def test_program_behind_a_closed_door_is_no_use_to_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that only its owner may pass is named."""
    monkeypatch.setattr(placing, "_HIDDEN", ())
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o700)
    why = placing.unreachable(job(closed / "tidegate"), [])
    assert why is not None
    assert "lets only its owner through" in why


def test_door_of_the_services_own_user_is_open_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that belongs to the service's user may be closed to all others."""
    monkeypatch.setattr(placing, "_HIDDEN", ())
    monkeypatch.setattr(placing, "_needed", lambda job: [own / "sub"])
    own = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        me = pwd.getpwuid(own.stat().st_uid).pw_name
        assert placing.unreachable(Job(scope=Scope.SYSTEM, program=("x",)), []) is not None
        assert placing.unreachable(Job(scope=Scope.SYSTEM, program=("x",), user=me), []) is None
    finally:
        own.rmdir()


@pytest.mark.usefixtures("open_elsewhere")
def test_program_of_a_package_is_reachable() -> None:
    """What lies where packages lie can be run by everybody."""
    assert placing.unreachable(job(Path("/usr/bin/tidegate")), []) is None
