"""Processes: starting a worker, and ending it.

A worker inherits its end of the channel and the listening sockets, and nothing of the service
manager: what systemd is told comes from the watchdog alone.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tidegate.config import LoadedConfig
from tidegate.config.keys import variables_of
from tidegate.core.descriptors import needed
from tidegate.core.protocol.worker import Heartbeat
from tidegate.core.settings import Limits, Settings
from tidegate.logs import handler
from tidegate.watchdog.signals import name_of
from tidegate.watchdog.workers.channel import Channel

WORKER_COMMAND = (sys.executable, "-m", "tidegate.gateway.worker")
DESCRIPTORS = needed(Limits().max_connections)  # until a worker knows what the config says
_log = logging.getLogger(__name__)
KILL_AGAIN_S = 1.0  # after a SIGKILL that could not be sent
# glibc raises by itself the size from which on memory goes back to the system when it is freed, up
# to 32 MiB once that much was freed. Then large requests lie in the heap and leave holes: 162 MiB
# resident of 93 that were held, measured after 50 uploads of 31 MiB. Set, it stays as it begins.
_MALLOC_LARGE, _LARGE_BYTES = "MALLOC_MMAP_THRESHOLD_", "131072"
_MANAGERS = ("NOTIFY_", "WATCHDOG_", "LISTEN_", "MEMORY_PRESSURE_")


# Of Python, the C library, TLS, the log, and where tidegate is.
_NEEDED = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TZDIR", "TMPDIR"),
    *("JOURNAL_STREAM", "SSL_CERT_FILE", "SSL_CERT_DIR", "VIRTUAL_ENV"),
}
_NEEDED_BEGIN = ("LC_", "PYTHON", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "TIDEGATE_", "__CF_")


class Adopted:
    """A child that was started before an upgrade; as much of a Popen as is used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it lives."""
        if self.returncode is None:
            try:
                pid, state = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # it was reaped elsewhere, and how it ended is lost
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(state) if pid else None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has been reaped. Raises OSError."""
        if self.poll() is None:
            os.kill(self.pid, number)


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """One worker process and its last messages."""

    number: int
    process: subprocess.Popen[bytes] | Adopted
    channel: Channel
    socket_path: Path  # where it listens for the other generation
    config: LoadedConfig  # what it was last told
    beats_when_asked: bool = False
    remembers: bool = False  # it can be asked for usage, and to forget
    known: Settings | None = None  # of another version, which may not be able to read others
    accepts: bool = True  # until it tells that it drains
    beat: Heartbeat | None = None  # the last one
    base_bytes: int | None = None  # resident when it became ready
    ready_s: float | None = None  # when that was
    failure: str | None = None  # why it could not go on, as it told
    condemned: str | None = None  # why we end it
    kill_at_s: float | None = None

    @property
    def pid(self) -> int:
        """Return the process id, which stays ours until it has been reaped."""
        return self.process.pid

    def begin_end(self, now_s: float, wait_s: float, *, stacks: bool) -> None:
        """End it: at most `wait_s` for the stacks to be written, then SIGKILL regardless."""
        if self.kill_at_s is not None or self.process.poll() is not None:
            return
        self.kill_at_s = now_s
        if stacks:
            self._signal(signal.SIGUSR1)  # faulthandler writes where every thread stands
            self._signal(signal.SIGCONT)  # a stopped process writes nothing
            self.kill_at_s = now_s + wait_s
        self.kill_if_due(now_s)

    def kill_if_due(self, now_s: float) -> None:
        """Kill it when its time is over: the second half of `begin_end`."""
        if self.kill_at_s is not None and now_s >= self.kill_at_s:
            # Once is enough: what survives it hangs in the kernel.
            was_sent = self._signal(signal.SIGKILL)
            self.kill_at_s = math.inf if was_sent else now_s + KILL_AGAIN_S

    def how_it_ended(self) -> str:
        """Say how it ended: the reason that is known, and the exit."""
        why = self.condemned or self.failure
        return f"{why}; {self.exit_text}" if why else self.exit_text

    @property
    def exit_text(self) -> str:
        """Say how its process ended: "exited (0)", "killed by SIGKILL"."""
        code = self.process.returncode or 0
        return f"killed by {name_of(-code)}" if code < 0 else f"exited ({code})"

    def close(self) -> None:
        """Give back what is left of it. The process must have been reaped."""
        self.channel.close()
        with suppress(OSError):  # the directory is gone, or cannot be written any more
            self.socket_path.unlink()

    def _signal(self, number: signal.Signals) -> bool:
        """Send a signal, not to a process that was reaped. A sandbox may forbid it."""
        try:
            self.process.send_signal(number)
        except OSError as error:
            _log.error("worker %d cannot be sent %s: %s", self.number, number.name, error)
            return False
        return True


# The command, the generation's number, its socket, its config, and the descriptors it inherits.
Spawn = Callable[[Sequence[str], int, Path, LoadedConfig, Sequence[int]], WorkerHandle]


def spawn(
    command: Sequence[str],
    number: int,
    socket_path: Path,
    config: LoadedConfig,
    inherited: Sequence[int],
) -> WorkerHandle:
    """Start generation `number`, which has yet to be told its config. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        popen = subprocess.Popen(  # noqa: S603  (our own command)
            [*command, "--channel", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            env=child_environment(os.environ, frozenset(variables_of(config.settings))),
            pass_fds=(theirs.fileno(), *inherited),
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return WorkerHandle(number, popen, Channel(ours), socket_path, config)


def child_environment(environ: Mapping[str, str], secret: Set[str]) -> dict[str, str]:
    """Make the environment of a child that serves or sends: what it needs, and nothing else."""
    return worker_environment({k: v for k, v in environ.items() if _is_needed(k)}, secret)


def _is_needed(name: str) -> bool:
    """Tell whether a child needs that variable.

    Others are left out, for a key may be in any of them: that of an upstream which a reload adds
    later, or of a config that cannot be read yet.
    """
    return name in _NEEDED or name.startswith(_NEEDED_BEGIN)


def worker_environment(
    environ: Mapping[str, str], secret: Set[str] = frozenset()
) -> dict[str, str]:
    """Make a worker's environment: ours without the service manager's, with the log's place.

    And without variables that are `secret`: a worker is told their values, and a program that can
    read its environment need not be.
    """
    kept = {_MALLOC_LARGE: _LARGE_BYTES}
    kept |= {k: v for k, v in environ.items() if not k.startswith(_MANAGERS) and k not in secret}
    if file := handler.current_file():
        kept[handler.FILE_VARIABLE] = str(file)
    return kept


def allow_many_descriptors() -> None:
    """Raise the soft limit, which is often 1,024: clients and upstreams need two a stream.

    Workers inherit it, and say so where the hard limit leaves less than their config needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def forbid_core_dumps() -> None:
    """Switch core dumps off: one would hold people's prompts."""
    if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0):
        return
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:  # a sandbox may forbid even that
        _log.warning("core dumps cannot be switched off: %s", error)
