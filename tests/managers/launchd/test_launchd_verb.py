"""`tidegate service` under launchd, which the stand-in of `fakes.launchd` plays."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import plistlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes import launchd as standin
from fakes.machine import wait_until
from tidegate.cli.main import main
from tidegate.managers import base
from tidegate.managers.base import ManagerError
from tidegate.managers.find import find
from tidegate.managers.job import LABEL, Scope
from tidegate.managers.launchd import control

pytestmark = pytest.mark.processes

TARGET = f"gui/{os.getuid()}/{LABEL}"


class Mac:
    """A home on a Mac, with the command in it."""

    def __init__(
        self, home: Path, launchd: standin.Running, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.home, self.launchd, self._capsys = home, launchd, capsys
        self.config = home / "config.toml"
        self.plist = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        self.config.write_text(GOOD)

    def __call__(self, verb: str, *flags: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = main(["service", verb, "--user", *self.places(), *flags])
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err

    def places(self) -> list[str]:
        return [
            *("--config", str(self.config), "--state-dir", str(self.home / "state")),
            *("--runtime-dir", str(self.home / "run")),
        ]

    def tell(self, *words: str) -> int:
        """launchctl behind the verb's back."""
        return self.launchd.launchctl(*words).returncode


@pytest.fixture
def no_screen() -> None:
    """No user is logged in at the screen."""


GOOD = 'listen = "127.0.0.1:0"\n[drain]\nstop_limit_s = 2.0\n'


@pytest.fixture
def mac(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Mac]:
    """A short home, for the sockets in it; whatever runs there ends with it."""
    home = Path(tempfile.mkdtemp(prefix="mac"))
    folder = home / "launchd"
    folder.mkdir()
    on_a_mac: Callable[..., base.Manager] = functools.partial(find, platform="darwin")
    gui = "no_screen" not in request.fixturenames
    with standin.launchd(folder, shim=standin.compiled(folder), gui=gui) as running:
        for name, value in (running.environ | {"HOME": str(home)}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("tidegate.managers.find.find", on_a_mac)
        yield Mac(home, running, capsys)
    shutil.rmtree(home)


def test_agent_is_installed_found_changed_and_removed(mac: Mac) -> None:
    """Installed it serves; installed again it goes on; changed it is another process; at last
    nothing is left of it but config and state."""
    code, out, err = mac("install")
    assert (code, err) == (0, "")
    assert f"{mac.plist} (new):" in out
    assert "Base URL  http://127.0.0.1:" in out
    pid = mac.launchd.value(TARGET, "pid")

    code, out, _ = mac("status")
    assert code == 0
    assert f"launchd of this user: running, pid {pid}" in out
    assert "killed 17 s after a stop" in out
    assert "Healthy. " in out

    code, out, _ = mac("logs", "-n", "all")
    assert code == 0
    assert "worker 1 is ready" in out

    code, out, _ = mac("install")
    assert (code, mac.launchd.value(TARGET, "pid")) == (0, pid)
    assert "is as it should be" in out
    assert "is already running" in out

    mac.config.write_text(GOOD.replace("2.0", "3.0"))
    code, out, err = mac("install")
    assert (code, err) == (0, "")
    assert "-\t<integer>17</integer>" in out
    assert "+\t<integer>18</integer>" in out
    assert mac.launchd.value(TARGET, "exit timeout") == "18"
    assert mac.launchd.value(TARGET, "pid") != pid

    code, out, err = mac("uninstall")
    assert (code, err) == (0, "")
    assert f"Removed {mac.plist}." in out
    assert "Config and state stay" in out
    assert mac.tell("print", TARGET) != 0
    assert list(mac.plist.parent.iterdir()) == []
    assert mac.config.exists()
    assert mac("status")[0] == 69


def test_stop_and_start_and_restart(mac: Mac) -> None:
    """Stopped it is not loaded, but its file stays; started and restarted it serves again."""
    assert mac("install")[0] == 0
    assert mac("stop")[:2] == (0, "Stopped, until the computer starts again.\n")
    assert mac.tell("print", TARGET) != 0
    assert mac.plist.exists()
    assert mac("status")[0] == 69
    code, out, _ = mac("start")
    assert (code, "is ready" in out) == (0, True)
    pid = mac.launchd.value(TARGET, "pid")
    assert mac("restart")[0] == 0
    assert mac.launchd.value(TARGET, "pid") not in (None, pid)


def test_bad_config_leaves_it_parked_and_says_why(mac: Mac) -> None:
    """A config that only the service can find wrong parks it: the verb fails with the reason."""
    upstream = '[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:9"\napi_key_env = "BOX_KEY"\n'
    mac.config.write_text(GOOD + upstream)
    code, out, err = mac("install")
    assert code == 78
    assert "expected in the environment, and the service's has none" in out
    assert "parked" in err
    assert "upstream[0].api_key_env" in err


def test_mistake_in_the_config_is_told_before_anything_changes(mac: Mac) -> None:
    """What this terminal can see is wrong stops the installation, and a restart."""
    assert mac("install")[0] == 0
    pid = mac.launchd.value(TARGET, "pid")
    mac.config.write_text("nonsense = 1")
    for verb in ("install", "restart"):
        code, _, err = mac(verb)
        assert code == 78
        assert "nonsense: unknown key" in err
    assert mac.launchd.value(TARGET, "pid") == pid


def test_dry_run_shows_and_changes_nothing(mac: Mac) -> None:
    """`--dry-run` prints the file and leaves everything as it is."""
    code, out, _ = mac("install", "--dry-run")
    assert code == 0
    assert f"<string>{LABEL}</string>" in out
    assert "Nothing was changed" in out
    assert not mac.plist.exists()
    assert mac.tell("print", TARGET) != 0


def test_dry_run_shows_what_is_carried_out_without_it(mac: Mac) -> None:
    """There is one plan: an installation begins with the very lines that `--dry-run` printed."""
    _, shown, _ = mac("install", "--dry-run", "--no-start")
    code, out, err = mac("install", "--no-start")
    assert (code, err) == (0, "")
    assert out.startswith(shown.removesuffix("Nothing was changed.\n"))
    assert f"{mac.home}/state (new directory)." in shown
    assert "Then it is enabled by launchd of this user." in shown


@pytest.mark.long
def test_what_is_loaded_governs_and_not_the_file(mac: Mac) -> None:
    """A job that was loaded from an older file is replaced, however alike the files look now."""
    assert mac("install")[0] == 0
    mac.config.write_text(GOOD.replace("2.0", "3.0"))
    assert mac("install", "--no-start")[0] == 0
    assert mac.launchd.value(TARGET, "exit timeout") == "17"
    mac.tell("kickstart", "-k", TARGET)
    assert mac("restart")[0] == 0
    assert mac.launchd.value(TARGET, "exit timeout") == "18"


def test_edited_plist_is_kept(mac: Mac) -> None:
    """A property list that was changed by hand is moved aside, and the owner is told."""
    assert mac("install", "--no-start")[0] == 0
    edited = mac.plist.read_text().replace("Interactive", "Background")
    mac.plist.write_text(edited)
    code, out, _ = mac("install", "--no-start")
    assert code == 0
    assert "had been changed by hand; it is kept as" in out
    (kept,) = mac.plist.parent.glob("*.bak-*")
    assert kept.read_text() == edited


def test_job_that_was_disabled_is_enabled_again(mac: Mac) -> None:
    """`launchctl disable` of an earlier day does not stand in the way."""
    mac.tell("disable", TARGET)
    assert mac("install")[0] == 0


def test_json_has_both_views(mac: Mac) -> None:
    """Programs read the manager's view and tidegate's own."""
    assert mac("install")[0] == 0
    code, out, _ = mac("status", "--json")
    seen = json.loads(out)
    assert code == 0
    assert (seen["manager"], seen["scope"]) == ("launchd", "user")
    assert seen["service"]["running"] is True
    assert seen["service"]["limits"]["stop_s"] == 17.0
    assert seen["tidegate"]["state"] == "serving"


def test_one_that_was_started_by_hand_is_in_the_way(mac: Mac) -> None:
    """Beside a `tidegate start` in the same places nothing is installed, and it is named."""
    assert main(["start", *mac.places()]) == 0
    try:
        code, _, err = mac("install")
        assert code == 1
        assert "another tidegate runs with these places, pid" in err
        assert not mac.plist.exists()
    finally:
        assert main(["stop", *mac.places()]) == 0


def test_what_launchd_runs_is_left_to_it(mac: Mac, capsys: pytest.CaptureFixture[str]) -> None:
    """`tidegate stop` steps aside for a job of launchd, and names the verb that it obeys."""
    if not (mac.launchd.folder / "launch_activate_socket.so").exists():
        pytest.skip("needs a C compiler, for launchd's own function")
    assert mac("install")[0] == 0
    capsys.readouterr()
    assert main(["stop", *mac.places()]) == 1
    said = capsys.readouterr().err
    assert said == "tidegate: this tidegate is a service of launchd; run: tidegate service stop\n"
    assert mac("status")[0] == 0


def test_what_is_not_installed_cannot_be_started(mac: Mac) -> None:
    """The verbs of a service that is not there name the one that makes it."""
    for verb in ("start", "stop", "restart"):
        code, _, err = mac(verb)
        assert code == 69
        assert "has no tidegate service; run: `tidegate service install" in err
    assert mac("uninstall")[0] == 0


def test_launchd_opens_the_addresses_when_asked_to(mac: Mac) -> None:
    """With `--socket` the property list has the addresses of `listen`, and keeps having them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mac.config.write_text(GOOD.replace(":0", f":{port}"))
    assert mac("install", "--socket", "--no-start")[0] == 0
    assert mac("install", "--no-start")[0] == 0
    (entry,) = plistlib.loads(mac.plist.read_bytes())["Sockets"]["Listeners"]
    assert (entry["SockNodeName"], entry["SockServiceName"]) == ("127.0.0.1", str(port))
    mac.config.write_text(GOOD)
    code, _, err = mac("install")
    assert code == 78
    assert "127.0.0.1:0 of `listen` has to name a port" in err


def test_own_service_is_not_made_with_sudo(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo … --user` would be root's own service, which is never meant."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1000")
    code, _, err = mac("install")
    assert code == 64
    assert "leave out the sudo" in err


def test_only_root_may_change_the_systems_service(
    mac: Mac, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anybody else is given the whole command to type, with paths that mean the same there."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.chdir(mac.home)
    assert main(["service", "install", "--system", "--config", "my config.toml"]) == 1
    said = capsys.readouterr().err
    assert "only root may change a service of the system; run:\n  sudo " in said
    assert said.endswith(f" service install --system --config '{mac.home}/my config.toml'\n")


@pytest.mark.long
@pytest.mark.usefixtures("no_screen")
def test_without_a_login_at_the_screen_it_is_the_users_at_large(mac: Mac) -> None:
    """Over ssh alone there is no gui domain; the job goes to the user's, and is found there."""
    code, _, err = mac("install")
    assert (code, err) == (0, "")
    assert mac.launchd.value(f"user/{os.getuid()}/{LABEL}", "state") == "running"
    assert mac("status")[0] == 0
    assert mac("uninstall")[0] == 0


@pytest.mark.long
def test_stop_waits_for_a_job_that_takes_its_time(mac: Mac) -> None:
    """launchctl gives up waiting after two seconds; the verb goes on until the job is gone."""
    slow = "trap 'sleep 3; exit 0' TERM; while :; do sleep 0.1; done"
    write_job(mac, ["/bin/sh", "-c", slow])
    job = control.Launchd(Scope.USER)
    job.start(20, print)
    job.stop(20, print)
    assert mac.tell("print", TARGET) != 0


@pytest.mark.long
def test_job_that_cannot_be_stopped_in_time_is_said(mac: Mac) -> None:
    """What outlasts the limit is an error with the command that looks at it."""
    write_job(mac, ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    job = control.Launchd(Scope.USER)
    job.start(20, print)
    with pytest.raises(ManagerError, match=f"still there after 1 s, see: launchctl print {TARGET}"):
        job.stop(1, print)
    mac.tell("kickstart", "-k", TARGET)


def test_plist_that_launchd_refuses_is_said_with_where_to_look(mac: Mac) -> None:
    """A property list that is none is refused without a reason; the verb says where that is."""
    write_job(mac, [])
    with pytest.raises(ManagerError, match="launchctl bootstrap: "):
        control.Launchd(Scope.USER).start(20, print)


@pytest.mark.long
def test_program_that_ends_at_once_is_said_with_its_exit_code(mac: Mac) -> None:
    """A job that does not stay is no success."""
    write_job(mac, ["/bin/sh", "-c", "exit 75"])
    job = control.Launchd(Scope.USER)
    with contextlib.suppress(ManagerError):  # it may be seen running for a moment
        job.start(3, print)
    wait_until(lambda: job.state().exit_code == 75)
    assert "try again" in (job.state().result or "")


def write_job(mac: Mac, arguments: list[str]) -> None:
    """A property list of ours, with another program in it."""
    mac.plist.parent.mkdir(parents=True)
    keys = {"Label": LABEL, "ProgramArguments": arguments, "RunAtLoad": True, "ExitTimeOut": 6}
    mac.plist.write_bytes(plistlib.dumps(keys))
    mac.plist.chmod(0o644)


def test_places_stay_when_it_is_installed_again(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flags a service keeps the places that it was once given; a flag changes one."""
    for word in ("CONFIG", "STATE_DIR", "RUNTIME_DIR"):
        monkeypatch.delenv(f"TIDEGATE_{word}", raising=False)
    assert mac("install", "--no-start")[0] == 0
    first = mac.plist.read_bytes()
    assert main(["service", "install", "--user", "--no-start"]) == 0
    assert mac.plist.read_bytes() == first
    other = str(mac.home / "other")
    assert main(["service", "install", "--user", "--no-start", "--state-dir", other]) == 0
    words = plistlib.loads(mac.plist.read_bytes())["ProgramArguments"]
    assert words[words.index("--state-dir") + 1] == other
    assert words[words.index("--config") + 1] == str(mac.config)
