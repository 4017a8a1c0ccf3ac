"""Where an upstream is and what every request to it carries: one rule for gateway and doctor.

And where local LLM servers listen by default: looked at when no upstream is configured. The gateway
serves what it finds there, and the doctor says what it has found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tidegate.core.http.url import Url, parse_url
from tidegate.core.settings import Upstream

_VALUES = {"authorization": "Bearer {}", "x-api-key": "{}"}  # of a key, by the header that has it


@dataclass(frozen=True, slots=True)
class Address:
    """An upstream's settings, worked out once."""

    url: Url
    prefix: str  # of the paths of its API
    root: str  # where the server begins, and Ollama's own API with it
    headers: dict[str, str] = field(repr=False)  # the config's, secret ones among them
    names_agent: bool  # whether a User-Agent is one of them
    key_header: str  # "authorization" or "x-api-key"

    def key_value(self, key: str) -> str:
        """Write the key as its header has it."""
        return _VALUES[self.key_header].format(key)


def address_of(upstream: Upstream, secret_headers: Mapping[str, str]) -> Address:
    """Work out an upstream's address; `secret_headers` are those that the config only names.

    A bare host means the usual /v1; a path is a base URL as SDKs take it. Raises ValueError, whose
    text repeats nothing of the URL.
    """
    try:
        url = parse_url(upstream.url)
    except ValueError as error:
        raise ValueError(f"its url {error}") from None
    prefix = url.path.rstrip("/") or "/v1"
    fixed = {name: value for name, value in upstream.headers.items() if isinstance(value, str)}
    headers = {**fixed, **secret_headers}
    # What the same key is called differs from one cloud to the next.
    usual = "x-api-key" if url.host == "api.anthropic.com" else "authorization"
    return Address(
        url=url,
        prefix=prefix,
        root=prefix.removesuffix("/v1"),
        headers=headers,
        names_agent=any(name.lower() == "user-agent" for name in headers),
        key_header=upstream.api_key_header or usual,
    )


class WellKnown(NamedTuple):
    """One kind of local server."""

    title: str  # as its makers write it
    name: str  # as an upstream
    url: str


WELL_KNOWN = (
    WellKnown("Ollama", "ollama", "http://127.0.0.1:11434"),
    WellKnown("llama.cpp", "llamacpp", "http://127.0.0.1:8080"),
    WellKnown("LM Studio", "lmstudio", "http://127.0.0.1:1234"),
    WellKnown("vLLM", "vllm", "http://127.0.0.1:8000"),
)
