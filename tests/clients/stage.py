"""What stands behind the clients: a gateway, the genuine llama.cpp server, and scripted upstreams.

Every column has a scripted upstream to itself, so that nothing one client does is another's affair,
and three names for it in the gateway's config that differ in their limits only.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.cells import COLUMNS, SITUATIONS, Driver
from fakes.gateway import Gateway, gateways
from fakes.llama import MODEL
from fakes.scenario import NODE_MODULES, ROOT
from fakes.upstream import ScriptedUpstream

DRIVERS = Path(__file__).with_name("drivers")
CLIENTS_PYTHON = ROOT / ".venv" / "clients" / "bin" / "python"

GRACE_S = 0.5
IDLE_S = 1.0
DRIVER_LIMIT_S = 200.0
ENDLESS = "numbered:100000:10"  # what every client gives up

# What would lead a client elsewhere, or make it report elsewhere.
FOREIGN = ("OPENAI_", "ANTHROPIC_", "LANGCHAIN_", "LANGSMITH_", "LLM_", "NODE_OPTIONS")


@dataclass(frozen=True)
class Cell:
    """How one cell went."""

    column: str
    situation: str
    error: str | None = None


@dataclass
class Outcome:
    """What a driver has said."""

    cells: list[Cell] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def failures(self) -> list[Cell]:
        """The cells that went wrong."""
        return [cell for cell in self.cells if cell.error is not None]


@dataclass
class Stage:
    """All of it, running."""

    gateway: Gateway
    upstreams: dict[str, ScriptedUpstream]

    def run(self, driver: Driver) -> Outcome:
        """Run a driver to its end. Cells it never came to are failures."""
        with tempfile.TemporaryDirectory(prefix="tg-client-") as scratch:
            complaints = Path(scratch, "stderr")
            with complaints.open("wb") as stderr:
                process = subprocess.Popen(
                    [*command(driver), self.order(driver, scratch)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=environment(scratch),
                )
            limit = threading.Timer(DRIVER_LIMIT_S, process.kill)
            limit.start()
            try:
                outcome = self.listen(process)
            finally:
                limit.cancel()
                process.kill()
                process.wait(10)
            said = complaints.read_text(errors="replace")[-2000:]
        done = {(cell.column, cell.situation) for cell in outcome.cells}
        for column in driver.columns:
            for situation in column.cells:
                if (column.key, situation) not in done:
                    outcome.cells.append(Cell(column.key, situation, f"never came to it: {said}"))
        return outcome

    def order(self, driver: Driver, scratch: str) -> str:
        """What the driver is told."""
        names = {
            column.key: {
                "box": column.key,
                "idle": f"{column.key}.idle",
                "slow": f"{column.key}.slow",
                "genuine": f"genuine/{MODEL}",
            }
            for column in driver.columns
        }
        told: dict[str, Any] = {
            "url": self.gateway.base_url,
            "columns": names,
            "skip": {column.key: list(column.without) for column in driver.columns},
            "scratch": scratch,
            "node": str(NODE_MODULES.parent),
            "chromium": shutil.which("chromium"),
        }
        return json.dumps(told)

    def listen(self, process: subprocess.Popen[bytes]) -> Outcome:
        """Take a driver's lines; for an answer given up, watch its upstream at once."""
        assert process.stdout
        outcome = Outcome()
        with process.stdout:
            for line in process.stdout:
                said = json.loads(line)
                if "versions" in said:
                    outcome.versions |= said["versions"]
                    continue
                error = said["error"]
                if said["gone"] and error is None:
                    error = self.still_there(said["column"])
                outcome.cells.append(Cell(said["column"], said["cell"], error))
        return outcome

    def still_there(self, column: str) -> str | None:
        """None when the upstream of the answer that was just given up has heard of it in time."""
        limit_s = GRACE_S + 1
        deadline_s = time.monotonic() + limit_s
        while True:
            asked = self.upstreams[column].seen(ENDLESS)
            if asked and all(seen.gone_s is not None for seen in asked):
                return None
            if time.monotonic() > deadline_s:
                return f"the upstream was still there after {limit_s:g} s: {len(asked)} asked"
            time.sleep(0.02)


def missing(driver: Driver) -> str | None:
    """What has to be installed before the driver can run; None when nothing has."""
    if driver.file == "curl.py":
        return None if shutil.which("curl") else "curl is not installed"
    if driver.file.endswith(".mjs"):
        if shutil.which("node") is None:
            return "node is not installed"
        absent = [name for name in driver.needs if not (NODE_MODULES / name).is_dir()]
        if absent:
            return f"not in .venv/node: {', '.join(absent)}"
        if driver.needs_chromium and shutil.which("chromium") is None:
            return "chromium is not installed"
        return None
    absent = [name for name in driver.needs if not _has(name)]
    return f"not in .venv/clients: {', '.join(absent)}" if absent else None


def _has(package: str) -> bool:
    if CLIENTS_PYTHON.exists():
        folders = (CLIENTS_PYTHON.parents[1] / "lib").glob("python*/site-packages")
        return any((folder / package).is_dir() for folder in folders)
    return importlib.util.find_spec(package) is not None


def command(driver: Driver) -> list[str]:
    """How a driver is started."""
    file = str(DRIVERS / driver.file)
    if driver.file.endswith(".mjs"):
        return ["node", file]
    own = driver.needs and CLIENTS_PYTHON.exists()
    return [str(CLIENTS_PYTHON) if own else sys.executable, file]


def environment(scratch: str) -> dict[str, str]:
    """A user's environment without what is this machine's alone."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*FOREIGN, "TIDEGATE_", "PYTHON"))
        and not name.lower().endswith("_proxy")
    }
    return kept | {"HOME": scratch, "AI_SDK_LOG_WARNINGS": "false"}


def config(upstreams: dict[str, ScriptedUpstream], llama_url: str) -> str:
    """The gateway's config: for every column three names of one scripted upstream."""
    tables = [f'[[upstream]]\nname = "genuine"\nurl = "{llama_url}"\n']
    for key, upstream in upstreams.items():
        for suffix, limits in (
            ("", ""),
            (".idle", f"[upstream.limits]\nidle_s = {IDLE_S}\n"),
            (".slow", "[upstream.limits]\nhold_s = 0.2\nkeepalive_s = 0.2\n"),
        ):
            tables.append(f'[[upstream]]\nname = "{key}{suffix}"\nurl = "{upstream.url}"\n{limits}')
    return f"[limits]\ndisconnect_grace_s = {GRACE_S}\n" + "\n".join(tables)


@contextmanager
def stage(llama_url: str) -> Iterator[Stage]:
    """Set everything up, and take it down again."""
    with ExitStack() as open_:
        upstreams = {}
        for column in COLUMNS:
            upstreams[column.key] = ScriptedUpstream().start()
            open_.callback(upstreams[column.key].stop)
        start = open_.enter_context(gateways())
        yield Stage(start(config(upstreams, llama_url)), upstreams)


assert set(SITUATIONS) >= {name for column in COLUMNS for name in column.without}
