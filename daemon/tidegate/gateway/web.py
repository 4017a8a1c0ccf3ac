"""aiohttp's server side, as far as it is used here.

`aiohttp.web` itself would bring its router, its files and argparse along: 1.4 MiB of each worker.
"""

from __future__ import annotations

from aiohttp.helpers import RequestKey
from aiohttp.web_protocol import RequestHandler, RequestPayloadError
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse, json_response
from aiohttp.web_server import Server

# What the head of a request's answer has besides, for a page of another origin.
PAGE_FIELDS = RequestKey("PAGE_FIELDS", dict[str, str])

__all__ = [
    "PAGE_FIELDS",
    "BaseRequest",
    "RequestHandler",
    "RequestPayloadError",
    "Response",
    "Server",
    "StreamResponse",
    "json_response",
]
