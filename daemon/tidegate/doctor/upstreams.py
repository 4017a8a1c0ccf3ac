"""Checks that each upstream gives tokens, by asking it for some.

A server that answers its health route and lists its models may still hang at the first prompt, so
nothing less than an answer counts. The prompt is one short sentence and the answer is cut after
`MOST_LOCAL` tokens, or `MOST_PAID` where a provider may send a bill. Every wait has an end.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from errno import EHOSTUNREACH
from typing import Any

from msgspec import Struct

from tidegate import __version__
from tidegate.core.http.url import parse_url
from tidegate.core.problems import Problem
from tidegate.core.secret import Secret
from tidegate.core.settings import Upstream
from tidegate.core.upstreams.address import WELL_KNOWN, address_of
from tidegate.doctor.findings import finding
from tidegate.gateway.upstreams.tls import trusting

MOST_LOCAL = 16
MOST_PAID = 4
CONNECT_S = 5.0
LOCAL_S = 1.0  # to a port of this computer
ANSWER_S = 18.0  # within the doctor's half minute; a large model may take longer to load
SLOW_S = 10.0
MAX_BYTES = 4 * 1024 * 1024  # of a list
MAX_LINE = 256 * 1024  # of a stream
READ_BYTES = 64 * 1024
_PROMPT = [{"role": "user", "content": "Count from one to five."}]
_OTHER_KINDS = ("embed", "rerank", "whisper", "tts", "bge-", "clip", "dall-e", "moderation")
_VERSION = "2023-06-01"  # of Anthropic's API; every request of theirs has to name one


class Probe(Struct, frozen=True, kw_only=True):
    """The result of asking one upstream; no `problem` when it gave tokens, or was not asked to."""

    name: str
    model: str | None = None
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    tokens: int = 0
    is_paid: bool = False
    problem: Problem | None = None

    @property
    def text(self) -> str:
        """Say in a line how it went; "" where the problem says it all."""
        if self.first_token_s is None:
            if self.problem is not None:
                return ""
            return f"{self.name} lists {self.model or 'no model'}; it was not asked for tokens"
        paid = f", {self.tokens} tokens asked of its account" if self.is_paid else ""
        speed = "" if self.tokens_per_s is None else f", {self.tokens_per_s:.1f} tokens/s"
        return f"{self.name}: {self.model} began after {self.first_token_s:.2f} s{speed}{paid}"


class _ProbeError(Exception):
    """Why an upstream is of no use, as a finding."""

    def __init__(self, kind: str, cause: str, fix: str) -> None:
        super().__init__(cause)
        self.kind, self.cause, self.fix = kind, cause, fix


def is_paid(upstream: Upstream, key: str | None) -> bool:
    """Tell whether a request may cost money: it has a key, and the upstream is not at home."""
    return key is not None and not parse_url(upstream.url).is_at_home


def probe(
    upstream: Upstream,
    key: str | None,
    *,
    headers: Mapping[str, str] | None = None,
    authority: str | None = None,
    wanted: str | None = None,
    asks_tokens: bool = True,
    answer_s: float = ANSWER_S,
) -> Probe:
    """Ask for an answer of the model `wanted`, else of the first listed; or for the list only.

    `headers` are its secret ones, `authority` the certificates of its `ca_file`.
    """
    paid = is_paid(upstream, key)
    endpoint = _Endpoint(upstream, key, headers or {}, authority)
    begun_s = time.monotonic()
    model = None
    try:
        if not asks_tokens:
            listed = _first_model(endpoint, begun_s + answer_s)
            return Probe(name=upstream.name, model=listed, is_paid=paid)
        model = wanted or _first_model(endpoint, begun_s + answer_s)
        return _ask(endpoint, model, paid, begun_s + answer_s)
    except _ProbeError as error:
        cause = Secret(key, *(headers or {}).values()).hide(f'"{upstream.name}" {error.cause}')
        problem = finding(error.kind, cause, error.fix, upstream.name)
        return Probe(name=upstream.name, model=model, is_paid=paid, problem=problem)


def none_here() -> Problem:
    """Report that no upstream is configured, and none listens where local servers usually do."""
    return finding(
        "upstreams-none",
        "no upstream is configured and none is found on this computer: the built-in demo answers",
        "start Ollama, llama.cpp, LM Studio or vLLM here, or name an [[upstream]] in the config",
    )


def find_local() -> list[Upstream]:
    """Return an upstream for each server that listens at a usual port of this computer."""
    found = []
    for title, _, url in WELL_KNOWN:
        where = parse_url(url)
        try:
            socket.create_connection((where.host, where.port), LOCAL_S).close()
        except OSError:
            continue
        found.append(Upstream(name=title, url=url))
    return found


class _Endpoint:
    """An upstream's address and headers, and how requests are sent to it."""

    def __init__(
        self, upstream: Upstream, key: str | None, headers: Mapping[str, str], authority: str | None
    ) -> None:
        self.upstream = upstream
        self._authority = authority
        address = address_of(upstream, headers)
        self.unix_path = address.url.socket_path
        self.host = address.url.host or "localhost"
        self.port = address.url.port
        self.is_tls = address.url.is_tls
        self.prefix = address.prefix
        self.is_anthropic = address.key_header == "x-api-key"
        self.sock: socket.socket | None = None  # http.client forgets it while an answer still comes
        self.headers = {"Content-Type": "application/json", **address.headers}
        if not address.names_agent:
            self.headers["User-Agent"] = f"tidegate-doctor/{__version__}"
        if self.is_anthropic:
            self.headers["anthropic-version"] = _VERSION
        if key is not None:
            self.headers[address.key_header] = address.key_value(key)

    def request(
        self, method: str, path: str, body: object, deadline_s: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request and return its answer; no redirect is followed. Raises _ProbeError."""
        connection = self._connection()
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        try:
            self.sock = connection.sock
            _limit(self.sock, deadline_s)
            connection.request(method, self.prefix + path, data, self.headers)
            return connection, connection.getresponse()
        except TimeoutError as error:
            connection.close()
            raise _silent("took the request and answered nothing") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise _ProbeError(
                "upstream-error",
                f"broke off before it answered ({_reason(error)})",
                "see its own log; restart it",
            ) from error

    def _connection(self) -> http.client.HTTPConnection:
        """Make the connection, which is not yet open. Raises _ProbeError."""
        if self.unix_path:
            return _UnixConnection(self.unix_path)
        if self.is_tls:
            try:
                context = trusting(self._authority)
            except ValueError as error:
                raise _ProbeError(
                    "upstream-unreachable", f"cannot be asked: {error}", "fix that file"
                ) from error
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=CONNECT_S, context=context
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_S)

    def _unreachable(self, error: OSError) -> _ProbeError:
        return unreachable(self.upstream.url, error, sys.platform)


def unreachable(url: str, error: OSError, platform: str) -> _ProbeError:
    """Say why a connection was not made. macOS hides its reason behind a routing error."""
    where = parse_url(url)
    if platform == "darwin" and error.errno == EHOSTUNREACH and where.is_neighbour:
        return _ProbeError(
            "local-network-refused",
            "cannot be reached (no route to host): macOS keeps programs from the local network "
            "until they are allowed to",
            "allow it under System Settings, Privacy & Security, Local Network; or run: "
            "sudo tidegate service install --system",
        )
    shown = where.socket_path or where.authority
    return _ProbeError(
        "upstream-unreachable",
        f"cannot be reached at {shown} ({_reason(error)})",
        "start it, or correct its url in the config",
    )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_S)
        self.sock.connect(self._path)


def _first_model(endpoint: _Endpoint, deadline_s: float) -> str:
    connection, response = endpoint.request("GET", "/models", None, deadline_s)
    with closing(connection):
        _expect_success(response)
        try:
            listed = json.loads(response.read(MAX_BYTES))["data"]
            names = [str(each["id"]) for each in listed]
        except TimeoutError as error:
            raise _silent("began a list of its models and did not end it") from error
        except (
            *(OSError, http.client.HTTPException, ValueError, TypeError, KeyError),
            RecursionError,
        ) as error:
            raise _ProbeError(
                "upstream-error",
                "answers /models with something that is not a list of models",
                "see that its url leads to an OpenAI-compatible server",
            ) from error
    talkers = [name for name in names if not any(word in name.lower() for word in _OTHER_KINDS)]
    if not names:
        raise _ProbeError(
            "upstream-no-models",
            "is there but has no model",
            "pull or load one, for example: ollama pull qwen3:4b",
        )
    return (talkers or names)[0]


def _ask(endpoint: _Endpoint, model: str, paid: bool, deadline_s: float) -> Probe:
    most = MOST_PAID if paid else MOST_LOCAL
    path = "/messages" if endpoint.is_anthropic else "/chat/completions"
    body: dict[str, Any] = {"model": model, "messages": _PROMPT, "stream": True, "max_tokens": most}
    asked_s = time.monotonic()
    connection, response = endpoint.request("POST", path, body, deadline_s)
    if response.status == 400 and b"max_completion_tokens" in _some(response):
        connection.close()
        body["max_completion_tokens"] = body.pop("max_tokens")  # what newer models call it
        connection, response = endpoint.request("POST", path, body, deadline_s)
    with closing(connection):
        _expect_success(response)
        at_s = [time.monotonic() for _ in _tokens(endpoint.sock, response, deadline_s)]
    if not at_s:
        raise _ProbeError(
            "upstream-no-tokens",
            f"answered for {model}, but with no token",
            "see its own log; try another model, or restart it",
        )
    took_s = at_s[-1] - at_s[0]
    return Probe(
        name=endpoint.upstream.name,
        model=model,
        first_token_s=at_s[0] - asked_s,
        tokens_per_s=(len(at_s) - 1) / took_s if len(at_s) > 2 and took_s > 0.001 else None,
        tokens=len(at_s),
        is_paid=paid,
        problem=_slow(endpoint.upstream.name, model, at_s[0] - asked_s),
    )


def _slow(name: str, model: str, first_token_s: float) -> Problem | None:
    if first_token_s < SLOW_S:
        return None
    return finding(
        "upstream-slow",
        f'"{name}" took {first_token_s:.0f} s for its first token of {model}',
        "nothing if it had to load the model; else keep the model loaded, or use a smaller one",
        name,
    )


def _tokens(
    sock: socket.socket | None, response: http.client.HTTPResponse, deadline_s: float
) -> Iterator[str]:
    """Yield the pieces of output as they come, and one if the answer was cut while thinking."""
    try:
        for line in _lines(sock, response, deadline_s):
            if line.startswith(b"data:") and (piece := _piece(line[5:].strip())):
                yield piece
    except TimeoutError as error:
        raise _silent("began an answer and then fell silent") from error
    except (OSError, http.client.HTTPException) as error:
        raise _ProbeError(
            "upstream-error",
            f"broke off in the middle of an answer ({_reason(error)})",
            "see its own log; restart it",
        ) from error


def _lines(
    sock: socket.socket | None, response: http.client.HTTPResponse, deadline_s: float
) -> Iterator[bytes]:
    """Yield the lines read by read: `readline` would go on while a byte comes now and then."""
    rest = b""
    while not response.isclosed():  # it may be with its last byte, and its socket too
        _limit(sock, deadline_s)
        data = response.read1(READ_BYTES)
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
        if len(rest) > MAX_LINE:
            raise _ProbeError("upstream-error", "sends an event without an end", "see its own log")
        if not data:
            break
    yield rest


def _piece(data: bytes) -> str:
    """Return what an event holds of output. Raises _ProbeError for an error event."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(event, dict):
        return ""
    if event.get("error"):
        raise _ProbeError("upstream-error", "sends an error in its answer", "see its own log")
    if event.get("type") == "content_block_delta":
        return "token"
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    delta = choice.get("delta") if isinstance(choice, dict) else None
    if isinstance(delta, dict) and any(
        delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls")
    ):
        return "token"
    is_cut = isinstance(choice, dict) and choice.get("finish_reason") == "length"
    return "cut" if is_cut else ""


def _expect_success(response: http.client.HTTPResponse) -> None:
    if response.status in {401, 403}:
        raise _ProbeError(
            "upstream-key-refused",
            f"refuses its key (status {response.status})",
            "correct the key behind api_key_env or api_key_file; or name one, if there is none",
        )
    if response.status != 200:
        raise _ProbeError(
            "upstream-error",
            f"answers with status {response.status}",
            "see its own log; correct its url if it leads somewhere else",
        )


def _some(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(64 * 1024)
    except (OSError, http.client.HTTPException):
        return b""


def _silent(what: str) -> _ProbeError:
    return _ProbeError(
        "upstream-silent",
        f"{what} in the time it was given",
        "if it is loading a large model, try again in a minute; otherwise restart it",
    )


def _limit(sock: socket.socket | None, deadline_s: float) -> None:
    """Let the next wait end at the deadline."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    if sock is not None:
        sock.settimeout(left_s)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'failed'}"
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    return type(error).__name__
