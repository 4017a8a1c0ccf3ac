"""The relay that anyone would write first: aiohttp's server, aiohttp's client, uvloop.

    python bench/ceiling_aiohttp.py PORT UPSTREAM_PORT

No token, no limit, nothing is checked or recorded: it shows what these libraries cost by
themselves.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

PORT, UPSTREAM_PORT = map(int, sys.argv[1:])
SESSION = web.AppKey("session", ClientSession)
HANDED_ON = ("Content-Type", "Content-Length")


async def relay(request: web.Request) -> web.StreamResponse:
    """Send a request upstream, and the answer back as it comes."""
    async with request.app[SESSION].request(
        request.method,
        f"http://127.0.0.1:{UPSTREAM_PORT}{request.path}",
        data=await request.read(),
        headers={"Content-Type": request.content_type},
    ) as answer:
        headers = {name: answer.headers[name] for name in HANDED_ON if name in answer.headers}
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


async def open_session(app: web.Application) -> AsyncIterator[None]:
    """Keep one client with as many connections as are asked for."""
    connector, timeout = TCPConnector(limit=0), ClientTimeout(total=None)
    async with ClientSession(connector=connector, timeout=timeout) as app[SESSION]:
        yield


app = web.Application()
app.router.add_route("*", "/{path:.*}", relay)
app.cleanup_ctx.append(open_session)
web.run_app(
    app,
    host="127.0.0.1",
    port=PORT,
    backlog=4096,
    access_log=None,
    print=None,
    loop=uvloop.new_event_loop(),
)
