"""A worker with a fault planted in it: it holds memory that no ledger explains.

    python leaky_worker.py --leak FILE --beat-s S --channel FD

FILE says "RATE MOST PID": so many bytes a second are taken, up to so many, by that process or (0)
by any; when MOST falls below what is held, that much is given back at once. The file is read again
and again, so a test turns the leak on and off. Otherwise this is the worker as it ships, but for
how often it beats.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import threading
import time
from pathlib import Path

from tidegate.gateway import worker

PIECE_BYTES = 64 * 1024
EVERY_S = 0.02


def leak(plan: Path) -> None:
    """Hold what the plan says, for ever."""
    held: list[mmap.mmap] = []
    owed_bytes = 0.0
    read_s = time.monotonic()
    while True:
        time.sleep(EVERY_S)
        now_s, former_s = time.monotonic(), read_s
        read_s = now_s
        try:
            rate, most, pid = map(int, plan.read_text().split())
        except OSError:  # no leak was asked for yet
            continue
        if pid not in {0, os.getpid()}:
            continue
        room_bytes = most - len(held) * PIECE_BYTES
        owed_bytes = min(owed_bytes + rate * (now_s - former_s), max(0, room_bytes))
        while owed_bytes >= PIECE_BYTES:
            owed_bytes -= PIECE_BYTES
            piece = mmap.mmap(-1, PIECE_BYTES)
            piece.write(b"x" * PIECE_BYTES)  # only what was touched is resident
            held.append(piece)
        while held and len(held) * PIECE_BYTES > most:
            held.pop().close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--leak", type=Path, required=True)
    parser.add_argument("--beat-s", type=float, default=worker.HEARTBEAT_S)
    options, rest = parser.parse_known_args()
    worker.HEARTBEAT_S = options.beat_s
    threading.Thread(target=leak, args=(options.leak,), daemon=True).start()
    return worker.main(rest)


if __name__ == "__main__":
    sys.exit(main())
