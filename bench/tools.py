"""The stub upstream and the load client: compiled here, started here, and tried before use.

Both end by themselves after a time, whatever becomes of the process that started them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
STUB_LIFE_S = 900
COMPILE = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra"]

# What the stub does wrong when it is asked to; stub.c describes each.
FAULTS = ["skip", "twice", "alien", "mute", "cut", "fail"]
SHAPES = ["each-20", "once-20", "each-2000", "once-1250", "paced-10-5", "idle-4-50", "json"]


@dataclass(frozen=True, slots=True)
class Stub:
    """A running stub."""

    pid: int
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the load client shall do; load.c describes each option."""

    model: str
    slots: int
    fresh: int = 0
    ramp_ms: int = 0
    warm_ms: int = 0
    window_ms: int = 0
    requests: int = 0
    limit_ms: int = 60_000


def compile_tools() -> None:
    """Build both programs under build/bench. Raises CalledProcessError."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("stub", "load"):
        subprocess.run([*COMPILE, "-o", BUILD / name, HERE / f"{name}.c"], check=True)


def pinned(core: int, *command: object) -> list[str]:
    """Pin a command: the process, and all that it starts, stays on this core."""
    return ["taskset", "-c", str(core), *map(str, command)]


@contextmanager
def run_stub(core: int) -> Iterator[Stub]:
    """Run a stub for the length of a block."""
    command = pinned(core, BUILD / "stub", STUB_LIFE_S)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Stub(process.pid, int(process.stdout.readline()))
        finally:
            process.kill()


def run_load(
    load: Load,
    *,
    port: int,
    core: int,
    token: str = "",
    headers: str = "",
    is_rewritten: bool = False,
    at_begin: Callable[[int], None] = lambda _: None,
    at_end: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the load client and return what it reports.

    `at_begin` and `at_end` are called with its process id as the window opens and closes.
    """
    options = [f"{name}={getattr(load, name)}" for name in load.__slots__]
    options += [f"token={token}", f"headers={headers}", f"rewritten={int(is_rewritten)}"]
    command = pinned(core, BUILD / "load", f"port={port}", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        report: dict[str, Any] = {}
        try:
            for line in process.stdout:
                if line == "begin\n":
                    at_begin(process.pid)
                elif line == "end\n":
                    at_end(process.pid)
                else:
                    report = json.loads(line)
        finally:
            process.kill()
    return report


def check_tools(core: int) -> None:
    """Prove that right answers pass and that each kind of wrong answer is counted as an error.

    Raises RuntimeError: a harness that fails this measures nothing.
    """
    with run_stub(core) as stub:

        def ask(model: str, is_rewritten: bool) -> dict[str, Any]:
            load = Load(model=model, slots=4, requests=40)
            return run_load(load, port=stub.port, core=core, is_rewritten=is_rewritten)

        for is_rewritten in (False, True):
            for shape in SHAPES:
                report = ask(shape, is_rewritten)
                if report["errors"] or report["all_answers"] != 40:
                    raise RuntimeError(f"right answers ({shape}) were refused: {report}")
            for fault, shape in product(FAULTS, ("each-20", "once-20")):
                report = ask(model := f"{shape}-0-{fault}", is_rewritten)
                if report["errors"] != 40 or report["all_answers"]:
                    raise RuntimeError(f"wrong answers ({model}) went unnoticed: {report}")
