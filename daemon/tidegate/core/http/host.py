"""The names a client may call this server by.

A browser sends the name that its user typed, or that a hostile page made up, in `Host`. A page
whose own name resolves to 127.0.0.1 reaches a server on loopback (DNS rebinding), and the only
thing that gives it away is that name. So every request's name is read by a strict grammar first,
and then has to be one that cannot belong to a stranger: an address of this
machine or its network, localhost, a name under .local, this machine's own name, or one from the
setting `allowed_hosts`. Names that only a home's own resolver can lead here ("nas", "nas.lan",
"host.docker.internal") are known too, but for less: a hostile resolver gives them away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

MAX_NAME = 253  # RFC 1035: the longest name that DNS can carry, written with dots

# Underscores are not in RFC 1123, but container networks give their services such names.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}")
_IPV6 = re.compile(r"[0-9a-f:.]{2,45}")
# Browsers read a name whose last label is a number as an IPv4 address, however it is written.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# What can only mean this machine or its neighbours. 100.64.0.0/10 is what overlay networks such
# as Tailscale hand out. 0.0.0.0 is left out: browsers reach loopback by it past their own guard.
_LOCAL_NETWORKS = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fe80::/10",
        "fc00::/7",
    )
)


_LOOPBACK_V6 = IPv6Address("::1")
# No public resolver knows a name below these: RFC 6761, RFC 8375, ICANN's .internal, and the .lan
# of many a router.
_HOME_ZONES = (".localhost", ".home.arpa", ".internal", ".lan")


@dataclass(frozen=True, slots=True)
class Authority:
    """A host, and the port if one was written. The name is in lower case, without a last dot."""

    name: str
    port: int | None
    address: IPv4Address | IPv6Address | None = None

    def with_port(self, default: int) -> tuple[str, int]:
        """Give the name and its port, `default` when none was written."""
        return self.name, default if self.port is None else self.port


def parse_authority(text: str) -> Authority:
    """Read `name`, `name:port`, `1.2.3.4:port` or `[::1]:port`.

    Raises ValueError on everything else: user info, spaces, empty ports, zone ids, percent
    escapes, and short or hexadecimal spellings of an IPv4 address.
    """
    lowered = text.lower()
    if not text.isascii():
        raise ValueError("a host is written in ASCII")
    if lowered.startswith("["):
        inside, closed, rest = lowered[1:].partition("]")
        if not closed or not _IPV6.fullmatch(inside) or (rest and not rest.startswith(":")):
            raise ValueError("not an IPv6 address in brackets")
        return _of_address(IPv6Address(inside), _port(rest[1:]) if rest else None)
    name, colon, digits = lowered.partition(":")
    port = _port(digits) if colon else None
    name = name.removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _of_address(IPv4Address(name), port)
    if len(name) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("not a host name")
    return Authority(name, port)


def _of_address(address: IPv4Address | IPv6Address, port: int | None) -> Authority:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return Authority(str(mapped or address), port, mapped or address)


def _port(digits: str) -> int:
    if not _PORT.fullmatch(digits) or not 0 < int(digits) < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return int(digits)


def is_local_address(address: IPv4Address | IPv6Address) -> bool:
    """Say whether it is a loopback, private, link-local or overlay address."""
    return any(address in network for network in _LOCAL_NETWORKS)


def is_own_listener(address: str) -> bool:
    """Say whether only this computer can reach a server that listens there.

    "127.0.0.1:8433", "[::1]:8433", "unix:/path". A name but localhost may be anything.
    """
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return found.is_loopback if isinstance(found, IPv4Address) else found == _LOOPBACK_V6


def is_home_name(host: Authority) -> bool:
    """Say whether it is a name that only the resolver of a home or a container network leads here.

    That is one label ("nas", "tidegate"), or a name below .internal, .lan, .home.arpa, .localhost.
    """
    return host.address is None and ("." not in host.name or host.name.endswith(_HOME_ZONES))


@dataclass(frozen=True, slots=True)
class HostPattern:
    """One entry of `allowed_hosts`: a name, or every name below one, at any port or at one."""

    name: str
    port: int | None
    below: bool  # written "*.name": names below it, and not the name itself

    def matches(self, host: Authority) -> bool:
        """Say whether `host` is meant. A host without a port stands at port 80, as in a URL."""
        if self.port is not None and host.with_port(80)[1] != self.port:
            return False
        if self.below:
            return host.address is None and host.name.endswith("." + self.name)
        return host.name == self.name


def parse_pattern(text: str) -> HostPattern:
    """Read an entry of `allowed_hosts`. Raises ValueError with what is wrong with it."""
    below = text.startswith("*.")
    try:
        authority = parse_authority(text[2:] if below else text)
    except ValueError as error:
        raise ValueError(
            f"{text[:80]!r} is not a host ({error}); write it as "
            '"example.com", "*.example.com" or "example.com:8433", without http://'
        ) from None
    if below and authority.address is not None:
        raise ValueError(f"{text!r}: nothing is below an address")
    return HostPattern(authority.name, authority.port, below)


class HostRules:
    """Decides which names may be used."""

    __slots__ = ("_own_names", "_patterns")

    def __init__(self, allowed_hosts: Iterable[str], host_name: str) -> None:
        """Take the rules; `host_name` is this machine's own. Raises ValueError on a bad entry."""
        self._patterns = tuple(parse_pattern(text) for text in allowed_hosts)
        own = host_name.lower().removesuffix(".")
        # "box.lan" is also reached as "box": neither can be looked up by a stranger's resolver.
        self._own_names = frozenset({"localhost", own, own.partition(".")[0]} - {""})

    def allow(self, host: Authority) -> bool:
        """Say whether a request that calls this server `host` is allowed."""
        if host.address is not None:
            known = is_local_address(host.address)
        else:
            known = host.name in self._own_names or host.name.endswith(".local")
        return known or any(pattern.matches(host) for pattern in self._patterns)


def is_same_origin(origin: str, host: Authority) -> bool:
    """Say whether a page from `origin` (the header's value) was served under `host`.

    The scheme only fills in the port that it implies: a proxy in front may speak TLS for us.
    "null", other schemes and whatever is no origin are never the same.
    """
    scheme, separator, rest = origin.partition("://")
    default = {"http": 80, "https": 443}.get(scheme)
    if not separator or default is None:
        return False
    try:
        return parse_authority(rest).with_port(default) == host.with_port(default)
    except ValueError:
        return False
