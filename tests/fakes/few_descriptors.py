"""A gateway whose process may open few files.

Usage: few_descriptors.py asyncio|uvloop LIMIT UPSTREAM_URL. Prints its port, and serves until
its input ends. A line on its input sets the limit to that many more than are in use.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from pathlib import Path

import uvloop

from tidegate.core.settings import Settings, Upstream
from tidegate.gateway.api import routes
from tidegate.gateway.gateway import Gateway

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def serve(url: str) -> None:
    """From the first connection to the end of the input."""
    gateway = Gateway(1, "/nonexistent/peer.sock", routes)
    gateway.configure(Settings(upstreams=[Upstream(name="box", url=url)]), [], {})
    listener = socket.create_server(("127.0.0.1", 0))
    await gateway.accept_clients([listener])
    print(listener.getsockname()[1], flush=True)
    asyncio.get_running_loop().add_reader(0, limit_more)
    while not over:  # noqa: ASYNC110 - the input announces itself to a callback
        await asyncio.sleep(0.01)
    await gateway.close()


over: list[bool] = []


def limit_more() -> None:
    """Carries out one line."""
    line = os.read(0, 100).strip()
    if not line:
        asyncio.get_running_loop().remove_reader(0)
        over.append(True)
        return
    in_use = max(int(each.name) for each in Path("/dev/fd").iterdir())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + int(line), hard))
    print("limited", flush=True)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr)
    limit = int(sys.argv[2])
    if limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
        runner.run(serve(sys.argv[3]))
