"""Whether aiohttp runs on its C parts. Without them every request costs several times as much."""

from __future__ import annotations


def are_compiled() -> bool:
    """Whether the parser of requests is the compiled one."""
    from aiohttp import http_parser  # noqa: PLC0415  (only a doctor asks)

    return hasattr(http_parser, "HttpRequestParserC")
