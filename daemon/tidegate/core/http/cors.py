"""What a browser is told of pages of other origins (CORS), where the owner allows some.

A page that is allowed may do what a program may: it needs a token of its own as soon as there is
one. So no answer says `*`, and none allows credentials: a cookie or a stored password means
nothing here. What a page is not told of, its browser keeps from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tidegate.core.http.origin import OriginRules

MAX_AGE_S = 7200  # that a browser remembers a preflight; Chromium does no longer
_VARY = "Vary"
_ORIGIN = "Origin"
_ASKED_METHOD = "Access-Control-Request-Method"
_ASKED_NAMES = "Access-Control-Request-Headers"
_METHODS = "GET, POST, DELETE"
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_MAX_NAMES = 64
# What official clients, and the libraries around them, put into a request.
_SENT = frozenset({
    "accept", "accept-language", "authorization", "cache-control", "content-language",
    "content-type", "http-referer", "idempotency-key", "last-event-id", "user-agent", "x-api-key",
    "x-on-disconnect", "x-request-id", "x-requested-with", "x-title",
})  # fmt: skip
_SENT_PREFIXES = ("anthropic-", "openai-", "x-stainless-")
_READ = ", ".join((
    "x-run-id", "x-request-id", "request-id", "x-upstream-request-id", "retry-after",
    "retry-after-ms", "x-should-retry",
))  # fmt: skip
_PRIVATE_NETWORK = "Access-Control-{}-Private-Network"


class Fields(Protocol):
    """The fields of a request's head, found by name in any case."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]: ...


class Pages:
    """Knows the pages of other origins that may use this server."""

    __slots__ = ("_rules",)

    def __init__(self, allowed_origins: Iterable[str]) -> None:
        """Raises ValueError on a bad entry."""
        self._rules = OriginRules(allowed_origins)

    def allowed_origin(self, headers: Fields) -> str | None:
        """Give the origin of the page that sent a request, if it is one and may."""
        origins = headers.getall(_ORIGIN, ())
        return origins[0] if len(origins) == 1 and self._rules.allow(origins[0]) else None

    def fields(self, headers: Fields) -> dict[str, str]:
        """Give what the head of each answer to a request has besides; nothing if none may."""
        if not self._rules:
            return {}
        fields: dict[str, str] = {_VARY: _ORIGIN}  # no cache may give one page's answer to another
        if origin := self.allowed_origin(headers):
            fields["Access-Control-Allow-Origin"] = origin
            fields["Access-Control-Expose-Headers"] = _READ
        return fields

    def preflight(self, headers: Fields) -> Mapping[str, str] | None:
        """Answer a browser that asks what a page may send; None if it does not ask, or may not.

        Of the names that it asks for those are allowed that a client sends; no other is repeated.
        """
        origin = self.allowed_origin(headers)
        if origin is None or len(headers.getall(_ASKED_METHOD, ())) != 1:
            return None
        asked = ",".join(headers.getall(_ASKED_NAMES, ()))
        names = [name.strip(" \t").lower() for name in asked.split(",")][:_MAX_NAMES]
        may = [name for name in dict.fromkeys(names) if _NAME.fullmatch(name) and _is_sent(name)]
        fields: dict[str, str] = {
            _VARY: f"{_ORIGIN}, {_ASKED_NAMES}",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Max-Age": str(MAX_AGE_S),
        }
        if may:
            fields["Access-Control-Allow-Headers"] = ", ".join(may)
        if "true" in headers.getall(_PRIVATE_NETWORK.format("Request"), ()):
            fields[_PRIVATE_NETWORK.format("Allow")] = "true"
        return fields


def _is_sent(name: str) -> bool:
    return name in _SENT or name.startswith(_SENT_PREFIXES)
