"""The page at `/`: its files, as they lie in the package.

The shell of the page is for all, for nothing is in it; every figure asks for a token. A file is
read when it is asked for, off the loop, so that a worker whose page is never looked at holds none.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from aiohttp import hdrs

from tidegate.gateway import web
from tidegate.gateway.gateway import Gateway
from tidegate.gateway.server.auth import Caller
from tidegate.gateway.server.errors import Refused

DIRECTORY = Path(__file__).parent / "static"
_SCRIPT = "text/javascript; charset=utf-8"
_STYLE = "text/css; charset=utf-8"
INDEX = "index.html"
# All there is. What is not in here is not there, whatever lies in the directory.
FILES = {
    INDEX: "text/html; charset=utf-8",
    "page.css": _STYLE,
    "uplot.css": _STYLE,
    "uplot.js": _SCRIPT,
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        (
            "answers.js",
            "connect.js",
            "dom.js",
            "live.js",
            "main.js",
            "memory.js",
            "models.js",
            "playground.js",
            "server.js",
            "text.js",
            "usage.js",
        ),
        _SCRIPT,
    ),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    hdrs.CACHE_CONTROL: "no-cache",  # asked anew each time, and mostly answered with 304
}


async def show_file(
    gateway: Gateway, request: web.BaseRequest, caller: Caller, name: str
) -> web.StreamResponse:
    """Send a file of the page. Raises Refused (404)."""
    if name not in FILES:
        raise Refused(404, "the page has no such file", "not_found")
    try:
        content = await gateway.loop.run_in_executor(None, (DIRECTORY / name).read_bytes)
    except OSError:  # another version has been installed over this one
        raise Refused(404, "the page has no such file; reload it", "not_found") from None
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, hdrs.ETAG: etag, hdrs.VARY: hdrs.ACCEPT}
    if request.headers.get(hdrs.IF_NONE_MATCH) == etag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=content, headers={**headers, hdrs.CONTENT_TYPE: FILES[name]})
