"""Ids that cannot be guessed, for runs and for requests that are answered without one."""

from __future__ import annotations

import os

_BYTES = 16  # 128 bits
_random_bytes = bytearray()  # fetched for many ids at once: a system call each would be 1 us more


def new_id(prefix: str) -> str:
    """Draw an id: "run_" and 32 hexadecimal digits, say."""
    if not _random_bytes:
        _random_bytes[:] = os.urandom(_BYTES * 64)
    drawn = bytes(_random_bytes[-_BYTES:])
    del _random_bytes[-_BYTES:]
    return f"{prefix}_{drawn.hex()}"


def id_headers(request_id: str) -> dict[str, str]:
    """Name a request's id in the headers where OpenAI's and Anthropic's clients look for it."""
    return {"x-request-id": request_id, "request-id": request_id}
