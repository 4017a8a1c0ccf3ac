"""What is different under launchd: no notifications, and sockets by name instead of by number.

launchd restarts a job ten seconds after every failure, for ever. So a daemon under it parks on
a bad configuration instead of exiting.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from tidegate.service.listen import Bound, ListenError, adopt

SOCKETS_NAME = "Listeners"  # the key under `Sockets` in the plist
_NOT_A_JOB = {2: "ENOENT", 3: "ESRCH"}  # no such socket in the plist; not started by launchd


def is_job(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether launchd started this very process as a job."""
    name = environ.get("XPC_SERVICE_NAME", "0")
    return platform == "darwin" and name not in {"", "0"} and os.getppid() == 1


def adopt_activated(name: str = SOCKETS_NAME) -> list[Bound]:
    """The sockets that launchd opened for us; none when the plist has none.

    The running program itself exports `launch_activate_socket`, see launch(3). Raises
    ListenError.
    """
    import ctypes  # noqa: PLC0415  (half a megabyte that only a Mac needs)

    library = ctypes.CDLL(None)
    fds = ctypes.POINTER(ctypes.c_int)()
    count = ctypes.c_size_t()
    error: int = library.launch_activate_socket(
        name.encode(), ctypes.byref(fds), ctypes.byref(count)
    )
    if error in _NOT_A_JOB:
        return []
    if error:
        raise ListenError(f'launchd gave no sockets named "{name}": {os.strerror(error)}')
    found = [fds[n] for n in range(count.value)]
    library.free(fds)
    return [adopt(fd, name) for fd in found]
