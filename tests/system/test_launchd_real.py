"""tidegate as a job of launchd, which `fakes.launchd` plays: the real plist, the real processes."""

from __future__ import annotations

import http.client
import json
import os
import plistlib
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.launchd import Running, compiled, launchd
from fakes.machine import family, free_port, is_alive, wait_until
from fakes.upstream import ScriptedUpstream
from tidegate.core.protocol.control import ControlRequest
from tidegate.managers.job import LABEL, Job, Scope
from tidegate.managers.launchd.plist import plist
from tidegate.watchdog.control.client import ask

SCALE = 0.2  # a ThrottleInterval of 10 s takes 2
TARGET = f"system/{LABEL}"
TESTS = Path(__file__).resolve().parents[1]
DRAIN = "[drain]\nstop_limit_s = 1.0\n"


class Service:
    """A tidegate installed under launchd, with a folder of its own."""

    def __init__(self, mac: Running, toml: str, *, sockets: bool = False) -> None:
        self.mac = mac
        self.folder = mac.folder / "tg"
        self.folder.mkdir()
        self.port = free_port()
        self.config = self.folder / "config.toml"
        self.configure(toml)
        self.job = Job(
            scope=Scope.SYSTEM,
            program=(sys.executable, "-m", "tidegate"),
            config_file=self.config,
            state_dir=self.folder / "state",
            runtime_dir=self.folder / "run",
            log_file=self.folder / "log",
            user="_tidegate",
            stop_limit_s=1.0,
        )
        listeners = (f"127.0.0.1:{self.port}",) if sockets else ()
        self.keys: dict[str, Any] = plistlib.loads(plist(self.job, listeners))
        self.file = self.folder / f"{LABEL}.plist"

    def configure(self, toml: str) -> None:
        self.config.write_text(f'listen = "127.0.0.1:{self.port}"\n{toml}')

    def bootstrap(self) -> None:
        self.file.write_bytes(plistlib.dumps(self.keys))
        done = self.mac.launchctl("bootstrap", "system", str(self.file))
        assert done.returncode == 0, done.stderr + self.mac.log.read_text()

    def value(self, key: str) -> str | None:
        return self.mac.value(TARGET, key)

    @property
    def pid(self) -> int:
        return int(self.value("pid") or 0)

    def log(self) -> str:
        """What it said, and what the stand-in did."""
        files = (self.folder / "log", self.folder / "launchd.err", self.mac.log)
        return "\n".join(file.read_text() for file in files if file.exists())

    def wait(self, holds: Callable[[], object], what: str, limit_s: float = 40.0) -> None:
        try:
            wait_until(holds, limit_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-6000:]}") from error

    def wait_ready(self) -> None:
        self.wait(lambda: self.get("/readyz")[0] == 200, "it is ready")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 while there is no answer."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as conn:
            try:
                conn.request("GET", path)
                answer = conn.getresponse()
                return answer.status, answer.read().decode()
            except OSError as error:
                return 0, str(error)

    def status(self) -> dict[str, Any]:
        reply = ask(self.job.runtime_dir or Path(), ControlRequest(verb="status"), 20)
        assert reply.ok, reply.error
        found: dict[str, Any] = json.loads(bytes(reply.result))
        return found

    @contextmanager
    def streaming(self, model: str) -> Iterator[http.client.HTTPResponse]:
        """An answer of which something has come."""
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as conn:
            headers = {"content-type": "application/json"}
            conn.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = conn.getresponse()
            assert answer.status == 200
            assert answer.readline().startswith(b"data:")
            yield answer


@pytest.fixture
def mac() -> Iterator[Running]:
    """A stand-in that throttles five times as short as it says."""
    folder = Path(tempfile.mkdtemp(prefix="tg-"))
    try:
        shim = compiled(folder)
        if shim is None:
            pytest.skip("needs a C compiler on Linux (apt install gcc)")
        with launchd(folder, shim=shim, throttle_scale=SCALE) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def upstream_toml(upstream: ScriptedUpstream) -> str:
    return f'{DRAIN}[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:{upstream.port}"\n'


def test_killed_watchdog_is_started_again_and_its_sockets_stay_open(
    mac: Running, scripted_upstream: ScriptedUpstream
) -> None:
    """launchd holds the socket: a client that connects while none runs is answered by the next."""
    service = Service(mac, upstream_toml(scripted_upstream), sockets=True)
    service.bootstrap()
    service.wait_ready()
    assert service.status()["manager"] == "launchd"
    assert service.status()["listen"] == [f"127.0.0.1:{service.port}"]
    with service.streaming("ok") as answer:
        assert answer.read().rstrip().endswith(b"data: [DONE]")

    former = family(service.pid)
    former[0].kill()
    wait_until(lambda: not any(map(is_alive, former)), 20, "the worker has gone too")
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as early:
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert early.recv(100).startswith(b"HTTP/1.1 200 ")
    assert service.value("runs") == "2", service.log()
    assert service.value("last terminating signal") == "Killed: 9"
    service.wait_ready()

    assert mac.launchctl("bootout", TARGET).returncode in {0, 36}
    service.wait(lambda: service.value("state") is None, "it is gone")
    assert service.get("/healthz")[0] == 0
    assert f"{LABEL} ended with 0" in service.log()
    assert "Traceback" not in service.log()


def test_bad_config_parks_it_and_mending_the_file_is_enough(mac: Running) -> None:
    """One process all the while: launchd has nothing to restart, and the address says why."""
    service = Service(mac, "nonsense = 1\n", sockets=True)
    service.bootstrap()
    service.wait(lambda: service.get("/readyz")[0] == 503, "the parked worker answers")
    assert "nonsense" in service.get("/readyz")[1]
    assert service.get("/v1/models")[0] == 503
    pid = service.pid
    service.configure(DRAIN)
    service.wait_ready()
    assert (service.pid, service.value("runs")) == (pid, "1")


def test_stop_tells_every_open_stream_before_launchd_kills(
    mac: Running, scripted_upstream: ScriptedUpstream
) -> None:
    """A drain longer than launchd allows is cut to what fits, and ends as a success."""
    toml = upstream_toml(scripted_upstream).replace("stop_limit_s = 1.0", "stop_limit_s = 600.0")
    service = Service(mac, toml)
    service.keys["ExitTimeOut"] = 7
    service.keys["EnvironmentVariables"] = {"TIDEGATE_EXIT_TIMEOUT_S": "7"}
    service.bootstrap()
    service.wait_ready()
    assert service.value("exit timeout") == "7"
    with service.streaming("numbered:100000:50") as answer:
        mac.launchctl("bootout", TARGET)
        said = answer.read().decode()
    assert "tidegate is stopping" in said
    service.wait(lambda: service.value("state") is None, "it is gone")
    assert f"{LABEL} ended with 0" in service.log()
    assert "is sent SIGKILL" not in service.log()


@pytest.mark.long
def test_job_gets_nothing_but_what_the_plist_says(mac: Running) -> None:
    """No HOME, a poor PATH, the root as its directory; no core dumps, and files for its owner."""
    service = Service(mac, DRAIN)
    service.bootstrap()
    service.wait_ready()
    watchdog = psutil.Process(service.pid)
    assert watchdog.cwd() == "/"
    assert {"HOME", "USER"}.isdisjoint(watchdog.environ())
    assert watchdog.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert watchdog.rlimit(psutil.RLIMIT_NOFILE)[0] == 8448
    assert (service.folder / "log").stat().st_mode & 0o077 == 0
    assert (service.folder / "launchd.err").read_text() == ""


@pytest.mark.long
def test_upgrade_keeps_the_sockets_that_launchd_opened(
    mac: Running, scripted_upstream: ScriptedUpstream
) -> None:
    """The new program asks launchd again, is told that they were given, and has them still."""
    service = Service(mac, upstream_toml(scripted_upstream), sockets=True)
    service.bootstrap()
    service.wait_ready()
    pid = service.pid
    with service.streaming("numbered:150:20") as answer:
        os.kill(pid, signal.SIGUSR2)
        service.wait(lambda: "goes on where" in service.log(), "the new program runs")
        service.wait(lambda: service.status()["generation"] == 2, "its worker serves")
        assert answer.read().rstrip().endswith(b"data: [DONE]")
    assert (service.pid, service.value("runs")) == (pid, "1")
    assert service.status()["listen"] == [f"127.0.0.1:{service.port}"]
    assert service.status()["manager"] == "launchd"
    with service.streaming("ok") as answer:
        assert answer.read().rstrip().endswith(b"data: [DONE]")


@pytest.mark.long
def test_job_that_ends_with_an_error_is_started_no_faster_than_the_throttle(mac: Running) -> None:
    """Where another tidegate has the lock it ends with 75; launchd tries again until it is gone."""
    service = Service(mac, DRAIN)
    service.bootstrap()
    service.wait_ready()
    second = plistlib.loads(plistlib.dumps(service.keys)) | {"Label": "second"}
    file = service.folder / "second.plist"
    file.write_bytes(plistlib.dumps(second))
    began_s = time.monotonic()
    assert mac.launchctl("bootstrap", "system", str(file)).returncode == 0
    service.wait(lambda: mac.value("system/second", "runs") == "3", "it is tried three times")
    assert time.monotonic() - began_s >= 2 * 10 * SCALE
    assert mac.value("system/second", "last exit code") == "75"
    assert service.value("runs") == "1"
    mac.launchctl("bootout", TARGET)
    service.wait(lambda: service.value("state") is None, "the first is gone")
    service.wait_ready()


@pytest.mark.long
def test_what_keeps_it_from_starting_is_said_and_does_not_fill_the_disk(mac: Running) -> None:
    """launchd tries again for ever and appends for ever; the file is emptied in between."""
    service = Service(mac, DRAIN)
    errors = service.folder / "launchd.err"
    errors.write_bytes(b"x" * 300_000)
    state_dir = service.folder / "state"
    state_dir.write_text("in the way")
    service.bootstrap()
    service.wait(lambda: service.value("runs") == "2", "it is tried again")
    service.wait(lambda: b"state" in errors.read_bytes(), "it says why")
    assert errors.stat().st_size < 10_000
    state_dir.unlink()
    service.wait_ready()


@pytest.mark.long
def test_workers_that_die_at_once_leave_the_job_up(mac: Running) -> None:
    """Under launchd an exit would be a loop of ten seconds: it backs off inside, and stays."""
    service = Service(mac, DRAIN)
    plan = {
        "config": str(service.config),
        "state_dir": str(service.job.state_dir),
        "runtime_dir": str(service.job.runtime_dir),
        "worker": [sys.executable, "-c", "raise SystemExit(3)"],
        "timing": {
            "backoff_first_s": 0.02,
            "backoff_max_s": 0.1,
            "park_backoff_max_s": 0.4,
        },
    }
    service.keys["ProgramArguments"] = [sys.executable, "-m", "fakes.scaled", json.dumps(plan)]
    service.keys["EnvironmentVariables"]["PYTHONPATH"] = str(TESTS)
    service.bootstrap()
    service.wait(lambda: service.log().count("exited (3)") > 10, "its workers die, again and again")
    assert (service.value("state"), service.value("runs")) == ("running", "1")
    waits_s = [float(each) for each in re.findall(r"a new one starts in ([\d.]+) s", service.log())]
    assert waits_s[0] < 0.1
    assert 0.3 <= waits_s[-1] <= 0.4  # the most, shortened by up to a quarter
    mac.launchctl("bootout", TARGET)
    service.wait(lambda: service.value("state") is None, "it is gone")
    assert "is sent SIGKILL" not in service.log()


@pytest.mark.long
def test_kickstart_and_a_second_bootstrap(mac: Running) -> None:
    """`kickstart -k` kills without a word; right after a bootout a bootstrap fails, then works."""
    service = Service(mac, DRAIN)
    service.bootstrap()
    service.wait_ready()
    former = family(service.pid)
    assert mac.launchctl("kickstart", "-k", TARGET).returncode == 0
    wait_until(lambda: not any(map(is_alive, former)), 20, "all of the former have gone")
    service.wait_ready()
    assert service.value("runs") == "2"
    mac.launchctl("bootout", TARGET)
    service.wait(lambda: service.value("state") is None, "it is gone")
    codes = [mac.launchctl("bootstrap", "system", str(service.file)).returncode]
    while codes[-1] != 0:
        codes.append(mac.launchctl("bootstrap", "system", str(service.file)).returncode)
    assert set(codes[:-1]) <= {5}
    service.wait_ready()
