"""launch_activate_socket, played by a small C library that is preloaded."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.service import launchd

SHIM = """
#include <stdlib.h>
#include <string.h>
int launch_activate_socket(const char *name, int **fds, size_t *count) {
    if (strcmp(name, "Listeners")) return 2;
    if (!getenv("SHIM_FD")) return 3;
    *fds = malloc(sizeof(int));
    **fds = atoi(getenv("SHIM_FD"));
    *count = 1;
    return 0;
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux (apt install gcc)")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "shim.c")], check=True
    )
    return library


def adopted(shim: Path, sock: socket.socket | None) -> str:
    """The addresses that a process under the stand-in adopts."""
    environ = os.environ | {"LD_PRELOAD": str(shim)}
    if sock is not None:
        environ["SHIM_FD"] = str(sock.fileno())
    code = (
        "from tidegate.service import launchd;print([b.address for b in launchd.adopt_activated()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        pass_fds=(sock.fileno(),) if sock else (),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_sockets_of_the_plist_are_adopted(shim: Path) -> None:
    """What launchd opened under the name "Listeners" is listened on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert adopted(shim, sock) == f"['127.0.0.1:{sock.getsockname()[1]}']"


def test_job_without_sockets_has_none(shim: Path) -> None:
    """A plist without sockets is no error."""
    assert adopted(shim, None) == "[]"


def test_only_a_job_on_a_mac_is_a_job() -> None:
    """Another system, or a terminal on a Mac, is not launchd."""
    assert not launchd.is_job({"XPC_SERVICE_NAME": "dev.tidegate.tidegate"}, "linux")
    assert not launchd.is_job({"XPC_SERVICE_NAME": "0"}, "darwin")
    assert not launchd.is_job({}, "darwin")
