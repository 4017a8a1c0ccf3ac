"""What a client is told when its request cannot be served.

Each caller reads its own shape: OpenAI's, Anthropic's on its routes, Ollama's on its. A message
names the rule and the setting. It repeats nothing that a client sent, unless a grammar has shown
that it can't be a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from tidegate.core.formats import anthropic, ollama, openai
from tidegate.core.formats.base import ErrorText, Shape
from tidegate.gateway import web
from tidegate.gateway.server.ids import id_headers, new_id

DEMO_PATH = "/demo"  # the built-in upstream's, in place of /v1
INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
NO_MEMORY = ErrorText(
    503,
    "memory is short (memory.budget), so there is no new connection now",
    SERVER_ERROR,
    "memory_limit",
)
ALL_IN_USE = ErrorText(
    503,
    "all connections are in use (limits.max_connections, or fewer where descriptors are few)",
    SERVER_ERROR,
    "too_many_connections",
)


class Refused(Exception):
    """A request that is turned away, with the answer that says why."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        type: str = INVALID_REQUEST,  # noqa: A002 - the name that it has in the answer
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        """`close` ends the connection after the answer, for a body that is not read."""
        super().__init__(message)
        self.error = ErrorText(status, message, type, code, param)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers
        self.close = close

    def response(self, path: str = "") -> web.Response:
        """Make the answer to send, in the shape that clients of `path` read."""
        answer = error_response(self.error, path, self.headers)
        if self.close:
            answer.force_close()
        return answer


def shape_for(path: str) -> Shape:
    """Say how errors look to clients of a path, be it as they wrote it or as the demo is asked."""
    path = path.partition("?")[0]
    if path.startswith(DEMO_PATH):
        inner = path.removeprefix(DEMO_PATH)
        path = inner if inner.startswith("/api/") else f"/v1{inner}"
    if f"{path}/".startswith("/v1/messages/"):
        return anthropic.error_body
    if f"{path}/".startswith("/api/"):
        return ollama.error_body
    return openai.error_body


def error_response(
    error: ErrorText, path: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    """Make an error an answer of aiohttp's."""
    return web.Response(
        status=error.status,
        body=shape_for(path)(error),
        headers={**id_headers(new_id("req")), **(headers or {})},
        content_type="application/json",
    )


def closing_answer(
    error: ErrorText, path: str = "", *, headers: Mapping[str, str] | None = None
) -> bytes:
    """Make an error the bytes of a whole answer, for a connection without a request to answer.

    It always announces the end of the connection.
    """
    body = shape_for(path)(error)
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **id_headers(new_id("req")),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{head}\r\n".encode("ascii")
        + body
    )
