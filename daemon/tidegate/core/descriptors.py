"""How many descriptors clients take, as the gateway, the watchdog and the doctor count them.

A client that is being answered takes two: its own connection, and the one to the upstream. When
none is left even the log can't be opened anew, so the bound on connections is kept below.
"""

from __future__ import annotations

from typing import NamedTuple

# For everything else: listeners, logs, evidence, the other generation, the demo, clients beyond
# the bound that look whether we are well. Of a very small limit a quarter.
_RESERVED = 256
_RESERVED_SHARE = 4
_BEYOND_SHARE = 4  # of what is reserved
_A_CLIENT = 2


class ConnectionBounds(NamedTuple):
    """The connections that there are descriptors for."""

    clients: int
    beyond: int  # more of them, which may only look whether we are well


def connection_bounds(limit: int) -> ConnectionBounds:
    """Count the connections that a process may serve with `limit` descriptors."""
    reserved = min(_RESERVED, limit // _RESERVED_SHARE)
    clients = max(1, (limit - reserved) // _A_CLIENT)
    return ConnectionBounds(clients, max(1, reserved // _BEYOND_SHARE))


def needed(clients: int) -> int:
    """Count the descriptors that a process should be allowed for so many clients."""
    return _A_CLIENT * clients + _RESERVED
