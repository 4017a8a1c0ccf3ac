"""Fixed headers of an upstream: which names and values the table `[upstream.headers]` may have.

A header that decides where a request goes, how long it is, how its connection is used or who sent
it is set by the gateway alone: a second one of it is how requests are smuggled. What a client may
say itself (`anthropic-beta`) would come twice.
"""

from __future__ import annotations

import re

MAX_HEADERS = 32  # of one upstream
MAX_VALUE_BYTES = 8 * 1024  # what most servers take of a line

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # a token, RFC 9110 5.6.2
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_KEYS = {"authorization", "x-api-key"}
_OURS = {
    "host",
    # How long the body is, and what it is.
    "content-length", "content-type", "content-encoding", "transfer-encoding", "trailer", "expect",
    # What may come back: the relay reads nothing else.
    "accept", "accept-encoding", "te", "range",
    # Of this connection alone, RFC 9110 7.6.1.
    "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
    "upgrade", "http2-settings",
}  # fmt: skip
_OF_CLIENTS = {"anthropic-version", "anthropic-beta", "x-on-disconnect"}
_OWN_PREFIX = "x-tidegate-"


def name_problem(name: str) -> str | None:
    """Say why a header of that name cannot be fixed; None where it can."""
    lowered = name.lower()
    if not _NAME.fullmatch(name):
        return "is not a header name: letters, digits and -, at most 128"
    if lowered in _KEYS:
        return (
            "is how a key is sent: name a 0600 file with api_key_file, or an environment "
            "variable with api_key_env"
        )
    if lowered in _OURS or lowered.startswith(_OWN_PREFIX):
        return "is set by tidegate itself and cannot be fixed"
    if lowered in _OF_CLIENTS:
        return "is the client's to say and is passed on from there"
    return None


def is_value(text: str) -> bool:
    """Say whether it can stand in a line of a head, as it is."""
    return len(text) <= MAX_VALUE_BYTES and _VALUE.fullmatch(text) is not None
