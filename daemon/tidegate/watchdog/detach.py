"""`tidegate run` in the background, for machines without a service manager.

`spawn` runs this file as a helper process. The helper detaches with python-daemon and becomes
`tidegate run`, so no process that stays has python-daemon loaded. One end of a pipe goes with it:
the daemon holds it for life without knowing, and its end of file tells the starter, which is not
the parent any more, that the start has failed.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tidegate.core import decoding
from tidegate.machine import private_file
from tidegate.managers.launchd.activation import NAME_VARIABLE

HELPER_LIMIT_S = 20.0  # python-daemon closes every descriptor that the limits allow for


class DetachError(Exception):
    """The helper could not detach."""


def spawn(command: Sequence[str], log_file: Path) -> int:
    """Start this command, detached from this terminal; its first word is an absolute path.

    Returns the reading end of a pipe that reaches its end of file when the daemon is gone; the
    caller closes it. Whatever the daemon prints goes to `log_file`. Raises DetachError.
    """
    lifeline, held = os.pipe()
    helper = [sys.executable, "-P", "-m", "tidegate.watchdog.detach", str(held), str(log_file)]
    try:
        subprocess.run(  # noqa: S603  (our own interpreter and module)
            [*helper, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[held],
            check=True,
            timeout=HELPER_LIMIT_S,
        )
    except (subprocess.SubprocessError, OSError) as error:
        os.close(lifeline)
        raise DetachError(f"cannot start in the background: {error}") from error
    finally:
        os.close(held)
    return lifeline


def is_gone(lifeline: int, wait_s: float) -> bool:
    """Wait at most `wait_s` for the daemon to end, and tell whether it has."""
    poller = select.poll()
    poller.register(lifeline, select.POLLIN)
    return bool(poller.poll(wait_s * 1000))


def holder(pid_file: Path) -> int | None:
    """Return the pid of the tidegate that holds this pid file's lock; None when none does.

    A pid alone proves nothing: it may have been given to another process since. The lock goes
    with the process, and so can be believed.
    """
    try:
        fd = private_file.open_own(pid_file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = file.read(32).strip()
            return decoding.count(text.decode("ascii", "replace"), 2**31 - 1)
        return None


def wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    """Wait for the condition, and tell whether it came true within the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _detach_and_run(held: int, log_file: Path, command: Sequence[str]) -> None:
    import daemon  # noqa: PLC0415  (only this helper, which is about to become something else)

    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with os.fdopen(os.open(log_file, flags, 0o600), "ab") as log:
        context = daemon.DaemonContext(
            detach_process=True,
            umask=0o077,
            files_preserve=[held],
            signal_map={},  # signals ignored here would stay ignored in what is executed
            stdout=log,
            stderr=log,
        )
        context.open()
        os.set_inheritable(held, True)
        # That of the starter's own job. A daemon is a child of process 1, as a job of launchd is.
        os.environ.pop(NAME_VARIABLE, None)
        os.execv(command[0], list(command))  # noqa: S606


if __name__ == "__main__":
    _detach_and_run(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
