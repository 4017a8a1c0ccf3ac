"""A real gateway without a config file."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes.gateway import Gateway
from fakes.machine import free_port
from tidegate.config import places


@contextmanager
def without_config(*, has_folder: bool) -> Iterator[Gateway]:
    """The gateway of a user who has no config; where it is looked for is a folder, or nothing.

    Skips the test where the config of this computer would be read.
    """
    if os.geteuid() == 0 and places.SYSTEM_CONFIG_DIR.is_dir():
        pytest.skip("the config of this computer would be read")
    folder = Path(tempfile.mkdtemp(prefix="tg-"))  # pytest's own is too long for a Unix socket
    port = free_port()
    home = folder / "home" / "config"
    if has_folder:
        (home / "tidegate").mkdir(parents=True)
    flags = ["--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")]
    environ = {name: text for name, text in os.environ.items() if not name.startswith("TIDEGATE_")}
    with (folder / "log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "run", *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ | {"XDG_CONFIG_HOME": str(home), "TIDEGATE_LISTEN": f"127.0.0.1:{port}"},
        )
    running = Gateway.of(process, folder, port, "home/config/tidegate/config.toml")
    try:
        running.wait_ready()
        yield running
        running.finish()
    finally:
        running.kill()
        shutil.rmtree(folder, ignore_errors=True)
