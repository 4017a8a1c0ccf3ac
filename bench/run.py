"""Measure tidegate beside nginx, beside the barest relay in Python, and beside no gateway at all.

    python bench/run.py --rounds 5 --only W1b,W4 --peers direct,nginx,tidegate

The contenders take turns, each starts fresh in every round, and a round that neighbours disturbed
is repeated while there is time for it. README.md here says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import machine
import targets
from contenders import DEFAULT, STARTS, version
from installs import CannotInstallError
from peers import NotReadyError
from report import page, summarise, table
from rounds import Cores, Round
from tools import BUILD, check_tools, compile_tools
from workloads import Workload, workloads

REPEAT_S = 8  # what a noisy round takes at most; M is never called noisy
ORDER = ["W1b", "W4", "W3", "W1", "C", "K", "M"]  # W2 is asked for by name


def main() -> int:
    """Measure, print tables and verdicts, and write them with every round under build/bench."""
    arguments = _arguments()
    if arguments.table is not None:
        print(page(json.loads(arguments.table.read_text())))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # What was started is ended.
    deadline_s = time.monotonic() + 60 * arguments.minutes
    cores = _cores()
    os.sched_setaffinity(0, {cores.harness})
    known = workloads(arguments.seconds)
    names = arguments.only.split(",")
    if unknown := set(names) - known.keys():
        sys.exit(f"no such workload: {', '.join(sorted(unknown))}")
    versions = _present(list(STARTS) if arguments.peers == "all" else arguments.peers.split(","))
    compile_tools()
    check_tools(cores.harness)
    rounds: list[Round] = []
    try:
        asked = [known[name] for name in names]
        for found in play(asked, list(versions), cores, arguments.rounds, deadline_s):
            rounds.append(found)
            _say(found)
    finally:  # What has been measured is worth keeping if a contender fails.
        summary = summarise(rounds)
        text = "\n\n".join(table(name, known[name].what, summary[name]) for name in summary)
        text += "\n\n" + targets.table(targets.judge(summary))
        print(text)
        _write(rounds, text, versions)
    return 1 if any(r["errors"] for r in rounds) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="of each workload, a third of M")
    parser.add_argument("--only", default=",".join(ORDER), help="workloads")
    parser.add_argument("--peers", default=",".join(DEFAULT), help=f"all, or of {','.join(STARTS)}")
    parser.add_argument("--seconds", type=float, default=1.5, help="what is counted of a round")
    parser.add_argument(
        "--minutes", type=float, default=5, help="noisy rounds are repeated until then"
    )
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print a run of earlier as README.md has it"
    )
    return parser.parse_args()


def _cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        sys.exit("two cores are needed: one for the gateway, one for the stub and the load client")
    return Cores(gateway=allowed[-1], harness=allowed[0])


def _present(names: list[str]) -> dict[str, str]:
    """Have the contenders ready to start. Returns the version of each that could be had."""
    versions = {}
    for name in names:
        if name not in STARTS:
            sys.exit(f"no such contender: {name}")
        try:
            versions[name] = version(name)
        except CannotInstallError as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return versions


def play(
    asked: list[Workload], peers: list[str], cores: Cores, wanted: int, deadline_s: float
) -> Iterator[Round]:
    """Play all rounds, contenders in turn, and then the noisy ones again while there is time."""
    missing: Counter[tuple[Workload, str]] = Counter()
    for workload in asked:
        contenders = [peer for peer in peers if workload.has_direct or peer != "direct"]
        rounds = -(-wanted // 3) if workload.is_steady else wanted
        for number, peer in product(range(rounds), contenders):
            if peer not in peers:
                continue  # It did not start the last time.
            try:
                found = workload.measure(peer, cores)
            except NotReadyError as error:
                if peer == "tidegate":
                    raise
                print(f"without {peer} from here: {error}", file=sys.stderr)
                peers.remove(peer)
                continue
            missing[workload, peer] += found["noisy"]
            yield {**found, "round": number}
    while (+missing).keys():
        for workload, peer in +missing:
            if time.monotonic() > deadline_s - REPEAT_S:
                return
            found = workload.measure(peer, cores)
            missing[workload, peer] -= not found["noisy"]
            yield {**found, "round": "again"}


def _say(found: Round) -> None:
    names = {"answers_per_s": "req/s", "events_per_s": "chunks/s", "burst_s": "s for the burst"}
    speed = ", ".join(f"{found[name]:,.1f} {unit}" for name, unit in names.items() if name in found)
    noise = f", noisy: foreign {found['foreign']:.0%}" if found["noisy"] else ""
    trouble = f", {found['errors']} errors: {found['first_error']}" if found["errors"] else ""
    where = f"{found['workload']} {found['peer']} round {found['round']}"
    print(f"{where}: {speed}{noise}{trouble}", file=sys.stderr)


def _write(rounds: list[Round], text: str, versions: dict[str, str]) -> None:
    about = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "processor": machine.processor(),
        "versions": versions,
    }
    summary = summarise(rounds)
    stem = BUILD / time.strftime("%Y%m%d-%H%M%S")
    found = {"about": about, "summary": summary, "rounds": rounds}
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    stem.with_suffix(".txt").write_text(text + "\n")
    print(f"written: {stem}.json and .txt")


if __name__ == "__main__":
    sys.exit(main())
