"""Whether launchd started us, and the sockets it opened: asked by the very calls of a Mac."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.launchd import Running, compiled
from fakes.launchd import launchd as stand_in
from fakes.machine import free_port, wait_until
from tidegate.managers.launchd import activation
from tidegate.watchdog import detach

pytestmark = pytest.mark.processes

# What a job finds of itself. It says so, and ends as a success.
PROBE = """
import json, os, subprocess, sys
from tidegate.managers.launchd import activation as launchd
from tidegate.managers.sockets import ListenError

def open_fds():
    return sorted(os.listdir("/proc/self/fd"))

before = open_fds()
try:
    found = launchd.adopt_activated(*sys.argv[2:])
except ListenError as error:
    found, why = [], str(error)
else:
    why = None
heard = [[b.address, os.get_inheritable(b.sock.fileno())] for b in found]
code = (
    "from tidegate.managers.launchd import activation;"
    "print(activation.is_job(), activation.adopt_activated())"
)
child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
again = [b.address for b in launchd.adopt_activated(*sys.argv[2:])]
for bound in found:
    bound.close()
said = {
    "is_job": launchd.is_job(),
    "sockets": heard,
    "why": why,
    "again": again,
    "child": child.stdout + child.stderr,
    "left_open": open_fds() != before,
}
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(said, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


@pytest.fixture
def running() -> Iterator[Running]:
    """A stand-in for launchd."""
    folder = Path(tempfile.mkdtemp(prefix="tg-"))
    try:
        shim = compiled(folder)
        if shim is None:
            pytest.skip("needs a C compiler on Linux (apt install gcc)")
        with stand_in(folder, shim=shim) as launched:
            yield launched
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def probed(running: Running, sockets: dict[str, Any] | None = None, *words: str) -> dict[str, Any]:
    """What a job with these sockets finds."""
    answer = running.folder / "answer"
    plist = running.folder / "probe.plist"
    job = {
        "Label": "probe",
        "ProgramArguments": [sys.executable, "-c", PROBE, str(answer), *words],
        "RunAtLoad": True,
        "StandardErrorPath": str(running.folder / "err"),
    }
    plist.write_bytes(plistlib.dumps(job | ({"Sockets": sockets} if sockets else {})))
    done = running.launchctl("bootstrap", "system", str(plist))
    assert done.returncode == 0, done.stderr + running.log.read_text()
    wait_until(answer.exists, 30, "the job has answered")
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def test_every_socket_of_the_name_is_adopted_and_no_child_has_it(running: Running) -> None:
    """Addresses of both families and a file: all in the order of the plist, closed on exec."""
    ports = [free_port(), free_port()]
    path = running.folder / "tg.sock"
    listeners = [
        {"SockNodeName": "127.0.0.1", "SockServiceName": str(ports[0]), "SockFamily": "IPv4"},
        {"SockNodeName": "::1", "SockServiceName": ports[1], "SockFamily": "IPv6"},
        {"SockPathName": str(path), "SockPathMode": 0o660},
    ]
    said = probed(running, {"Listeners": listeners, "Other": {"SockNodeName": "127.0.0.1"}})
    addresses = [f"127.0.0.1:{ports[0]}", f"[::1]:{ports[1]}", f"unix:{path}"]
    assert said["sockets"] == [[address, False] for address in addresses]
    assert path.is_socket()  # it is launchd's file
    assert (path.stat().st_mode & 0o777) == 0o660
    assert not said["left_open"]


def test_only_the_job_itself_is_one(running: Running) -> None:
    """What it starts inherits the name, and is neither a job nor given sockets."""
    said = probed(running, {"Listeners": {"SockNodeName": "127.0.0.1"}})
    assert said["is_job"]
    assert said["child"] == "False []\n"


def test_sockets_are_given_once_and_asking_again_is_no_error(running: Running) -> None:
    """After an upgrade the new program asks as the old one did, and has them already."""
    said = probed(running, {"Listeners": {"SockNodeName": "127.0.0.1"}})
    assert len(said["sockets"]) == 1
    assert said["again"] == []


def test_job_without_sockets_has_none(running: Running) -> None:
    """A plist without sockets is no error."""
    said = probed(running)
    assert (said["sockets"], said["why"], said["is_job"]) == ([], None, True)


def test_sockets_of_another_name_are_left_alone(running: Running) -> None:
    """Only those under "Listeners" are for clients."""
    said = probed(running, {"Others": {"SockNodeName": "127.0.0.1"}})
    assert (said["sockets"], said["why"]) == ([], None)


LIBRARY = """
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <unistd.h>
/* "broken" is refused; "odd" is one socket that listens, one that does not, and no descriptor. */
int launch_activate_socket(const char *name, int **fds, size_t *count) {
    struct sockaddr_in any = {.sin_family = AF_INET};
    if (name[0] == 'b') return EPERM;
    *fds = malloc(3 * sizeof(int));
    (*fds)[0] = socket(AF_INET, SOCK_STREAM, 0);
    bind((*fds)[0], (struct sockaddr *)&any, sizeof any);
    listen((*fds)[0], 1);
    (*fds)[1] = socket(AF_INET, SOCK_STREAM, 0);
    (*fds)[2] = socket(AF_INET, SOCK_STREAM, 0);
    *count = 3;
    return 0;
}
"""


def alone(tmp_path: Path, *words: str) -> dict[str, Any]:
    """What a process finds whose launch_activate_socket is that of LIBRARY."""

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux (apt install gcc)")
    (tmp_path / "odd.c").write_text(LIBRARY)
    library = tmp_path / "odd.so"
    sources = [str(tmp_path / "odd.c"), "-o", str(library)]
    subprocess.run([compiler, "-shared", "-fPIC", *sources], check=True)
    subprocess.run(
        [sys.executable, "-c", PROBE.replace("again = ", "again = why or "), "answer", *words],
        env=os.environ | {"LD_PRELOAD": str(library)},
        cwd=tmp_path,
        check=True,
    )
    found: dict[str, Any] = json.loads((tmp_path / "answer").read_text())
    return found


def test_what_is_no_listening_socket_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    """One bad descriptor among several: an error that says which, and all of them closed."""
    said = alone(tmp_path, "odd")
    assert "(odd) is not a listening stream socket" in said["why"]
    assert not said["left_open"]


def test_refusal_is_told_in_words(tmp_path: Path) -> None:
    """An error that is not foreseen is no silence."""
    said = alone(tmp_path, "broken")
    assert said["why"] == 'launchd gave no sockets named "broken": Operation not permitted'


@pytest.mark.parametrize(
    "name", [None, "", "0", "application.com.googlecode.iterm2.1.2", "dev.tidegate.tidegate"]
)
def test_name_alone_makes_no_job(name: str | None) -> None:
    """A terminal has such a name, and so has everything that a job starts."""
    assert not activation.is_job({} if name is None else {"XPC_SERVICE_NAME": name})


def test_daemon_that_a_job_starts_is_none_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detached it is a child of process 1, as a job is, so it must not inherit the name."""
    monkeypatch.setenv("XPC_SERVICE_NAME", "dev.example.some.job")
    folder = Path(tempfile.mkdtemp(prefix="tg-"))
    pid_file = folder / "run" / "tidegate.pid"
    (folder / "config.toml").write_text('listen = "127.0.0.1:0"\n')
    places = ("config.toml", "state", "run")
    flags = ("--config", "--state-dir", "--runtime-dir")
    words = [word for flag, name in zip(flags, places, strict=True) for word in (flag, name)]
    words = [str(folder / word) if word in places else word for word in words]
    command = [sys.executable, "-m", "tidegate", "run", *words]
    lifeline = detach.spawn(command, folder / "log")
    try:
        wait_until(lambda: detach.holder(pid_file), 30, "it runs")
        daemon = psutil.Process(detach.holder(pid_file))
        environ = daemon.environ()
        daemon.terminate()
        assert "XPC_SERVICE_NAME" not in environ
        assert environ.items() >= {"PATH": os.environ["PATH"]}.items()
        assert detach.is_gone(lifeline, 30)
    finally:
        os.close(lifeline)
        shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has that function")
def test_another_system_has_no_sockets_for_us() -> None:
    """Without the function there are no sockets."""
    assert activation.adopt_activated() == []


@pytest.mark.parametrize(("size_bytes", "kept_bytes"), [(1000, 1000), (300 * 1024, 0)])
def test_file_that_launchd_appends_to_is_bounded(
    tmp_path: Path, size_bytes: int, kept_bytes: int
) -> None:
    """Nothing rotates it: too large it is emptied, and what is said next is at its beginning."""
    path = tmp_path / "launchd.err"
    path.write_bytes(b"x" * size_bytes)
    with path.open("ab") as file:
        activation.limit_stderr(file.fileno())
        file.write(b"news")
    assert path.stat().st_size == kept_bytes + 4


def test_standard_error_that_is_no_file_is_left_alone() -> None:
    """A pipe has no size, and neither has a descriptor that is closed."""
    reading, writing = os.pipe()
    activation.limit_stderr(writing)
    os.close(reading)
    os.close(writing)
    activation.limit_stderr(writing)


@pytest.mark.parametrize(
    ("said", "wanted_s", "given_s"),
    [
        ("45", 30.0, 30.0),
        ("60", 600.0, 55.0),
        ("3", 30.0, 0.0),
        (None, 30.0, 15.0),
        ("x", 9.0, 9.0),
    ],
)
def test_drain_fits_into_what_launchd_allows(
    said: str | None, wanted_s: float, given_s: float
) -> None:
    """The loaded plist says how long that is; one that does not has launchd's own 20 s."""
    environ = {} if said is None else {activation.EXIT_VARIABLE: said}
    assert activation.fitting_stop_s(wanted_s, activation.exit_timeout_s(environ)) == given_s


def test_connection_before_the_job_is_up_waits_for_it(running: Running) -> None:
    """launchd listens before anything runs, and starts a job for the first who connects."""
    port = free_port()
    entry = {"SockNodeName": "127.0.0.1", "SockServiceName": str(port)}
    code = (
        "from tidegate.managers.launchd import activation as launchd\n"
        "[bound] = launchd.adopt_activated()\n"
        "bound.sock.setblocking(True)\n"
        "conn, _ = bound.sock.accept()\n"
        "conn.sendall(b'served')\n"
    )
    job = {
        "Label": "lazy",
        "ProgramArguments": [sys.executable, "-c", code],
        "Sockets": {"Listeners": entry},
        "ThrottleInterval": 0,
    }
    plist = running.folder / "lazy.plist"
    plist.write_bytes(plistlib.dumps(job))
    assert running.launchctl("bootstrap", "system", str(plist)).returncode == 0
    assert running.value("system/lazy", "state") == "not running"
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            assert client.recv(100) == b"served"
