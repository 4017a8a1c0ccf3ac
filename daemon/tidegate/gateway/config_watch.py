"""The config file changing: watchfiles says that something stirs, a look at the path says what.

Asked by its path, the system follows whatever lies on the way: links into a dotfiles or Nix tree,
Kubernetes' `..data`, a directory that is made later, removed and made again. So a look is the
truth, and events only say when to take one: those of the directory that the path names, or of the
nearest that is there, and of the one that its links lead to. What no event tells (a link swapped
further up, a network share, a system out of watches) is found by the look that comes anyway.

A change is told once the file has stayed as it is from one look to the next, so that an editor
is not read in the middle of its writing. A look takes a microsecond, in a thread: a share
that does not answer must not stop the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from watchfiles import watch

SETTLE_S = 0.2  # between two looks that have to agree
LOOK_EVERY_S = 2.0  # without any event

Seen = tuple[int, ...]
_log = logging.getLogger(__name__)


def look(path: Path) -> Seen:
    """Look at what tells one state of the file from another, its absence included."""
    try:
        found = path.stat()
    except OSError as error:  # not there, or not for us: that it is so may change too
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def directories(path: Path) -> set[Path]:
    """Find where an event may tell of it: the nearest directory that is there, its links' end."""
    parents = path.absolute().parents
    near = next(each for each in parents if os.path.isdir(each))  # noqa: PTH112  (it never raises)
    try:
        end = path.resolve(strict=True).parent
    except (OSError, RuntimeError):  # it is not there, or its links go round
        return {near}
    return {near, end}


async def changes(path: Path, every_s: float = LOOK_EVERY_S) -> AsyncGenerator[None, None]:
    """Yield for each new state of the file, and once for the first.

    For it may have changed between its reading and our first look.
    """
    told: Seen | None = None
    async with aclosing(_stirs(path, every_s)) as stirs:
        async for _ in stirs:
            seen = await _settled(path, min(SETTLE_S, every_s))
            if seen != told:
                told = seen
                yield


async def _settled(path: Path, every_s: float) -> Seen:
    """Wait until two looks in a row find the file alike."""
    former: Seen | None = None
    while (seen := await asyncio.to_thread(look, path)) != former:
        former = seen
        await asyncio.sleep(every_s)
    return seen


async def _stirs(path: Path, every_s: float) -> AsyncGenerator[None, None]:
    """Yield now, whenever something happens where the file is, and every `every_s`."""
    is_told = False
    yield
    while True:
        places = await asyncio.to_thread(directories, path)
        stop = threading.Event()
        try:
            events = watch(
                *places,
                watch_filter=None,
                recursive=False,
                stop_event=stop,
                step=50,
                debounce=200,
                rust_timeout=max(1, int(every_s * 1000)),
                yield_on_timeout=True,
            )
            # A thread of ours: `awatch` would import anyio's loop, after we are ready.
            while await asyncio.to_thread(next, events, None) is not None:
                yield
                if await asyncio.to_thread(directories, path) != places:
                    break
        except (OSError, RuntimeError) as error:  # out of watches, or the directory went just now
            if not is_told:
                _log.info("the config is looked at every %g s only: %s", every_s, error)
            is_told = True
            await asyncio.sleep(every_s)
            yield
        finally:
            stop.set()
