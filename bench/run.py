"""Measure tidegate beside nginx and beside no gateway at all, in one run.

    python bench/run.py --rounds 5 --only W1b,W4 --peers direct,nginx,tidegate

The contenders take turns, each starts fresh in every round, and a round that neighbours disturbed
is repeated, as often as there are rounds at most. README.md here says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time

from peers import STARTS, why_missing
from report import summarise, table
from tools import BUILD, check_tools, compile_tools
from workloads import Cores, Round, measure, measure_memory, workloads

MEMORY_TEXT = "MiB idle (parent and worker), 1,000 idle streams, after 2,000 streams of 300 KB"


def main() -> int:
    """Measure, print tables, and write them with every round under build/bench."""
    arguments = _arguments()
    cores = _cores()
    os.sched_setaffinity(0, {cores.harness})
    known = workloads(arguments.seconds)
    names = arguments.only.split(",")
    peers = _present(arguments.peers.split(","))
    if unknown := set(names) - {*known, "M"}:
        sys.exit(f"no such workload: {', '.join(sorted(unknown))}")
    compile_tools()
    check_tools(cores.harness)
    rounds: list[Round] = []
    texts: list[str] = []
    try:
        for name in names:
            rounds += _measure_workload(name, peers, cores, arguments.rounds, arguments.seconds)
            what = MEMORY_TEXT if name == "M" else known[name].what
            if name in (summary := summarise(rounds)):
                texts.append(table(name, what, summary[name]))
                print(texts[-1], end="\n\n", flush=True)
    finally:
        _write(rounds, texts)  # What has been measured is worth keeping if a contender fails.
    return 1 if any(r["errors"] for r in rounds) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="quiet rounds wanted of each")
    parser.add_argument("--only", default="W1,W1b,W2,W3,W4,M", help="workloads")
    parser.add_argument("--peers", default=",".join(STARTS), help="contenders")
    parser.add_argument("--seconds", type=float, default=3.0, help="what is counted of a round")
    return parser.parse_args()


def _cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        sys.exit("two cores are needed: one for the gateway, one for the stub and the load client")
    return Cores(gateway=allowed[-1], harness=allowed[0])


def _present(names: list[str]) -> list[str]:
    present = []
    for name in names:
        if name not in STARTS:
            sys.exit(f"no such contender: {name}")
        if (why := why_missing(name)) is None:
            present.append(name)
        else:
            print(f"without {name}: {why}", file=sys.stderr)
    return present


def _measure_workload(
    name: str, peers: list[str], cores: Cores, wanted: int, seconds: float
) -> list[Round]:
    """Play rounds of one workload, contenders in turn, until enough are quiet or too many noisy."""
    rounds: list[Round] = []
    contenders = [peer for peer in peers if not (name == "M" and peer == "direct")]
    for number in range(2 * wanted):
        for peer in contenders:
            if sum(r["peer"] == peer and not r["noisy"] for r in rounds) == wanted:
                continue
            if name == "M":
                found = measure_memory(peer, cores)
            else:
                found = measure(workloads(seconds)[name], peer, cores)
            rounds.append({**found, "round": number})
            _say(rounds[-1])
    return rounds


def _say(found: Round) -> None:
    names = {"answers_per_s": "req/s", "events_per_s": "chunks/s", "burst_s": "s for the burst"}
    speed = ", ".join(f"{found[name]:,.1f} {unit}" for name, unit in names.items() if name in found)
    noise = f", noisy: foreign {found['foreign']:.0%}" if found["noisy"] else ""
    trouble = f", {found['errors']} errors: {found['first_error']}" if found["errors"] else ""
    where = f"{found['workload']} {found['peer']} round {found['round']}"
    print(f"{where}: {speed}{noise}{trouble}", file=sys.stderr)


def _write(rounds: list[Round], texts: list[str]) -> None:
    about = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }
    stem = BUILD / time.strftime("%Y%m%d-%H%M%S")
    found = {"about": about, "summary": summarise(rounds), "rounds": rounds}
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".txt").write_text("\n\n".join(texts) + "\n")
    print(f"written: {stem}.json and .txt")


if __name__ == "__main__":
    sys.exit(main())
