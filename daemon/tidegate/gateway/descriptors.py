"""How many clients there are descriptors for.

A client that is being answered takes two: its own connection, and the one to the upstream. When
none is left even the log can't be opened anew, so the bound on connections is kept below.
"""

from __future__ import annotations

import logging
import resource
import sys
from typing import NamedTuple

log = logging.getLogger(__name__)

# For everything else: listeners, logs, evidence, the other generation, the demo, clients beyond
# the bound that look whether we are well. Of a very small limit a quarter.
_RESERVED = 256
_RESERVED_SHARE = 4
_BEYOND_SHARE = 4  # of what is reserved
_A_CLIENT = 2


class Places(NamedTuple):
    """How many connections there are descriptors for."""

    clients: int
    beyond: int  # more of them, which may only look whether we are well


def places(limit: int) -> Places:
    """What a process may serve that may have `limit` descriptors."""
    reserved = min(_RESERVED, limit // _RESERVED_SHARE)
    clients = max(1, (limit - reserved) // _A_CLIENT)
    return Places(clients, max(1, reserved // _BEYOND_SHARE))


def places_for(wanted: int) -> Places:
    """Allow ourselves descriptors for `wanted` clients; return for how many there are.

    The hard limit is what the service manager or the system allows; nothing here passes it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _A_CLIENT * wanted + _RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = places(sys.maxsize if soft == resource.RLIM_INFINITY else soft)
    if found.clients < wanted:
        log.warning(
            "limits.max_connections is %d, but %d descriptors are enough for %d clients and their"
            " upstreams, so there will be no more than that; raise the limit of open files"
            " (LimitNOFILE in a unit, ulimit -Hn elsewhere) to %d, or lower the setting",
            wanted,
            soft,
            found.clients,
            needed,
        )
    return found
