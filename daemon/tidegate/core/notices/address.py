"""Where notices and the heartbeat go: one grammar for the check of the config and for the sending.

An address often holds a secret: a token before the "@", a topic or a hook's path, a query. So no
error here repeats a part of one, and `secrets_in` lists what others must not show.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tidegate.core.http.url import Url, parse_url
from tidegate.core.secret import MIN_LENGTH, looks_like_key

MAX_ADDRESS_LENGTH = 2000  # the longest hooks have some 400
NTFY, WEBHOOK, APPRISE = "ntfy", "webhook", "apprise"

_LIKE = "must be like ntfy://ntfy.sh/TOPIC or https://host/path"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,30})://(.*)")
_QUERY = re.compile(r"[!$-;=?-~]*")  # without what would end a request line or begin a fragment
_TOPIC = re.compile(r"/[A-Za-z0-9_-]{1,64}")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class NoticeAddress:
    """One address, taken apart. Only the host may be shown."""

    kind: str  # NTFY, WEBHOOK or APPRISE
    url: Url = field(repr=False)  # of Apprise's kinds nothing is known
    target: str = field(repr=False, default="")  # path and query, as a request line has them
    user: str = field(repr=False, default="")  # what stands before the "@", decoded


def parse_address(text: str) -> NoticeAddress:
    """Read an address of a receiver.

    Raises ValueError, whose text completes "url: …" and repeats nothing of it.
    """
    scheme, rest = _divide(text)
    if scheme in ("ntfy", "ntfys"):
        return _ntfy(scheme, rest)
    if scheme in ("http", "https"):
        return _web(WEBHOOK, scheme, rest)
    return NoticeAddress(APPRISE, Url())


def parse_heartbeat_url(text: str) -> NoticeAddress:
    """Read the address of the outward heartbeat. Raises ValueError like `parse_address`."""
    scheme, rest = _divide(text)
    if scheme not in ("http", "https"):
        raise ValueError("must be like https://host/path")
    address = _web(WEBHOOK, scheme, rest)
    if address.user:
        raise ValueError('must hold no user or password before an "@"')
    return address


def secrets_in(text: str) -> list[str]:
    """List what of an address must be shown nowhere: all of it, and its parts that are secret."""
    _, _, rest = text.partition("://")
    before, at, behind = rest.rpartition("@")
    path = behind[behind.find("/") :] if "/" in behind else ""
    parts = [before, path, *path.partition("?")[::2]]
    if at or path not in ("", "/"):  # a host alone is no secret, and stands in many a text
        parts += [text, rest]
    parts += [each for each in words_in(text) if looks_like_key(each)]
    return list(dict.fromkeys(each for each in parts if len(each) >= MIN_LENGTH))


def words_in(text: str) -> list[str]:
    """List every part of an address but the host that may be a secret, however it looks."""
    _, _, rest = text.partition("://")
    before, _, behind = rest.rpartition("@")
    words = re.split(r"[/:@?&=]+", f"{before}/{behind.partition('/')[2]}")
    return list(dict.fromkeys(each for each in words if len(each) >= MIN_LENGTH))


def _divide(text: str) -> tuple[str, str]:
    """Divide an address into its scheme and the rest."""
    if len(text) > MAX_ADDRESS_LENGTH:
        raise ValueError(f"must have at most {MAX_ADDRESS_LENGTH} characters")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("must be printable ASCII without spaces; others are written as %XX")
    found = _SCHEME.fullmatch(text)
    if found is None or not found[2]:
        raise ValueError(_LIKE)
    return found[1], found[2]


def _ntfy(scheme: str, rest: str) -> NoticeAddress:
    """Read ntfy://[TOKEN@ or USER:PASSWORD@]HOST/TOPIC, the form that ntfy's own links have."""
    address, _, query = rest.partition("?")
    if query not in ("", "secure=true", "secure=false"):
        raise ValueError('may have "?secure=false" behind the topic, for http, and nothing else')
    plain = scheme == "ntfy" and query == "secure=false"
    found = _web(NTFY, "http" if plain else "https", address)
    if not _TOPIC.fullmatch(found.target):
        raise ValueError(
            "must end with a topic of letters, digits, '_' and '-': ntfy://ntfy.sh/TOPIC"
        )
    return found


def _web(kind: str, scheme: str, rest: str) -> NoticeAddress:
    before, _, behind = rest.rpartition("@")
    where, question, query = behind.partition("?")
    if "@" in before or "/" in before:
        raise ValueError('must have no "@" but one before the host; write another as %40')
    if "#" in behind or not _QUERY.fullmatch(query):
        raise ValueError('must have no "#", and no spaces or quotes; write them as %XX')
    url = parse_url(f"{scheme}://{where}")
    user = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), before)
    if user and not (user.isascii() and user.isprintable()):
        raise ValueError("must have user and password in printable ASCII")
    return NoticeAddress(kind, url, f"{url.path or '/'}{question}{query}", user)
