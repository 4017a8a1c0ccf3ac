"""A process that writes into stores until it is ended, and says what is surely written.

`python -m gateway.stores.store_writer DIRECTORY NAME COUNT`, from the folder of the tests. Each
line it prints is the number of a batch: a run that is over, and the next piece of one that is not.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.stores.store_rig import a_row, entry, events, stores_in, under_way

PIECE = 5  # events


async def write(directory: Path, name: str, count: int) -> None:
    """Write so many batches; flush after each."""
    async with stores_in(directory) as rig:
        for n in range(count):
            going_on = under_way(f"{name}_on", events(PIECE * n, PIECE), PIECE * n, PIECE)
            over = entry(f"{name}_{n}", events(0, n), count=n)
            rig.stores.put([over, going_on], [a_row(f"{name}_{n}")])
            await rig.stores.flush(20)
            print(n, flush=True)
        if dropped := [state.dropped_bytes for state in rig.stores.states() if state.dropped_bytes]:
            raise SystemExit(f"{dropped} bytes were dropped")


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
