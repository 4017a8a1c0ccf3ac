"""What a client is told when its request cannot be served.

One shape for every error, OpenAI's, because every client library reads it:
`{"error": {"message", "type", "param", "code"}}`. A message names the rule and the setting. It
repeats nothing that a client sent, unless a grammar has shown that it can't be a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"

_encode = msgspec.json.Encoder().encode


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
        """`close` ends the connection after the answer, for a body that nobody will read."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.type = type
        self.param = param
        self.headers = headers
        self.close = close

    def response(self) -> web.Response:
        """The answer to send."""
        answer = error_response(
            self.status,
            self.message,
            type=self.type,
            code=self.code,
            param=self.param,
            headers=self.headers,
        )
        if self.close:
            answer.force_close()
        return answer


def error_body(
    message: str,
    *,
    type: str = INVALID_REQUEST,  # noqa: A002
    code: str | None = None,
    param: str | None = None,
) -> bytes:
    """The JSON of an error."""
    return _encode({"error": {"message": message, "type": type, "param": param, "code": code}})


def error_response(
    status: int,
    message: str,
    *,
    type: str = INVALID_REQUEST,  # noqa: A002
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """An error as an answer of aiohttp's."""
    return web.Response(
        status=status,
        body=error_body(message, type=type, code=code, param=param),
        headers=headers,
        content_type="application/json",
    )


def closing_answer(
    status: int, message: str, code: str, *, headers: Mapping[str, str] | None = None
) -> bytes:
    """An error as the bytes of a whole answer, for a connection that has no request to answer.

    It always announces the end of the connection.
    """
    body = error_body(message, type=SERVER_ERROR if status >= 500 else INVALID_REQUEST, code=code)
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode("ascii") + body
