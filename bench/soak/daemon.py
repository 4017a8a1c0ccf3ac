"""The tidegate that is soaked: a real `tidegate run`, with directories and limits of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fakes.gateway import Gateway
from fakes.machine import free_port

# Seconds where people have minutes: a model call that hangs ends after 4 s instead of an hour, a
# thousand times faster than the fault this replays. Nothing else differs from the defaults except
# the budget, which is small enough for the load to be seen in it. `[memory.growth]` stays as it
# is: its first alarm is possible after 6 h, so a soak of 8 h also tries it for false alarms.
CONFIG = """
listen = "127.0.0.1:{port}"

[limits]
connect_s = 1.0
first_output_s = 2.0
idle_s = 3.0
total_s = {total_s}
grace_s = 1.0
hold_s = 0.3
keepalive_s = 1.0
stall_s = 3.0
disconnect_grace_s = 0.3
keep_finished_s = 5.0
close_flush_s = 1.0
header_s = 2.0
body_s = 5.0
queue_s = 2.0
max_queued = 4
max_body = "4MiB"

[memory]
budget = "384MiB"

[drain]
recycle_limit_s = 20.0
stop_limit_s = 5.0

[[upstream]]
name = "box"
url = "{box}"

[[upstream]]
name = "two"
url = "{two}"

[[upstream]]
name = "narrow"
url = "{box}"
max_concurrent = 2

[[upstream]]
name = "gone"
url = "http://127.0.0.1:9"

[[model]]
name = "both"
targets = ["box/preamble:200", "two/wait:500"]

[[model]]
name = "mute-first"
targets = ["box/silent", "two/numbered:20:20"]

[[model]]
name = "busy-first"
targets = ["box/status:503", "gone/ok", "two/ok"]

[[model]]
name = "narrow-first"
targets = ["narrow/wait:500", "two/ok"]
"""
TOTAL_S = 4.0
OTHER_TOTAL_S = 4.5  # what a reload changes to, and back


@dataclass(eq=False)
class Daemon:
    """Writes the config, makes the token, starts the process."""

    folder: Path
    box_url: str
    two_url: str
    leak_bytes_per_s: int = 0

    def __post_init__(self) -> None:
        self.port = free_port()
        self.config = self.folder / "config.toml"
        self.write_config(TOTAL_S)

    def write_config(self, total_s: float) -> None:
        """Replace the config, as an editor does."""
        text = CONFIG.format(port=self.port, box=self.box_url, two=self.two_url, total_s=total_s)
        new = self.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.config)

    def start(self) -> tuple[Gateway, str]:
        """Start the process and wait until it is ready; a token for it."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TIDEGATE_", "NOTIFY_", "WATCHDOG_", "LISTEN_"))
        }
        places = [
            *("--config", str(self.config)),
            *("--state-dir", str(self.folder / "state")),
            *("--runtime-dir", str(self.folder / "run")),
        ]
        module = ["tidegate"]
        if self.leak_bytes_per_s:
            module = ["soak.leaky", str(self.leak_bytes_per_s)]
        made = subprocess.run(
            [sys.executable, "-m", "tidegate", "token", "new", "soak", *places],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env=environment,
        )
        log = self.folder / "log"
        with log.open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, "run", *places],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=environment,
            )
        gateway = Gateway(
            process,
            f"http://127.0.0.1:{self.port}",
            self.config,
            self.folder / "state",
            self.folder / "run",
            log,
        )
        try:
            gateway.wait_ready()
        except BaseException:
            gateway.kill()
            raise
        return gateway, made.stdout.strip()
