"""Small questions to the machine: a free port, who is alive, has it happened yet."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
LIMIT_S = 30.0  # for what must happen at all, on a machine that others use too


def free_port() -> int:
    """A port that had no listener a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(
    holds: Callable[[], T],
    limit_s: float = LIMIT_S,
    what: str = "it comes true",
    every_s: float = 0.02,
) -> T:
    """Waits for what is true; its value. Fails with `what` when it does not come true in time."""
    deadline_s = time.monotonic() + limit_s
    while not (value := holds()):
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s: {what}"
        time.sleep(every_s)
    return value


async def until(
    holds: Callable[[], object],
    limit_s: float = LIMIT_S,
    what: str = "it comes true",
    every_s: float = 0.02,
) -> None:
    """The same on an event loop."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s: {what}"
        await asyncio.sleep(every_s)


async def stop_listening(server: asyncio.Server) -> None:
    """Closes a listener of this loop and loses no socket that it has accepted.

    asyncio makes a connection of an accepted socket in a task. When its server is closed before
    that, or the task is cancelled, the socket is dropped unclosed.
    """
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    await asyncio.sleep(0)  # the tasks run
    await asyncio.sleep(0)  # and their protocols hear of it
    server.close()


def family(pid: int) -> list[psutil.Process]:
    """A process and all that came from it."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, and is not just waiting to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rss_bytes(pid: int) -> int:
    """The memory a process has resident."""
    return int(psutil.Process(pid).memory_info().rss)


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    fds = Path(f"/proc/{pid}/fd")
    return len(list(fds.iterdir())) if fds.exists() else int(psutil.Process(pid).num_fds())
