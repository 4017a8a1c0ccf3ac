"""A gateway whose periods are scaled down, or whose worker has a fault planted in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fakes.gateway import Gateway
from fakes.machine import free_port
from fakes.scene import TESTS, with_tests

SCALED = TESTS / "fakes" / "scaled.py"
LEAKY = TESTS / "fakes" / "leaky_worker.py"
# A second look after the evidence stays, but what takes minutes takes seconds.
CONSTANTS = {
    "tidegate.core.memory.policy": {
        "DISRUPTION_PAUSE_S": 1.0,
        "UNEXPLAINED_S": 1.0,
        "TRIM_EVERY_S": 2.0,
    },
    "tidegate.core.memory.levels": {"DWELL_S": 1.0},
    "tidegate.watchdog.guard.monitor": {"PRESSURE_HOLDS_S": 2.0},
}
TIMING = {"tick_s": 0.25}

StartScaled = Callable[..., Gateway]


class Leak:
    """What a leaky worker is told; see `fakes.leaky_worker`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def hold(self, most_bytes: int, bytes_per_s: int = 1 << 30, pid: int = 0) -> None:
        """So much from now on, taken at that rate, by one process or (0) by every worker.

        What is too much is given back.
        """
        beside = self.path.with_suffix(".new")
        beside.write_text(f"{bytes_per_s} {most_bytes} {pid}")
        beside.replace(self.path)


def leak_of(gateway: Gateway) -> Leak:
    """The leak that was planted in a gateway's workers."""
    return Leak(gateway.state_dir.parent / "leak")


@contextmanager
def scaled_gateways() -> Iterator[StartScaled]:
    """Starts gateways as `fakes.gateway.gateways` does, with the same checks at the end.

    `start(toml, beat_s=…, timing=…, env=…, file_bytes=…, fault=…, worker=…, constants=…)`.
    """
    started: list[Gateway] = []
    scribes: list[subprocess.Popen[bytes]] = []
    root = Path(tempfile.mkdtemp(prefix="tg-"))

    def start(
        toml: str,
        *,
        beat_s: float = 0.25,
        timing: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        file_bytes: int | None = None,
        fault: Mapping[str, object] | None = None,
        worker: Sequence[str] = (),
        constants: Mapping[str, Mapping[str, float]] = CONSTANTS,
    ) -> Gateway:
        folder = Path(tempfile.mkdtemp(dir=root))  # several may be started at once
        port = free_port()
        (folder / "config.toml").write_text(f'listen = "127.0.0.1:{port}"\n{toml}')
        leaky = [sys.executable, str(LEAKY), "--leak", str(folder / "leak")]
        plan: dict[str, Any] = {
            "config": str(folder / "config.toml"),
            "state_dir": str(folder / "state"),
            "runtime_dir": str(folder / "run"),
            "worker": list(worker) or [*leaky, "--beat-s", str(beat_s)],
            "timing": TIMING if timing is None else dict(timing),
            "constants": constants,
            "file_bytes": file_bytes,
            "fault": fault,
        }
        log = folder / "log"
        scrubbed = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TIDEGATE_", "NOTIFY_", "WATCHDOG_", "LISTEN_", "MEMORY_"))
        }
        # Through a pipe, for a limit to the size of files is one to the log as well.
        with log.open("ab") as output:
            scribe = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
        scribes.append(scribe)
        assert scribe.stdin is not None
        with scribe.stdin as line:
            process = subprocess.Popen(
                [sys.executable, str(SCALED), json.dumps(plan)],
                stdin=subprocess.DEVNULL,
                stdout=line,
                stderr=line,
                env=with_tests(scrubbed) | dict(env or {}),
            )
        running = Gateway.of(process, folder, port)
        started.append(running)
        running.wait_ready()
        return running

    try:
        yield start
        for running in started:
            running.finish()
    finally:
        for running in started:
            running.kill()
        for scribe in scribes:
            scribe.wait(10)
        shutil.rmtree(root, ignore_errors=True)
