"""The file of API tokens, by which clients authenticate.

A token is shown once, when it is made. The file keeps a name, a hash of the token, what it is for
and the day it was made, so that a stolen file authenticates no client. A plain SHA-256 is enough,
and a slow hash would only cost time: what is hashed is 256 random bits, not a password. A scope
other than `use` is hashed along with it (`core.scopes`), so that no other version of this program,
and no hand that changes the file, makes a token worth more than it was.

Each change takes a lock on the directory, writes a new file beside the old one and renames it,
so that a reader sees the one or the other and a power cut loses neither.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tidegate.core import scopes
from tidegate.core.decoding import Decoder, Undecodable
from tidegate.core.settings import Token
from tidegate.machine import private_file

TOKEN_BYTES = 32  # 256 bits of randomness
MAX_FILE_BYTES = 1024 * 1024  # some 7,000 tokens; beyond that it is not our file
MIN_PREFIX = 6  # hex digits of the SHA-256 that may stand for a token, as `token list` shows them

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_tokens = Decoder(list[Token])


class TokenError(Exception):
    """The file cannot be read or trusted, or a request about a token makes no sense.

    `command` puts it right, where one does; the text ends with it.
    """

    def __init__(self, text: str, command: str | None = None) -> None:
        super().__init__(text)
        self.command = command


def read(path: Path) -> list[Token]:
    """Read every token in the file; none when there is no file.

    Raises TokenError when others can read the file, or when it is damaged: a daemon that went on
    without its tokens would answer everybody.
    """
    try:
        text = private_file.read(path, max_bytes=MAX_FILE_BYTES, private=True)
    except FileNotFoundError:
        return []
    except private_file.UnreadableFile as error:
        raise TokenError(str(error), error.command) from error
    try:
        tokens = _tokens.decode(text)
    except Undecodable as error:
        raise TokenError(f"{path}: not a file of tokens: {error}") from error
    for token in tokens:
        if not (_NAME.fullmatch(token.name) and _NAME.fullmatch(token.scope)):
            raise TokenError(f"{path}: a token in it has a damaged name or scope")
        if not _SHA256.fullmatch(token.sha256):
            raise TokenError(f"{path}: the token {token.name} in it has a damaged SHA-256")
    return tokens


def warnings(path: Path, tokens: Iterable[Token]) -> list[str]:
    """Say of each token that lets nothing in, because what it is for is not known here."""
    return [
        f"{path}: the token {token.name} may do nothing, for this version does not know its scope "
        f"{token.scope}; if no newer version is to come, `tidegate token revoke {token.name}`"
        for token in tokens
        if token.scope not in scopes.MEANINGS
    ]


def new(path: Path, name: str, now: datetime | None = None, *, scope: str = scopes.USE) -> str:
    """Make a token called `name` and return it, the only time that it is shown.

    `scope` is one of `core.scopes`. Raises TokenError when the name is taken or no name.
    """
    import secrets  # noqa: PLC0415  (the watchdog reads tokens and never makes one)
    from hashlib import sha256  # noqa: PLC0415

    if not _NAME.fullmatch(name):
        raise TokenError(
            "a token's name is 1 to 64 letters, digits, '.', '_', '@' or '-', "
            "and begins with a letter or digit"
        )
    plaintext = "tg-" + secrets.token_urlsafe(TOKEN_BYTES)
    created = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    digest = scopes.stored_hash(sha256(plaintext.encode()).hexdigest(), scope)
    token = Token(name=name, sha256=digest, created=created, scope=scope)
    with _locked(path.parent):
        tokens = read(path)
        if any(other.name == name for other in tokens):
            raise TokenError(f"there is a token called {name} already; revoke it first")
        _replace(path, [*tokens, token])
    return plaintext


def revoke(path: Path, which: str, *, before_last: Callable[[], None] = lambda: None) -> Token:
    """Remove the token with this name, or with a SHA-256 that begins so, and return it.

    `before_last` is called before the last one goes, while no other command can change the file;
    what it raises leaves all as it was. Raises TokenError when there is none, or more than one.
    """
    _find(read(path), which)  # where nothing was ever made, there is nothing to lock
    with _locked(path.parent):
        tokens = read(path)
        token = _find(tokens, which)
        if len(tokens) == 1:
            before_last()
        _replace(path, [other for other in tokens if other != token])
    return token


def _find(tokens: list[Token], which: str) -> Token:
    for token in tokens:
        if token.name == which:
            return token
    hits = [t for t in tokens if len(which) >= MIN_PREFIX and t.sha256.startswith(which.lower())]
    if not hits:
        raise TokenError("there is no such token; `tidegate token list` shows them")
    if len(hits) > 1:
        raise TokenError("more than one token begins so; use the name or more of the SHA-256")
    return hits[0]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep two commands from changing the file at once; the lock goes with the descriptor."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TokenError(f"{directory}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, tokens: list[Token]) -> None:
    text = msgspec.json.format(msgspec.json.encode(tokens), indent=2) + b"\n"
    beside = path.with_name(path.name + ".new")
    try:
        beside.unlink(missing_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            _give_to_the_service(fd, path.parent)
            file.write(text)
            file.flush()
            os.fsync(fd)
        beside.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise TokenError(f"{path}: {error.strerror}") from error


def _give_to_the_service(fd: int, directory: Path) -> None:
    """Give root's file to the owner of the directory: the service's user has to read it."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
