"""The config file changing: a look at its path, once a second, says so.

A look follows whatever lies on the way: links into a dotfiles or Nix tree, Kubernetes' `..data`, a
directory that is made later, removed and made again. It takes a microsecond, in a thread: a share
that does not answer must not stop the loop.

A change is told once the file has stayed as it is from one look to the next, so that an editor
is not read in the middle of its writing.

What was tried instead: the system's own events, by watchfiles. They come 0.8 s earlier, miss what
happens further up the path or on a share, so that the looks were needed all the same, and cost an
idle worker 2.5 MiB (5 MiB that no other process shares).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

SETTLE_S = 0.2  # between two looks that have to agree
LOOK_EVERY_S = 1.0

Seen = tuple[int, ...]


def look(path: Path) -> Seen:
    """Look at what tells one state of the file from another, its absence included."""
    try:
        found = path.stat()
    except OSError as error:  # not there, or not for us: that it is so may change too
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


async def changes(path: Path, every_s: float = LOOK_EVERY_S) -> AsyncGenerator[None, None]:
    """Yield for each new state of the file, and once for the first.

    For it may have changed between its reading and our first look.
    """
    told: Seen | None = None
    former: Seen | None = None
    while True:
        seen = await asyncio.to_thread(look, path)
        has_settled, former = seen == former, seen
        if has_settled and seen != told:
            told = seen
            yield
        await asyncio.sleep(every_s if has_settled else min(SETTLE_S, every_s))
