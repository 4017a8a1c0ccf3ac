"""The environment of a worker and the lock on the pid file."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.watchdog.pid_file import AlreadyRunning, PidFile
from tidegate.watchdog.workers.process import worker_environment


def test_worker_environment_has_nothing_of_the_manager() -> None:
    """All that speaks to the service manager is left out; the rest is kept."""
    environ = {
        "NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "LISTEN_FDS": "1",
        "LISTEN_PID": "1", "LISTEN_FDNAMES": "a", "MEMORY_PRESSURE_WATCH": "f", "PATH": "/bin",
    }  # fmt: skip
    given = worker_environment(environ)
    assert given.pop("MALLOC_MMAP_THRESHOLD_") == "131072"
    assert given == {"PATH": "/bin"}


def test_worker_environment_has_no_secret() -> None:
    """What a worker is told, it need not find in its environment, where others may look."""
    environ = {"CLOUD_KEY": "sk-1", "OTHER": "x"}
    given = worker_environment(environ, {"CLOUD_KEY"})
    assert "CLOUD_KEY" not in given
    assert given["OTHER"] == "x"


def test_what_is_said_of_malloc_already_holds() -> None:
    """An owner who tunes it knows why."""
    said = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    assert worker_environment(said) == said


def test_lock_is_held_for_life(tmp_path: Path) -> None:
    """While one holds it no other gets it; its end, however sudden, frees it."""
    path = tmp_path / "tidegate.pid"
    code = (
        "import sys; from pathlib import Path;"
        "from tidegate.watchdog.pid_file import PidFile;"
        "p = PidFile(Path(sys.argv[1])); p.hold(); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(AlreadyRunning, match=f"process id {holder.pid} "):
        PidFile(path).hold()
    holder.kill()
    holder.communicate()
    ours = PidFile(path)
    ours.hold()
    assert path.read_text() == f"{os.getpid()}\n"
    ours.release()
    assert not path.exists()


def test_lock_on_a_removed_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opened the file just before its holder removed it locks the new one."""
    path = tmp_path / "tidegate.pid"
    real_flock = fcntl.flock
    former = PidFile(path)
    former.hold()

    def flock_after_release(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real_flock)
        former.release()
        real_flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_release)
    ours = PidFile(path)
    ours.hold()
    try:
        with pytest.raises(AlreadyRunning):
            PidFile(path).hold()
    finally:
        ours.release()
