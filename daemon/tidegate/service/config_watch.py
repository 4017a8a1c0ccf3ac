"""The config file changing, seen by looking at it.

Asked by its path twice a second, the system follows whatever lies on the way: links into a
dotfiles or Nix tree, Kubernetes' `..data`, a directory that is made later, removed and made
again, a file on a network share. Events of directories (inotify, FSEvents) were tried: each of
those cases needs a watch of its own, and a Mac reports all of a tree where one file is meant.

A change is told once the file has stayed as it is from one look to the next, so that an editor
is not read in the middle of its writing. A look takes a microsecond, in a thread: a share
that does not answer must not stop the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

LOOK_EVERY_S = 0.5

Seen = tuple[int, ...]


def look(path: Path) -> Seen:
    """What tells one state of the file from another, its absence included."""
    try:
        found = path.stat()
    except OSError as error:  # not there, or not for us: that it is so may change too
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


async def changes(path: Path, every_s: float = LOOK_EVERY_S) -> AsyncIterator[None]:
    """Yields for each new state of the file, and once for the first.

    For it may have changed between its reading and our first look.
    """
    told: Seen | None = None
    former: Seen | None = None
    while True:
        seen = await asyncio.to_thread(look, path)
        if seen == former and seen != told:
            told = seen
            yield
        former = seen
        await asyncio.sleep(every_s)
