"""A worker that leaks outside the ledger: the proof that the soak can fail.

    python -m soak.leaky RATE run --config FILE …     tidegate, with such workers
    python -m soak.leaky RATE worker --channel FD     one of them

Nothing that is shipped knows this module: the command that a watchdog starts its workers with is
an argument of `start.run`, and here it is given another one. RATE is bytes a second.
"""

from __future__ import annotations

import functools
import sys
import threading
import time

PIECES_PER_S = 4


def main() -> int:
    """Run as the watchdog or a worker, as the second argument says."""
    rate, *rest = sys.argv[1:]
    if rest[0] == "worker":
        from tidegate.gateway import worker  # noqa: PLC0415  (each process loads its own part)

        threading.Thread(target=leak, args=(int(rate),), daemon=True).start()
        return worker.main(rest[1:])
    from tidegate.cli.main import main as tidegate  # noqa: PLC0415
    from tidegate.watchdog import start  # noqa: PLC0415

    command = (sys.executable, "-m", "soak.leaky", rate, "worker")
    start.run = functools.partial(start.run, worker_command=command)
    sys.argv = ["tidegate", *rest]
    return tidegate()


def leak(bytes_per_s: int) -> None:
    """Keep more and more, in small pieces, as forgotten buffers of runs would be."""
    kept: list[bytes] = []
    while True:
        kept.append(b"x" * (bytes_per_s // PIECES_PER_S))
        time.sleep(1 / PIECES_PER_S)


if __name__ == "__main__":
    sys.exit(main())
