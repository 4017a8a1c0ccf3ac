"""Descriptors: enough of them for the clients that the config allows, and what waits behind one."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import termios
from array import array
from fcntl import ioctl

from tidegate.core.descriptors import ConnectionBounds, connection_bounds, needed

log = logging.getLogger(__name__)


def places_for(wanted: int) -> ConnectionBounds:
    """Allow ourselves descriptors for `wanted` clients; return for how many there are.

    The hard limit is what the service manager or the system allows; nothing here passes it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = needed(wanted)
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = connection_bounds(sys.maxsize if soft == resource.RLIM_INFINITY else soft)
    if found.clients < wanted:
        log.warning(
            "limits.max_connections is %d, but %d descriptors are enough for %d clients and their"
            " upstreams, so there will be no more than that; raise the limit of open files"
            " (LimitNOFILE in a unit, ulimit -Hn elsewhere) to %d, or lower the setting",
            wanted,
            soft,
            found.clients,
            enough,
        )
    return found


def has_unread(transport: asyncio.Transport | None) -> bool:
    """Say whether the kernel holds bytes of a connection that were not read yet."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    count = array("i", [0])
    try:
        ioctl(sock.fileno(), termios.FIONREAD, count)
    except OSError:
        return False
    return count[0] > 0
