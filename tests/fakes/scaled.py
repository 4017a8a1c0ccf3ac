"""`tidegate run` with its constant periods scaled down, another worker, or a machine that fails.

    python scaled.py PLAN

PLAN is JSON: `timing` has the watchdog's periods (`core.lifecycle.Timing`), `constants` by module
those that are no settings, `worker` the worker's command, `file_bytes` a limit to the size of files
(a disk that is full), `fault` a call that fails once (`fakes.faults`). What was scaled is in the
log. Everything else is what ships.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import sys
from pathlib import Path
from typing import Any

from fakes.faults import plant
from tidegate import config
from tidegate.config.places import make_private
from tidegate.core.fleet.lifecycle import Timing
from tidegate.watchdog import start
from tidegate.watchdog.workers.process import WORKER_COMMAND


def scale(module_name: str, constants: dict[str, float]) -> None:
    """Set constants that are there already; a name that is gone is an error."""
    module = importlib.import_module(module_name)
    for name, value in constants.items():
        getattr(module, name)
        setattr(module, name, value)


def run(plan: dict[str, Any]) -> int:
    """Be a watchdog that lives faster."""
    state_dir, runtime_dir = Path(plan["state_dir"]), Path(plan["runtime_dir"])
    os.umask(0o077)
    make_private(state_dir)
    make_private(runtime_dir)
    for module_name, constants in plan.get("constants", {}).items():
        scale(module_name, constants)
    if limit_bytes := plan.get("file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    if fault := plan.get("fault"):
        plant(fault["call"], fault["nth"], fault["error"])
    logging.getLogger("scaled").warning("scaled: %s", json.dumps(plan))
    return start.run(
        load=lambda: config.load(Path(plan["config"]), state_dir),
        stand_in=lambda reason: config.stand_in(reason, Path(plan["config"])),
        runtime_dir=runtime_dir,
        state_dir=state_dir,
        log_file=None,
        banner=lambda ready, addresses: None,
        worker_command=plan.get("worker") or WORKER_COMMAND,
        timing=Timing(**plan.get("timing", {})),
    )


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
