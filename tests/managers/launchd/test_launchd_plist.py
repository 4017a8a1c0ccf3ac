"""The property list: what launchd can read, and what the watchdog relies on."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any

import pytest

from fakes.launchd_keys import complaints
from tidegate.managers.job import LABEL, Job, Scope
from tidegate.managers.launchd.plist import exit_timeout_s, plist, shipped, stop_limit_warning
from tidegate.managers.sockets import BadAddress

ROOT = Path(__file__).resolve().parents[3]


def job(scope: Scope = Scope.SYSTEM, **values: Any) -> Job:
    """One with everything that a job may have, unless it is said otherwise."""
    everything: dict[str, Any] = {
        "program": ("/opt/tide gate/bin/python3", "-m", "tidegate"),
        "config_file": Path("/Library/Application Support/<tide> & gate/config.toml"),
        "state_dir": Path("/Library/Tide/état"),
        "runtime_dir": Path("/Library/Tide/run"),
        "log_file": Path("/Library/Logs/tidegate/tidegate.log"),
        "user": "_tidegate",
    }
    return Job(scope=scope, **(everything | values))


def read(job: Job, *sockets: str) -> dict[str, Any]:
    """What launchd reads."""
    found: dict[str, Any] = plistlib.loads(plist(job, sockets))
    return found


BARE = {"config_file": None, "state_dir": None, "runtime_dir": None, "log_file": None, "user": None}
SOCKETS = ("127.0.0.1:8433", "[::1]:8433", "0.0.0.0:80", "localhost:1", "unix:/var/run/tg.sock")


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("values", [{}, BARE, {"stop_limit_s": 0.0}, {"stop_limit_s": 3600.5}])
@pytest.mark.parametrize("sockets", [(), SOCKETS[:1], SOCKETS])
def test_launchd_knows_every_key_and_type(
    scope: Scope, values: dict[str, Any], sockets: tuple[str, ...]
) -> None:
    """launchd ignores a key of the wrong type in silence; here it is an error, nested ones too."""
    assert complaints(read(job(scope, **values), *sockets)) == []


@pytest.mark.parametrize("name", shipped())
def test_shipped_plists_are_what_is_rendered(name: str) -> None:
    """`python -m tidegate.managers.launchd.plist launchd` writes them anew."""
    assert (ROOT / "launchd" / name).read_bytes() == shipped()[name]
    assert complaints(plistlib.loads(shipped()[name])) == []


def test_nothing_else_is_shipped() -> None:
    """A daemon and an agent."""
    assert {path.name for path in (ROOT / "launchd").iterdir()} == set(shipped())
    assert sorted(shipped()) == [f"{LABEL}-agent.plist", f"{LABEL}.plist"]


@pytest.mark.parametrize("scope", Scope)
def test_it_restarts_after_failures_only_and_keeps_to_itself(scope: Scope) -> None:
    """A boolean KeepAlive would restart what was stopped as asked, every ten seconds."""
    found = read(job(scope))
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["RunAtLoad"] is True
    assert found["ThrottleInterval"] == 10
    assert found["ProcessType"] == "Interactive"
    assert found["Umask"] == 0o077
    assert found["HardResourceLimits"] == {"Core": 0}
    assert found["StandardErrorPath"] == "/Library/Logs/tidegate/launchd.err"
    assert found["ProgramArguments"][-1] == "--park"
    assert found["ProgramArguments"][:4] == [*job().program, "run"]
    assert str(job().config_file) in found["ProgramArguments"]


def test_only_a_daemon_has_a_user() -> None:
    """An agent runs as the user who logged in, and launchd refuses it another name."""
    assert read(job())["UserName"] == read(job())["GroupName"] == "_tidegate"
    assert {"UserName", "GroupName"}.isdisjoint(read(job(Scope.USER)))


@pytest.mark.parametrize("scope", Scope)
def test_no_secret_and_no_environment_of_the_installer_is_in_it(
    scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody may read a property list."""
    monkeypatch.setenv("BOX_KEY", "sk-secret")
    assert list(read(job(scope))["EnvironmentVariables"]) == ["TIDEGATE_EXIT_TIMEOUT_S"]
    assert b"sk-secret" not in plist(job(scope))


@pytest.mark.parametrize(
    ("stop_limit_s", "timeout_s"), [(0, 15), (30, 45), (30.2, 46), (45, 60), (55, 60), (3600, 60)]
)
def test_exit_timeout_outlasts_a_drain_and_is_at_most_a_minute(
    stop_limit_s: float, timeout_s: int
) -> None:
    """The job is told the same number, in what is loaded with it."""
    found = read(job(stop_limit_s=stop_limit_s))
    assert found["ExitTimeOut"] == timeout_s == exit_timeout_s(job(stop_limit_s=stop_limit_s))
    assert found["EnvironmentVariables"] == {"TIDEGATE_EXIT_TIMEOUT_S": str(timeout_s)}


@pytest.mark.parametrize(("stop_limit_s", "is_cut"), [(0, False), (55, False), (55.5, True)])
def test_drain_that_does_not_fit_is_told(stop_limit_s: float, is_cut: bool) -> None:
    """With both numbers, and what a stop really gives."""
    warning = stop_limit_warning(stop_limit_s, exit_timeout_s(job(stop_limit_s=stop_limit_s)))
    assert (warning is not None) == is_cut
    if warning is not None:
        assert "55.5" in warning
        assert "after 60 s" in warning
        assert warning.endswith("a stop gives answers in flight 55 s")


def test_sockets_are_described_as_launchd_wants_them() -> None:
    """One entry an address: host and service apart, or a path that owner and group may write."""
    assert read(job(), *SOCKETS)["Sockets"]["Listeners"] == [
        {"SockNodeName": "127.0.0.1", "SockServiceName": "8433", "SockFamily": "IPv4"},
        {"SockNodeName": "::1", "SockServiceName": "8433", "SockFamily": "IPv6"},
        {"SockNodeName": "0.0.0.0", "SockServiceName": "80", "SockFamily": "IPv4"},
        {"SockNodeName": "127.0.0.1", "SockServiceName": "1", "SockFamily": "IPv4"},
        {"SockPathName": "/var/run/tg.sock", "SockPathMode": 0o660},
    ]
    assert "Sockets" not in read(job())


def test_bad_address_is_refused() -> None:
    """launchd would open nothing, and say so in a log that is rarely read."""
    with pytest.raises(BadAddress):
        plist(job(), ["example.com:80"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"Labell": "x"}, "Labell: unknown"),
        ({"Label": None}, "Label: NoneType"),
        ({"RunAtLoad": 1}, "RunAtLoad: int"),
        ({"ExitTimeOut": True}, "ExitTimeOut: bool"),
        ({"ThrottleInterval": 1.5}, "ThrottleInterval: float"),
        ({"ProgramArguments": ["a", 1]}, "ProgramArguments.1: int"),
        ({"KeepAlive": {"SuccesfulExit": False}}, "KeepAlive.SuccesfulExit: unknown"),
        ({"KeepAlive": {"SuccessfulExit": 0}}, "KeepAlive.SuccessfulExit: int"),
        ({"SoftResourceLimits": {"Core": "0"}}, "SoftResourceLimits.Core: str"),
        ({"EnvironmentVariables": {"A": 1}}, "EnvironmentVariables.A: int"),
        ({"Sockets": {"L": [{"SockNodName": "::"}]}}, "Sockets.L.0.SockNodName: unknown"),
        ({"Sockets": {"L": [{"SockFamily": "4"}]}}, "Sockets.L.0.SockFamily: '4' is none of"),
        ({"Sockets": {"L": {"SockPathMode": "660"}}}, "Sockets.L.SockPathMode: str"),
        ({"ProcessType": "Fast"}, "ProcessType: 'Fast' is none of"),
    ],
)
def test_table_of_keys_finds_what_launchd_would_not_understand(
    change: dict[str, Any], complaint: str
) -> None:
    """Each with the way to it."""
    assert any(found.startswith(complaint) for found in complaints(read(job()) | change))
