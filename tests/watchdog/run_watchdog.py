"""`start.run` in a process of its own, with a config file in JSON and scaled periods."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path

import msgspec

from tidegate.config import ConfigError, LoadedConfig
from tidegate.core.fleet.lifecycle import Timing
from tidegate.core.protocol.worker import Ready
from tidegate.core.settings import Settings
from tidegate.watchdog import start

HERE = Path(__file__).parent


def load(config: Path) -> LoadedConfig:
    """What the file says. "nonsense" in it is a mistake."""
    try:
        text = config.read_bytes()
        settings = msgspec.json.decode(text, type=Settings)
        if "nonsense" in msgspec.json.decode(text):
            raise ConfigError(f"{config}: nonsense")
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{config}: {error}") from error
    return LoadedConfig(
        settings=settings, secrets={}, tokens=[], path=config, place=config, warnings=[]
    )


def stand_in(config: Path, listen: list[str], reason: str) -> LoadedConfig:
    """What it runs on while parked."""
    return LoadedConfig(
        settings=Settings(listen=listen), secrets={}, tokens=[], path=None, place=config,
        warnings=[], parked=reason,
    )  # fmt: skip


def main() -> int:
    plan = json.loads(sys.argv[1])
    config = Path(plan["config"])

    def banner(ready: Ready, addresses: list[str]) -> None:
        line = json.dumps({"pid": os.getpid(), "found": ready.found, "addresses": addresses})
        Path(plan["ready_file"]).write_text(line)

    return start.run(
        load=functools.partial(load, config),
        stand_in=functools.partial(stand_in, config, plan.get("parked_listen", ["127.0.0.1:0"])),
        runtime_dir=Path(plan["runtime_dir"]),
        state_dir=Path(plan["runtime_dir"]),
        log_file=Path(plan["log_file"]) if plan.get("log_file") else None,
        park=plan.get("park", False),
        banner=banner,
        worker_command=[sys.executable, str(HERE / "fake_worker.py"), *plan.get("worker", [])],
        timing=Timing(**plan.get("timing", {})),
    )


if __name__ == "__main__":
    sys.exit(main())
