"""The request that opens a WebSocket, and its answer (RFC 6455, section 4)."""

from __future__ import annotations

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from tidegate.core.http.frames import accept_of
from tidegate.gateway import web
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.ids import id_headers, new_id

# What a page's WebSocket can carry a token in, for a browser lets it set no header; the second is
# that of OpenAI's own client.
_TOKEN_PROTOCOLS = ("tidegate-token.", "openai-insecure-api-key.")
_PROTOCOLS = frozenset({"tidegate", "realtime"})  # one of them is offered beside it, and chosen


def offered_tokens(headers: CIMultiDictProxy[str]) -> list[str]:
    """List the tokens among the subprotocols that are offered."""
    return [
        each.removeprefix(prefix)
        for each in _offered(headers)
        for prefix in _TOKEN_PROTOCOLS
        if each.startswith(prefix)
    ]


def _offered(headers: CIMultiDictProxy[str]) -> list[str]:
    values = headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ())
    return [each.strip(" \t") for value in values for each in value.split(",")]


def accept_handshake(request: web.BaseRequest) -> bytes:
    """Make the answer that turns a request into a WebSocket. Raises Refused where it is none."""
    headers = request.headers
    protocol = request.protocol
    if request.method != hdrs.METH_GET or not getattr(protocol, "upgrades", False):
        raise Refused(
            400,
            "a WebSocket is opened by GET with Upgrade: websocket and Connection: Upgrade",
            "bad_handshake",
        )
    if headers.get(hdrs.SEC_WEBSOCKET_VERSION) != "13":
        raise Refused(
            426,
            "only version 13 of the WebSocket protocol is spoken",
            "bad_handshake",
            headers={hdrs.SEC_WEBSOCKET_VERSION: "13"},
        )
    accept = accept_of(headers.get(hdrs.SEC_WEBSOCKET_KEY, ""))
    if accept is None:
        raise Refused(400, "Sec-WebSocket-Key is not 16 bytes in base64", "bad_handshake")
    fields = {
        hdrs.UPGRADE: "websocket",
        hdrs.CONNECTION: "Upgrade",
        hdrs.SEC_WEBSOCKET_ACCEPT: accept,
        **id_headers(new_id("req")),
    }
    chosen = next((each for each in _offered(headers) if each in _PROTOCOLS), None)
    if chosen is not None:
        fields[hdrs.SEC_WEBSOCKET_PROTOCOL] = chosen
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode("ascii")
