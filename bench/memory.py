"""The memory guard with and without its hands, side by side, under one flood.

    python bench/memory.py --left 500 --blind 200

Each mode is played on a fresh start: runs without a reader fill their windows, clients never
read, twenty read. What the daemon holds is read from outside, twenty times a second, as the
system that kills for memory would count it. The exit code is 1 if the acting guard passed its
budget or a reader lost a byte.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the scene is the one that the tests play

from fakes.memory_flood import BUDGET_MIB, MIB, Played, Size, play  # noqa: E402
from fakes.scaled_gateway import scaled_gateways  # noqa: E402

BUILD = ROOT / "build" / "bench"
STEP_LINE = "{step:>12} {times:>6} {runs:>6} {promised:>10.1f} {freed:>10.1f} {ms:>8.1f}"


def main() -> int:
    """Play both, print the table, write everything under build/bench."""
    parser = argparse.ArgumentParser(description="The memory guard acting and only observing.")
    parser.add_argument("--left", type=int, default=500, help="runs without a reader")
    parser.add_argument("--blind", type=int, default=200, help="clients that never read")
    parser.add_argument("--live", type=int, default=20, help="clients that read")
    parser.add_argument("--load-s", type=float, default=60.0, help="then the refused give up")
    arguments = parser.parse_args()
    size = Size(
        left=arguments.left,
        blind=arguments.blind,
        live=arguments.live,
        load_limit_s=arguments.load_s,
    )
    played: list[Played] = []
    for mode in ("enforce", "observe"):
        print(f"playing: {mode}", file=sys.stderr)
        with scaled_gateways() as start:
            played.append(play(start, mode, size))
    print(table(played))
    print(steps(played[0]))
    _write(played)
    acting = played[0]
    held = acting.peak_bytes <= BUDGET_MIB * MIB and acting.live["exact"] == size.live
    return 0 if held else 1


def table(played: list[Played]) -> str:
    """Write the table, one column a mode."""
    rows: list[tuple[str, list[str]]] = [
        (f"peak MiB, of a budget of {BUDGET_MIB}", [f"{p.peak_bytes / MIB:.0f}" for p in played]),
        ("peak after s", [f"{p.peak_at_s:.1f}" for p in played]),
        ("MiB at the end", [f"{p.end_bytes / MIB:.0f}" for p in played]),
        ("levels", [" ".join(map(str, p.levels)) for p in played]),
        ("level 0 again after s", [_seconds(p.settled_s) for p in played]),
        ("load s", [f"{p.load_s:.1f}" for p in played]),
        ("left runs accepted", [str(p.left["accepted"]) for p in played]),
        ("  503 on the way", [str(p.left["refused"]) for p in played]),
        ("readers exact, of", [f"{p.live['exact']} of {p.live['asked']}" for p in played]),
        ("generation at the end", [str(p.status["generation"]) for p in played]),
    ]
    head = f"{'':<34}" + "".join(f"{p.mode:>16}" for p in played)
    return "\n".join([head, *(f"{n:<34}" + "".join(f"{v:>16}" for v in vs) for n, vs in rows)])


def steps(played: Played) -> str:
    """Say what each step of reclaiming did."""
    head = (
        f"{'step':>12} {'times':>6} {'runs':>6} {'promised':>10} {'freed MiB':>10} {'ms each':>8}"
    )
    lines = [
        STEP_LINE.format(
            step=name,
            times=step["times"],
            runs=step["runs"],
            promised=step["promised_bytes"] / MIB,
            freed=step["freed_bytes"] / MIB,
            ms=1000 * step["seconds"] / max(1, step["times"]),
        )
        for name, step in played.steps.items()
    ]
    return "\n".join(["", head, *lines])


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def _write(played: list[Played]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / time.strftime("memory-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps([asdict(each) for each in played], indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    sys.exit(main())
