"""For how long does Python's garbage collector stop a worker that keeps many finished answers?

    python bench/pauses.py --runs 50000

A real tidegate relays so many short answers and keeps every one. Its worker notes each collection,
with nothing else changed. Then come `/metrics`, which is to cost the same however many runs are
kept, and a sweep that releases all of them. The exit code is 1 when a collection took more than
LIMIT_S of processor time: on a busy computer it stops the loop for longer than that.

Nothing that is shipped knows this module: see soak/leaky.py, which is planted in the same way.
"""

from __future__ import annotations

import argparse
import functools
import gc
import http.client
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]  # a worker begins in a directory of its own

from peers import free_port, run_gateway  # noqa: E402
from tools import Load, Stub, compile_tools, pinned, run_load, run_stub  # noqa: E402

LIMIT_S = 0.05
QUESTIONS = 30
QUIET_S = 8.0  # without a request: what the worker puts off until then takes place
LINE = "{:<44} {:>7} {:>9} {:>11} {:>11}"


@dataclass(frozen=True, slots=True)
class Pause:
    """One collection in the worker."""

    began_s: float
    generation: int
    took_s: float
    cpu_s: float  # without what other processes took meanwhile


def main() -> int:
    """Fill a worker, ask it, leave it alone, empty it; print the pauses of each act."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=50_000, help="finished answers that are kept")
    parser.add_argument("--slots", type=int, default=32, help="requests at a time")
    parser.add_argument("--cores", default="0,1", help="of the gateway, and of everything else")
    arguments = parser.parse_args()
    core, other = map(int, arguments.cores.split(","))
    compile_tools()
    with tempfile.TemporaryDirectory(prefix="tg-") as scratch, run_stub(other) as stub:
        folder = Path(scratch)
        notes = folder / "pauses"
        with run_gateway(*_gateway(stub, folder, notes, core)):
            acts = _play(arguments, folder, other)
        pauses = [Pause(float(a), int(b), float(c), float(d)) for a, b, c, d in _fields(notes)]
    print(
        LINE.format(
            f"Python {sys.version.split()[0]}", "number", "CPU ms", "longest CPU", "longest"
        )
    )
    for (what, from_s), (_, until_s) in pairwise(acts):
        for generation in range(3):
            seen = [
                (p.cpu_s * 1000, p.took_s * 1000)
                for p in pauses
                if p.generation == generation and from_s <= p.began_s < until_s
            ]
            if seen:
                words = (f"{what}, generation {generation}", len(seen))
                cpu_ms, took_ms = zip(*seen, strict=True)
                figures = (sum(cpu_ms), max(cpu_ms), max(took_ms))
                print(LINE.format(*words, *(f"{figure:.1f}" for figure in figures)))
    first_s, last_s = acts[0][1], acts[-1][1]
    longest_s = max((p.cpu_s for p in pauses if first_s <= p.began_s < last_s), default=0.0)
    print(
        f"longest collection: {longest_s * 1000:.1f} ms of CPU,"
        f" at most {LIMIT_S * 1000:g} ms are allowed"
    )
    return 1 if longest_s > LIMIT_S else 0


def _gateway(stub: Stub, folder: Path, notes: Path, core: int) -> tuple[list[str], int, Path]:
    """Return the gateway's command, its port and its log."""
    port = free_port()
    (folder / "port").write_text(str(port))
    (folder / "config.toml").write_text(f"""listen = "127.0.0.1:{port}"
[limits]
keep_finished_s = 3600.0
[memory]
budget = "4GiB"
[[upstream]]
name = "stub"
url = "http://127.0.0.1:{stub.port}"
""")
    command = [sys.executable, __file__, "run-with-notes", notes, *_places(folder)]
    return pinned(core, *command), port, folder / "log"


def _places(folder: Path) -> list[str]:
    return [
        *("--config", str(folder / "config.toml")),
        *("--state-dir", str(folder / "state")),
        *("--runtime-dir", str(folder / "run")),
    ]


def _fields(notes: Path) -> list[list[str]]:
    return [line.split() for line in notes.read_text().splitlines()]


def _play(arguments: argparse.Namespace, folder: Path, core: int) -> list[tuple[str, float]]:
    """Play the load; each phase and when it began, and the end of all as a last entry."""
    port = int((folder / "port").read_text())
    acts = []

    def act(what: str) -> None:
        acts.append((what, time.monotonic()))

    act("filling")
    load = Load(model="once-3", slots=arguments.slots, requests=arguments.runs, limit_ms=600_000)
    report = run_load(load, port=port, core=core)
    assert not report["errors"], report
    kept = _held(port)
    assert kept >= arguments.runs, f"only {kept} of {arguments.runs} answers are kept"
    act("asking /metrics")
    for path in ("/healthz", "/metrics"):
        seen = [_asked_s(port, path) * 1000 for _ in range(QUESTIONS)]
        print(f"{path}, {kept} runs: median {median(seen):.1f} ms, longest {max(seen):.1f} ms")
    act("quiet")
    time.sleep(QUIET_S)
    act("more of the same")
    load = Load(model="once-3", slots=arguments.slots, requests=arguments.runs // 10)
    report = run_load(load, port=port, core=core)
    assert not report["errors"], report
    act("releasing all")
    sweep = [sys.executable, "-m", "tidegate", "sweep", "--finished", *_places(folder)]
    subprocess.run(sweep, check=True, stdout=subprocess.DEVNULL)
    act("quiet again")
    time.sleep(QUIET_S)
    act("the end")
    return acts


def _asked_s(port: int, path: str) -> float:
    began_s = time.perf_counter()
    _get(port, path)
    return time.perf_counter() - began_s


def _held(port: int) -> int:
    lines = _get(port, "/metrics").decode().splitlines()
    return round(sum(float(line.split()[1]) for line in lines if line.startswith("tidegate_runs{")))


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


# --- inside ---------------------------------------------------------------------------------------


def be_watchdog(notes: str, arguments: list[str]) -> int:
    """Run a tidegate whose workers note their collections."""
    from tidegate.cli.main import main as tidegate  # noqa: PLC0415  (each process loads its part)
    from tidegate.watchdog import start  # noqa: PLC0415

    command = (sys.executable, __file__, "worker-with-notes", notes)
    start.run = functools.partial(start.run, worker_command=command)
    sys.argv = ["tidegate", "run", *arguments]
    return tidegate()


def be_worker(notes: str, arguments: list[str]) -> int:
    """Run a worker that writes a line for every collection."""
    from tidegate.gateway import worker  # noqa: PLC0415

    file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    began_s = cpu_s = 0.0

    def note(phase: str, about: dict[str, int]) -> None:
        nonlocal began_s, cpu_s
        if phase == "start":
            began_s, cpu_s = time.monotonic(), time.thread_time()
        else:
            took = f"{time.monotonic() - began_s} {time.thread_time() - cpu_s}"
            os.write(file, f"{began_s} {about['generation']} {took}\n".encode())

    gc.callbacks.append(note)
    return worker.main(arguments)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run-with-notes", path, *rest]:
            sys.exit(be_watchdog(path, rest))
        case ["worker-with-notes", path, *rest]:
            sys.exit(be_worker(path, rest))
    sys.exit(main())
