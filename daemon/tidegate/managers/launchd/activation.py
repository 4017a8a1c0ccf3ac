"""The launchd side of a start: sockets by name instead of by number, and no notifications.

launchd restarts a job ten seconds after every failure, for ever. So a daemon under it parks on
a bad configuration instead of exiting. Nor can it be asked for more time: a stop has to be over
before launchd kills, and how long that is only the loaded job knows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress

from tidegate.core import decoding
from tidegate.managers.sockets import BoundSocket, ListenError, adopt

SOCKETS_NAME = "Listeners"  # the key under `Sockets` in the plist
NAME_VARIABLE = "XPC_SERVICE_NAME"
EXIT_VARIABLE = "TIDEGATE_EXIT_TIMEOUT_S"  # what the plist has as ExitTimeOut
DEFAULT_EXIT_S = 20  # by launchd.plist(5), for a plist that is not ours
MOST_EXIT_S = 10**9
EXIT_MARGIN_S = 5.0  # beyond a drain's limit: the worker's end, the last words, a busy disk
MOST_STDERR_BYTES = 256 * 1024  # 2,000 failed starts: six hours, at one every ten seconds
_NO_JOB = {"", "0"}  # the latter is what a terminal has
_OF_AN_APP = "application."  # and this begins the name that an app hands to all it starts
_NONE_FOR_US = {
    errno.ENOENT,  # the plist has no sockets of that name
    errno.ESRCH,  # launchd did not start this process
    errno.EALREADY,  # this process had them as another program, which left them to us: an upgrade
}


def is_job(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether launchd started this very process as a job.

    The name alone is no proof, for whatever a job starts inherits it; so its parent must be
    process 1, as launchd is, and there must be launchd's function to ask for sockets.
    """
    name = environ.get(NAME_VARIABLE, "")
    if name in _NO_JOB or name.startswith(_OF_AN_APP) or os.getppid() != 1:
        return False
    return _function() is not None


def exit_timeout_s(environ: Mapping[str, str] = os.environ) -> int:
    """Return how long launchd waits for this job to stop before it kills, in seconds."""
    said_s = decoding.count(environ.get(EXIT_VARIABLE, ""), MOST_EXIT_S)
    return DEFAULT_EXIT_S if said_s is None else said_s


def fitting_stop_s(wanted_s: float, exit_timeout_s: int) -> float:
    """Return the limit of a drain that is over before launchd kills, in seconds."""
    return min(wanted_s, max(0.0, exit_timeout_s - EXIT_MARGIN_S))


def limit_stderr(fd: int = 2) -> None:
    """Empty the file behind standard error if it has grown too large.

    launchd appends to it and never rotates. With `--log-file` it gets only what keeps a job from
    starting, but that every ten seconds until its owner looks.
    """
    with suppress(OSError):
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size > MOST_STDERR_BYTES:
            os.ftruncate(fd, 0)


def adopt_activated(name: str = SOCKETS_NAME) -> list[BoundSocket]:
    """Adopt the sockets that launchd opened for us; none when the plist has none.

    Raises ListenError, and then leaves none of them open.
    """
    adopted: list[BoundSocket] = []
    fds = _activated(name)
    try:
        for fd in fds:
            adopted.append(adopt(fd, name))  # noqa: PERF401  (those before a bad one are closed)
    except ListenError:
        for bound in adopted:
            bound.close()
        for fd in fds[len(adopted) :]:
            with suppress(OSError):
                os.close(fd)
        raise
    return adopted


def _activated(name: str) -> list[int]:
    """Ask launch_activate_socket(3) for descriptors, not to be inherited. Raises ListenError."""
    function = _function()
    if function is None:
        return []
    fds = ctypes.POINTER(ctypes.c_int)()
    count = ctypes.c_size_t()
    error = function(name.encode(), ctypes.byref(fds), ctypes.byref(count))
    if error in _NONE_FOR_US:
        return []
    if error:
        raise ListenError(f'launchd gave no sockets named "{name}": {os.strerror(error)}')
    try:
        found = [fds[n] for n in range(count.value)]
    finally:
        free = ctypes.CDLL(None).free
        free.argtypes, free.restype = [ctypes.c_void_p], None
        free(fds)
    for fd in found:
        os.set_inheritable(fd, False)
    return found


def _function() -> Callable[..., int] | None:
    """Return launch_activate_socket, which only the system library of a Mac has."""
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), "launch_activate_socket", None)
    return function
