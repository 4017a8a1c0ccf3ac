"""Authentication: which requests are accepted, and from which caller.

Every request passes here before anything looks at its body, in one order: the request target,
the name it calls this server by, the page it comes from, the key it carries. A name that is not
known is let in with a valid key, which no page of a stranger has. Each answer is a
`Caller` or a `Refused`; nothing is decided from a parsed URL, which a client can bend, and no key
is repeated in an answer or a log line. A client may carry several keys, as some do that have one
from elsewhere: the one that is valid counts. Wrong ones are counted by address (`core.brake`), and
nothing that a wrong key does ever keeps a valid one out.

Remembered decisions are what makes this cheap: the names that were accepted (as the strings that
came in), and the digests of keys that were. Never a key itself, and both books are bounded.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import sha256
from hmac import compare_digest
from typing import Protocol

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from tidegate.core import scopes
from tidegate.core.brake import HERE, Brake, Source, source_of
from tidegate.core.http.cors import Pages
from tidegate.core.http.host import (
    Authority,
    HostRules,
    is_home_name,
    is_same_origin,
    parse_authority,
)
from tidegate.core.settings import Token
from tidegate.gateway.server.errors import Refused
from tidegate.gateway.server.handshake import offered_tokens

log = logging.getLogger("tidegate.auth")

# A server is called by one or two names and by as many keys as it has clients. The bounds only
# keep a flood of made-up ones from growing the books, so both are simply emptied when full.
_MAX_REMEMBERED = 64

# Origin-form only (RFC 9112, 3.2.1), and not "//", which URL parsers take for a host.
_TARGET = re.compile(r'/(?!/)[^\x00-\x20"#<>\\^`{|}\x7f-\U0010ffff]*')

_READING_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_SEC_FETCH_SITE = "Sec-Fetch-Site"
_API_KEY = "x-api-key"
_OTHER_SITE = (
    "this request was made by a page of another site; if that page is yours, add its origin "
    "(https://…, as the address bar shows it) to the setting allowed_origins"
)
_OWN_SITES = frozenset({"same-origin", "none"})  # "none": a person did it, no page


class Access(Enum):
    """What a route asks of its callers, once there is a token; what is no route asks for READ."""

    OPEN = auto()  # nothing: health
    READ = auto()  # any token: what there is and how it goes, no text
    USE = auto()  # a token that may call models and read answers


_SCOPES = {
    Access.READ: frozenset({scopes.USE, scopes.READ, scopes.OWNER}),
    Access.USE: frozenset({scopes.USE, scopes.OWNER}),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `owner` is what is stored of the key, as hex: runs belong to it."""

    owner: str
    name: str
    scope: str = scopes.USE

    @property
    def sees(self) -> str | None:
        """Whose runs it may look at, though not read; None: everyone's."""
        return None if self.scope in {scopes.READ, scopes.OWNER} else self.owner

    @property
    def ends(self) -> str | None:
        """Whose runs it may cancel and delete; None: everyone's."""
        return None if self.scope == scopes.OWNER else self.owner

    def check(self, access: Access) -> None:
        """Check that its scope is enough. Raises Refused (403) that says which one would be."""
        if access is Access.OPEN or self.scope in _SCOPES[access]:
            return
        if self.scope in scopes.MEANINGS:
            others = " or ".join(sorted(_SCOPES[access] - {self.scope}))
            message = f"a token of scope {self.scope} may not do this, one of {others} may"
        else:
            message = "this version of tidegate does not know what this token is for"
        raise Refused(
            403, f"{message} (`tidegate token new NAME --scope use`)", "scope_not_allowed"
        )


ANONYMOUS = Caller(owner="", name="")


class RequestHead(Protocol):
    """What a request says of itself before its body."""

    @property
    def method(self) -> str: ...
    @property
    def raw_path(self) -> str: ...
    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    @property
    def remote(self) -> str | None: ...


class AccessControl:
    """Authenticate requests under one state of the settings; a reload makes a new one."""

    __slots__ = (
        "_accepted_digests",
        "_accepted_hosts",
        "_brake",
        "_clock",
        "_rules",
        "_scopes",
        "_tokens",
        "pages",
    )

    def __init__(
        self,
        *,
        allowed_hosts: Iterable[str],
        host_name: str,
        tokens: Sequence[Token],
        allowed_origins: Iterable[str] = (),
        brake: Brake | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`host_name` is this machine's own; `brake` what former ones knew of wrong keys.

        Raises ValueError on a bad entry of allowed_hosts or allowed_origins.
        """
        self.pages = Pages(allowed_origins)
        self._brake = Brake() if brake is None else brake
        self._clock = clock
        self._rules = HostRules(allowed_hosts, host_name)
        self._tokens = tuple(
            Caller(owner=token.sha256.lower(), name=token.name, scope=token.scope)
            for token in tokens
        )
        self._scopes = {token.scope for token in tokens}
        self._accepted_hosts: dict[str, Authority] = {}
        self._accepted_digests: dict[str, Caller] = {}

    @property
    def names(self) -> dict[str, str]:
        """Name every token, by owner."""
        return {caller.owner: caller.name for caller in self._tokens}

    def __repr__(self) -> str:
        return f"<AccessControl tokens={len(self._tokens)}>"

    def authenticate(
        self, request: RequestHead, access: Access, *, over_unix: bool = False
    ) -> Caller:
        """Find out who sends a request; raises Refused. `over_unix`: it came through a Unix socket.

        A name means nothing there, and the socket's file mode has already decided who may.
        """
        caller = self._identify(request, access, over_unix=over_unix)
        if caller is None:
            raise self._wrong_key(HERE if over_unix else source_of(request.remote))
        return caller

    def recognise(self, request: RequestHead, access: Access) -> Caller | None:
        """Find out who sends a request, if it may; what is to be refused leaves no trace."""
        try:
            return self._identify(request, access, over_unix=False)
        except Refused:
            return None

    def preflight(self, request: RequestHead) -> Mapping[str, str] | None:
        """Answer a browser that asks whether a page of an allowed origin may; None for all else.

        It asks without a token, so by whatever name. Raises Refused (400).
        """
        answer = self.pages.preflight(request.headers)
        if answer is not None:
            _check_target(request)
            self._host(request.headers.getall(hdrs.HOST, ()))
        return answer

    def _identify(self, request: RequestHead, access: Access, *, over_unix: bool) -> Caller | None:
        """Find who may send a request; None for the key of no client. Raises Refused."""
        _check_target(request)
        headers = request.headers
        host, is_ours = None, True
        if not over_unix:
            host, is_ours = self._host(headers.getall(hdrs.HOST, ()))
        if (hdrs.ORIGIN in headers or _SEC_FETCH_SITE in headers) and (
            self.pages.allowed_origin(headers) is None
        ):
            _check_site(request, host)
        is_known = host is None or is_ours or self._is_at_home(host, headers)
        if is_known and (access is Access.OPEN or not self._tokens):
            return ANONYMOUS
        keys = [_bearer(value) for value in headers.getall(hdrs.AUTHORIZATION, ())]
        keys += headers.getall(_API_KEY, ())
        if hdrs.SEC_WEBSOCKET_PROTOCOL in headers and _is_websocket(headers):
            keys += offered_tokens(headers)
        if host is not None and not (is_known or (keys and self._tokens)):
            raise self._strange(host)
        if not keys:
            raise _unauthorized("a token is needed, as Authorization: Bearer or x-api-key")
        caller = self._caller(keys)
        if caller is not None:
            caller.check(access)
        return caller

    def _host(self, values: Sequence[str]) -> tuple[Authority, bool]:
        """Read the host that the request names, and say whether anyone may call this server so."""
        if len(values) != 1:
            raise Refused(400, "a request needs exactly one Host", "bad_host", close=True)
        text = values[0]
        host = self._accepted_hosts.get(text)
        if host is not None:
            return host, True
        try:
            host = parse_authority(text)
        except ValueError:
            raise Refused(400, "Host is not a host", "bad_host", close=True) from None
        is_ours = self._rules.allow(host)
        if is_ours:
            if len(self._accepted_hosts) >= _MAX_REMEMBERED:
                self._accepted_hosts.clear()
            self._accepted_hosts[text] = host
        return host, is_ours

    def _is_at_home(self, host: Authority, headers: CIMultiDictProxy[str]) -> bool:
        """Say whether a request may call this server by one of a home's own names.

        Without a token in force they are for programs alone: a hostile resolver could lead a page
        there, and nothing else would keep that page out.
        """
        return is_home_name(host) and bool(self._tokens or not _is_of_browser(headers))

    def _strange(self, host: Authority) -> Refused:
        """Make the answer to a name that is not known, with what lets it in."""
        if self._tokens:
            ways = "send a valid token, or add it to the setting allowed_hosts"
        elif is_home_name(host):
            ways = (
                "while there is no token a browser may not call it so; make one "
                "(`tidegate token new NAME`), or add the name to the setting allowed_hosts"
            )
        else:
            ways = (
                "if it should be, add it to the setting allowed_hosts, or make a token "
                "(`tidegate token new NAME`) and send that"
            )
        return Refused(
            403, f"{host.name!r} is not a name of this server: {ways}", "host_not_allowed"
        )

    def _caller(self, keys: Iterable[str]) -> Caller | None:
        """Find the owner of those keys that are valid. Raises Refused where they have several."""
        callers = {
            caller
            for key in keys
            if key and key.isascii() and key.isprintable()
            for digest in (sha256(key.encode("ascii")).hexdigest(),)
            if (caller := self._accepted_digests.get(digest) or self._look_up(digest))
        }
        if len({caller.owner for caller in callers}) > 1:
            raise _unauthorized(
                "the request carries two valid tokens of different owners; send one of them"
            )
        return next(iter(callers), None)

    def _wrong_key(self, source: Source) -> Refused:
        """Make the answer to a key that is no client's; the log hears of it in time."""
        now_s = self._clock()
        wait_s = self._brake.wrong(source, now_s)
        self.tell_wrong_keys(now_s)
        if wait_s is None:
            return _unauthorized("the token is not valid")
        seconds = math.ceil(wait_s)
        return Refused(
            429,
            f"too many wrong tokens came from this address; try again in {seconds} s with a valid "
            "one (`tidegate token list` names them)",
            "too_many_wrong_tokens",
            type="rate_limit_error",
            headers={hdrs.RETRY_AFTER: str(seconds)},
            close=True,
        )

    def tell_wrong_keys(self, now_s: float | None = None) -> None:
        """Log what came with wrong keys, once in a minute."""
        if report := self._brake.report(self._clock() if now_s is None else now_s):
            log.warning("%s", report.text)

    def _look_up(self, digest: str) -> Caller | None:
        """Compare with every token, always all of them, so that time tells nothing."""
        found = None
        hashes = {scope: scopes.stored_hash(digest, scope) for scope in self._scopes}
        for caller in self._tokens:
            if compare_digest(caller.owner, hashes[caller.scope]):
                found = caller
        if found is not None:
            if len(self._accepted_digests) >= _MAX_REMEMBERED:
                self._accepted_digests.clear()
            self._accepted_digests[digest] = found
        return found


def _bearer(value: str) -> str:
    """Read the key in an Authorization header; "" when it is of another kind."""
    scheme, _, key = value.partition(" ")
    return key.strip(" ") if scheme.lower() == "bearer" else ""


def _check_target(request: RequestHead) -> None:
    """Check that what is asked for is a plain path. Raises Refused (400)."""
    if not _TARGET.fullmatch(request.raw_path):
        raise Refused(
            400,
            'the request target must be a path that begins with a single "/"',
            "bad_target",
            close=True,
        )


def _is_websocket(headers: CIMultiDictProxy[str]) -> bool:
    return headers.get(hdrs.UPGRADE, "").lower() == "websocket"


def _is_of_browser(headers: CIMultiDictProxy[str]) -> bool:
    """Say whether a request shows a browser. A page can hide some of that, so it is no proof."""
    if hdrs.ORIGIN in headers or _SEC_FETCH_SITE in headers:
        return True
    return any("mozilla/" in agent.lower() for agent in headers.getall(hdrs.USER_AGENT, ()))


def _unauthorized(message: str) -> Refused:
    return Refused(401, message, "invalid_api_key", headers={hdrs.WWW_AUTHENTICATE: "Bearer"})


def _check_site(request: RequestHead, host: Authority | None) -> None:
    """Turn away what a page of another site makes a browser send.

    Reading is let through: without CORS headers, which only allowed pages get, it cannot see the
    answer. A WebSocket is not bound by CORS, so opening one counts as changing something.
    """
    headers = request.headers
    if request.method in _READING_METHODS and not _is_websocket(headers):
        return
    sites = headers.getall(_SEC_FETCH_SITE, ())
    origins = headers.getall(hdrs.ORIGIN, ())
    if all(site in _OWN_SITES for site in sites) and all(
        host is not None and is_same_origin(origin, host) for origin in origins
    ):
        return
    raise Refused(403, _OTHER_SITE, "cross_site")
