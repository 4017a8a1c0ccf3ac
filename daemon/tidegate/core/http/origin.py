"""The pages of other origins that may use this server: the entries of `allowed_origins`.

A browser writes an origin in one spelling: scheme, host, and a port that is not the usual one. An
entry is brought into that spelling once, and what a request says is compared with it as text. An
app that is a page of its own kind ("chrome-extension://…", "app://obsidian.md") has an origin too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tidegate.core.http.host import Authority, HostPattern, parse_authority

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_USUAL_PORTS = {"http": 80, "https": 443}
_HTTPS = "https://"
_BELOW = "*."


def parse_origin(text: str) -> str | HostPattern:
    """Read an entry: the origin as browsers write it, or a pattern of names below one, by https.

    Raises ValueError with what is wrong with it.
    """
    if text in {"*", "null"}:
        raise ValueError(
            f'"{text}" would let in pages of strangers; name the origin of each page that may, as '
            '"https://chat.example.com" or "http://192.168.1.7:3000"'
        )
    scheme, separator, rest = text.lower().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise _bad(text, "it begins with http:// or https://")
    if not text.isascii() or set(rest) & set("/?#@"):
        raise _bad(text, "nothing stands behind the host and its port, no user before it")
    below = rest.startswith(_BELOW)
    try:
        host = parse_authority(rest.removeprefix(_BELOW))
    except ValueError as error:
        raise _bad(text, str(error)) from None
    if below:
        if scheme != "https" or host.address is not None or "." not in host.name:
            raise _bad(text, "*. stands for names below one of yours, and by https:// alone")
        return HostPattern(host.name, host.with_port(443)[1], below=True)
    name = f"[{host.name}]" if host.address is not None and host.address.version == 6 else host.name
    port = "" if host.port in (None, _USUAL_PORTS.get(scheme)) else f":{host.port}"
    return f"{scheme}://{name}{port}"


def _bad(text: str, why: str) -> ValueError:
    return ValueError(
        f"{text[:80]!r} is not an origin ({why}); write it as the browser does, "
        '"https://chat.example.com", "http://192.168.1.7:3000" or "https://*.example.com"'
    )


class OriginRules:
    """Decides which pages may use this server."""

    __slots__ = ("_below", "_exact")

    def __init__(self, allowed: Iterable[str]) -> None:
        """Take the entries of `allowed_origins`. Raises ValueError on a bad one."""
        parsed = [parse_origin(text) for text in allowed]
        self._exact = frozenset(each for each in parsed if isinstance(each, str))
        self._below = tuple(each for each in parsed if isinstance(each, HostPattern))

    def __bool__(self) -> bool:
        """Say whether any page may."""
        return bool(self._exact or self._below)

    def allow(self, origin: str) -> bool:
        """Say whether pages of `origin`, as a request has it, may."""
        if origin in self._exact:
            return True
        if not self._below or not origin.startswith(_HTTPS):
            return False
        try:
            if parse_origin(origin) != origin:  # no browser writes it so
                return False
            host = parse_authority(origin.removeprefix(_HTTPS))
        except ValueError:
            return False
        name, port = host.with_port(443)
        there = Authority(name, port, host.address)
        return any(pattern.matches(there) for pattern in self._below)
