"""What a token is for: its scope, and how that is bound to what is stored of it.

Who may do what is decided where requests come in (`gateway/server/auth`); this is the part that
files, processes and versions have to agree about.
"""

from __future__ import annotations

USE = "use"
READ = "read"
OWNER = "owner"

# What a token may do, as people read it. One whose scope is not in here may do nothing.
MEANINGS = {
    USE: "call models, and see, read and cancel its own runs",
    READ: "see models, figures and every token's runs, but call no model and read no answer",
    OWNER: "call models, see every token's runs, and cancel or delete any of them",
}


def stored_hash(key_sha256: str, scope: str) -> str:
    """Return what is stored of a key of this scope; `key_sha256` and the result are 64 hex digits.

    Of a token to use, which was once the only kind, that is the key's SHA-256 itself. Any other
    scope is hashed with it. So a program that knows no scopes finds no key for such a token, and
    one whose scope is changed or lost on the way lets nothing in: a token never becomes another.
    """
    if scope == USE:
        return key_sha256
    from hashlib import sha256  # noqa: PLC0415  (the watchdog reads scopes and never hashes)

    return sha256(f"tidegate token {scope} {key_sha256}".encode()).hexdigest()
