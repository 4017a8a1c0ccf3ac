"""What is written for systemd: for its version, and with whatever names people give their files."""

from __future__ import annotations

import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from tidegate.managers.job import Job, Scope
from tidegate.managers.systemd.unit import package_job, service_unit, socket_unit

VERSIONS = [252, 253, 254, 257]
HOSTILE = "/opt/my $HOME 100% \"x\" 'y' a\\b ${z};"
HOSTILE_PROGRAM = "my $HOME 100% ${z};"  # systemd takes no quotes and backslashes there


def service(unit: str) -> dict[str, str]:
    """The keys of [Service] that appear once."""
    parser = ConfigParser(interpolation=None, strict=False, delimiters=("=",), allow_no_value=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return dict(parser["Service"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scope", list(Scope))
def test_nothing_is_written_that_the_version_cannot_read(version: int, scope: Scope) -> None:
    """Reload by signal before 253; longer and longer delays, and pressure, from 254 on."""
    written = service(service_unit(Job(scope=scope, program=("/usr/bin/tidegate",)), version))
    assert written["Type"] == ("notify-reload" if version >= 253 else "notify")
    assert ("ExecReload" in written) == (version < 253)
    since_254 = {
        "RestartSteps": "5",
        "RestartMaxDelaySec": "60",
        "MemoryPressureWatch": "on",
        "FileDescriptorStorePreserve": "restart",
    }
    found = {key: written[key] for key in since_254 if key in written}
    assert found == (since_254 if version >= 254 else {})


@pytest.mark.parametrize(("stop_limit_s", "written"), [(30.0, "45"), (0.5, "16"), (3600.0, "3615")])
def test_it_is_not_killed_while_it_drains(stop_limit_s: float, written: str) -> None:
    """systemd's limit is above our own."""
    job = Job(scope=Scope.USER, program=("/usr/bin/tidegate",), stop_limit_s=stop_limit_s)
    assert service(service_unit(job, 252))["TimeoutStopSec"] == written


@pytest.mark.parametrize("version", VERSIONS)
def test_the_journal_outlives_a_restart(version: int) -> None:
    """systemd would empty the runtime directory of a system service; a user's is the user's own."""
    assert service(service_unit(package_job(), version))["RuntimeDirectoryPreserve"] == "restart"
    user = Job(scope=Scope.USER, program=("/usr/bin/tidegate",))
    assert not any(key.startswith("Runtime") for key in service(service_unit(user, version)))


def test_places_of_systemd_are_made_by_it_and_others_are_let_through() -> None:
    """A directory below /var/lib is a StateDirectory, one elsewhere a path that may be written."""
    job = Job(
        scope=Scope.SYSTEM,
        program=("/usr/bin/tidegate",),
        state_dir=Path("/srv/my state/100%"),
        runtime_dir=Path("/run/tide gate"),
    )
    unit = service_unit(job, 252)
    assert 'ReadWritePaths="/srv/my state/100%%"\n' in unit
    assert 'RuntimeDirectory="tide gate"\n' in unit
    assert "StateDirectory=" not in unit


def test_addresses_of_the_socket_unit_are_those_of_listen() -> None:
    """A Unix socket is its path, and a `%` is itself."""
    unit = socket_unit(package_job(), ["[::1]:8433", "unix:/run/a b/100%.sock"], 252)
    assert "ListenStream=[::1]:8433\nListenStream=/run/a b/100%%.sock\n" in unit
    assert "FileDescriptorName=http\n" in unit


@pytest.mark.parametrize("version", VERSIONS)
def test_systemd_reads_hostile_names_as_they_are(version: int, tmp_path: Path) -> None:
    """Spaces, quotes, `$`, `%`, `;` and backslashes in the paths of a job are no syntax."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (apt install systemd)")
    program = tmp_path / HOSTILE_PROGRAM / "tidegate"
    program.parent.mkdir()
    program.symlink_to(shutil.which("true") or "/bin/true")
    place = Path(HOSTILE)
    job = Job(
        scope=Scope.USER,
        program=(str(program),),
        config_file=place / "config.toml",
        state_dir=place,
        runtime_dir=place,
    )
    unit = tmp_path / "tidegate.service"
    text = service_unit(job, min(version, installed_version()))
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", "--recursive-errors=yes", str(unit)],
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), text


def installed_version() -> int:
    """Of the systemd on this machine, which reads what is written."""
    done = subprocess.run(
        ["systemd-analyze", "--version"], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[1])
