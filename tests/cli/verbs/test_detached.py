"""Starting in the background and stopping again, for machines without a service manager."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fakes.machine import wait_until
from fakes.status import idle
from tidegate.watchdog import detach

pytestmark = pytest.mark.processes

HOLD = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.write(fd, b"%d\\n" % os.getpid())
print(flush=True)
signal.pause()
"""


@pytest.fixture
def held(tidegate):
    """A process that holds the pid file's lock, and says nothing on the control socket."""
    pid_file = tidegate.runtime_dir / "tidegate.pid"
    command = [sys.executable, "-c", HOLD, str(pid_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_holder_is_the_process_with_the_lock(tidegate, held):
    """The lock and not the pid in the file tells whether a daemon runs."""
    pid_file = tidegate.runtime_dir / "tidegate.pid"
    assert detach.holder(pid_file) == held.pid
    held.kill()
    held.wait()
    assert pid_file.read_text().strip() == str(held.pid)
    assert detach.holder(pid_file) is None


def test_no_file_has_no_holder(tmp_path):
    """Without a pid file no daemon runs."""
    assert detach.holder(tmp_path / "tidegate.pid") is None


def test_stop_falls_back_to_sigterm(tidegate, held):
    """A tidegate that does not answer is sent SIGTERM, and its end is waited for."""
    code, out, _ = tidegate("stop")
    assert (code, out) == (0, "Stopped.\n")
    assert held.wait() == -signal.SIGTERM


def test_stop_leaves_a_stale_pid_alone(tidegate):
    """A pid whose process does not hold the lock is never sent a signal."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as bystander:
        (tidegate.runtime_dir / "tidegate.pid").write_text(f"{bystander.pid}\n")
        code, _, err = tidegate("stop")
        assert (code, bystander.poll()) == (69, None)
        assert "not running" in err
        bystander.kill()


def test_start_with_a_bad_config_says_so_here(tidegate):
    """A mistake in the config is told on this terminal, and nothing is started."""
    tidegate.config.write_text("nonsense = 1")
    for verb in ("start", "restart"):
        code, _, err = tidegate(verb)
        assert code == 78
        assert "nonsense: unknown key" in err
    assert not (tidegate.state_dir / "tidegate.log").exists()


def test_spawned_process_is_detached_and_its_end_is_seen(tmp_path):
    """What is spawned writes to the log, and the lifeline tells when it has ended."""
    log = tmp_path / "x.log"
    lifeline = detach.spawn([sys.executable, "-m", "tidegate", "run", "--help"], log)
    try:
        assert detach.is_gone(lifeline, 20)
        assert os.read(lifeline, 1) == b""
    finally:
        os.close(lifeline)
    assert "usage: tidegate run" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_spawn_that_cannot_log_is_an_error(tmp_path):
    """A log that cannot be written is an error of the start, not silence."""
    with pytest.raises(detach.DetachError, match="cannot start"):
        detach.spawn([sys.executable, "--help"], tmp_path / "nowhere" / "x.log")


@pytest.fixture
def free_port_config(tidegate):
    """A config whose address is chosen by the system."""
    tidegate.config.write_text('listen = "127.0.0.1:0"')
    return tidegate


def test_start_status_restart_stop(free_port_config):
    """A real tidegate is started, found serving, restarted as another process, and stopped."""
    tidegate = free_port_config
    pid_file = tidegate.runtime_dir / "tidegate.pid"
    try:
        code, out, err = tidegate("start")
        assert (code, err) == (0, "")
        assert "Base URL  http://127.0.0.1:" in out
        first = detach.holder(pid_file)
        group = os.getpgid(first)
        assert os.getsid(first) != os.getsid(0)
        assert "serving" in tidegate("status")[1]
        assert "is already running" in tidegate("start")[1]
        assert tidegate("restart")[0] == 0
        assert detach.holder(pid_file) not in (None, first)
    finally:
        code, out, _ = tidegate("stop")
    assert (code, out) == (0, "Stopped.\n")
    assert detach.holder(pid_file) is None
    wait_until(lambda: _is_empty(group))


def test_start_that_fails_shows_the_end_of_the_log(tidegate):
    """When the address is taken, the start fails and shows what the log says about it."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tidegate.config.write_text(f'listen = "127.0.0.1:{port}"')
        code, _, err = tidegate("start")
    assert code == 69
    assert f"127.0.0.1:{port}" in err
    assert "tidegate.log" in err


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_what_a_service_manager_runs_is_left_to_it(tidegate, watchdog, held, verb):
    """A tidegate that systemd started is not stopped behind its back; the right verb is named."""
    watchdog.will("status", idle(held.pid, manager="systemd"))
    code, _, err = tidegate(verb)
    assert (code, held.poll()) == (1, None)
    assert err == (
        f"tidegate: this tidegate is a service of systemd; run: tidegate service {verb}\n"
    )


def test_start_beside_a_running_service_says_what_runs(tidegate, watchdog, held):
    """Where a service serves already, `start` says so and starts nothing."""
    watchdog.will("status", idle(held.pid, manager="launchd"))
    code, out, _ = tidegate("start")
    assert (code, out) == (
        0,
        f"tidegate is already running, pid {held.pid}, as a service of launchd.\n",
    )


def test_status_tells_who_started_it(tidegate, watchdog):
    """`tidegate status` says which service manager started it."""
    watchdog.will("status", idle(41, manager="systemd"))
    assert "started by systemd" in tidegate("status", "--verbose")[1]


def test_start_whose_log_cannot_be_written_says_so(tidegate):
    """A log that cannot be opened is one sentence on this terminal, and nothing is started."""
    (tidegate.state_dir / "tidegate.log").mkdir()
    code, out, err = tidegate("start")
    assert (code, out) == (69, "")
    assert err == (
        f"tidegate: cannot write the log {tidegate.state_dir}/tidegate.log: Is a directory\n"
    )


def _is_empty(group: int) -> bool:
    """Tell whether no process of a group is left, the worker included."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
