"""A worker in which objects that hold each other are lost after a while; it tells when they go.

    python cyclic_worker.py --lose FILE --channel FD

They are there from the start, so the collector has frozen them; they are lost when FILE exists.
Otherwise this is the worker as it ships, but for how soon it thinks that all is quiet.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import weakref
from pathlib import Path

from tidegate.gateway import heap_upkeep, worker
from tidegate.machine import collector

COUNT = 1_000
EVERY_S = 0.02


class Node:
    """It holds itself."""

    def __init__(self) -> None:
        self.itself = self


def lose(nodes: list[Node], when: Path) -> None:
    """Let go of them, and work on until the collector has had reason to look."""
    left = len(nodes)

    def on_gone() -> None:
        nonlocal left
        left -= 1
        if not left:
            print("the last of the lost objects has gone", file=sys.stderr, flush=True)

    for node in nodes:
        weakref.finalize(node, on_gone)
    while not when.exists():
        time.sleep(EVERY_S)
    del node
    nodes.clear()
    print("they are lost", file=sys.stderr, flush=True)
    kept: list[list[int]] = []
    while True:
        kept += [[] for _ in range(1_000)]
        del kept[:-20_000]
        time.sleep(EVERY_S)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lose", type=Path, required=True)
    options, rest = parser.parse_known_args()
    worker.HEARTBEAT_S = heap_upkeep.TRIM_WHEN_QUIET_S = 0.1
    collector.LOOK_EVERY_S = 0.1
    nodes = [Node() for _ in range(COUNT)]
    threading.Thread(target=lose, args=(nodes, options.lose), daemon=True).start()
    return worker.main(rest)


if __name__ == "__main__":
    sys.exit(main())
