"""An upstream's URL: one grammar for the check of the config and for the connection itself.

What is read here can be connected to as far as its text goes: a host that every resolver's own
grammar takes (`idna` refuses empty labels and long ones by an exception), a port that exists, a
path that can stand in a request line. So a config that was checked leaves nothing to go wrong
when a worker starts. `urllib.parse` is not asked: it repairs and drops what it does not like, and
says other things from version to version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from tidegate.core.http.host import is_local_address

MAX_HOST = 253  # RFC 1035: the longest name that DNS can carry, written with dots
MAX_LABEL = 63

_LIKE = (
    "must be like http://127.0.0.1:8080, https://api.example.com/v1 or unix:/path, without ? and #"
)
_UNIX_LIKE = "must be like unix:/path or unix:/path:/v1, without ? and #"
_NO_USER = (
    "must hold no user or password; name a 0600 file with api_key_file, or an "
    "environment variable with api_key_env"
)
_PARTS = re.compile(r"(https?)://([^/?#]*)((?:/[^?#]*)?)")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_PATH = re.compile(r"[!$-;=@-~]*")  # without what a request line or a config line would end at
_ESCAPES = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORT = re.compile(r"[0-9]{1,5}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Url:
    """Where an upstream is. Exactly one of `host` and `socket_path` is not empty."""

    host: str = ""  # in lower case, an IPv6 address without its brackets
    port: int = 0
    is_tls: bool = False
    authority: str = "localhost"  # what the Host header says
    socket_path: str = ""
    path: str = ""  # as it was written; may be empty

    @property
    def is_at_home(self) -> bool:
        """Whether it is on this computer or another one of the local network."""
        if (address := self._address) is not None:
            return is_local_address(address)
        return self.host in ("", "localhost") or self.is_neighbour

    @property
    def is_neighbour(self) -> bool:
        """Whether it is on another computer of the local network."""
        if (address := self._address) is not None:
            return is_local_address(address) and not address.is_loopback
        if "." in self.host:
            return self.host.endswith((".local", ".lan", ".home.arpa"))
        return self.host not in ("", "localhost")

    @property
    def _address(self) -> IPv4Address | IPv6Address | None:
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parse_url(text: str) -> Url:
    """Read a URL of the setting `url`.

    Raises ValueError, whose text completes "url: …" and repeats nothing: people paste keys there.
    """
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    if "@" in text:
        raise ValueError(_NO_USER)
    found = _PARTS.fullmatch(text)
    if found is None:
        raise ValueError(_LIKE)
    scheme, authority, path = found.groups()
    _check_path(path)
    host, digits = _divide(authority)
    return Url(
        host=host.lower(),
        port=_port(digits) if digits is not None else _DEFAULT_PORTS[scheme],
        is_tls=scheme == "https",
        authority=authority,
        path=path,
    )


def _unix(text: str) -> Url:
    socket_path, colon, prefix = text.partition(":")
    if (colon and not prefix.startswith("/")) or {"?", "#"} & set(text):
        raise ValueError(_UNIX_LIKE)
    if not socket_path.startswith("/") or socket_path.endswith("/"):
        raise ValueError("unix: needs the absolute path of a socket, unix:/path")
    if not socket_path.isprintable():
        raise ValueError("unix: needs the path of a socket without control characters, unix:/path")
    _check_path(prefix)
    return Url(socket_path=socket_path, path=prefix)


def _check_path(path: str) -> None:
    if not path.isascii():
        raise ValueError("must be ASCII; other characters of a path are written as %XX")
    if not _PATH.fullmatch(path):
        raise ValueError(f'{_LIKE}; a space, a quote, "<" or ">" in its path is written as %XX')
    if _ESCAPES.search(path):
        raise ValueError(
            'must be like http://127.0.0.1:8080/v1; a "%" in its path needs two digits'
        )


def _divide(authority: str) -> tuple[str, str | None]:
    """Divide an authority into the host and the digits of the port, if there is a colon."""
    if not authority.isascii():
        raise ValueError("must be ASCII; a host with other letters is written as xn--…")
    if authority.startswith("["):
        inside, closed, rest = authority[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(_LIKE)
        if "%" in inside:
            raise ValueError("must be an IPv6 address without a zone (%…)")
        try:
            IPv6Address(inside)
        except ValueError:
            raise ValueError("must be an IPv6 address where it has brackets, [::1]") from None
        return inside, rest[1:] if rest else None
    host, colon, digits = authority.partition(":")
    _check_host(host)
    return host, digits if colon else None


def _check_host(host: str) -> None:
    if not host:
        raise ValueError("must be a URL with a host, like http://127.0.0.1:8080")
    if not _HOST.fullmatch(host):
        raise ValueError(_LIKE)
    if not all(0 < len(label) <= MAX_LABEL for label in host.split(".")):
        raise ValueError(
            f"must be a host whose parts between the dots have 1 to {MAX_LABEL} letters"
        )
    if len(host) > MAX_HOST:
        raise ValueError(f"must be a host of at most {MAX_HOST} letters")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError("must be an address of four numbers from 0 to 255") from None


def _port(digits: str) -> int:
    if not _PORT.fullmatch(digits) or not 0 < int(digits) < 65536:
        raise ValueError("must be a URL whose port is a number from 1 to 65535")
    return int(digits)
