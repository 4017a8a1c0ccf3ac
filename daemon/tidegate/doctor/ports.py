"""Checks that the addresses of `listen` are free, or are held by this tidegate already."""

from __future__ import annotations

import errno
import http.client
import os
from collections.abc import Callable, Collection, Iterator

from tidegate.core.problems import Problem
from tidegate.doctor.findings import finding
from tidegate.machine.processes import OURS, Neighbour, find_listener
from tidegate.managers import sockets


def check_ports(
    addresses: list[str],
    held: Collection[str] | None,
    holder_of: Callable[[int], Neighbour | None] = find_listener,
) -> Iterator[Problem]:
    """Check every address; `held` is where the running tidegate listens, None without one."""
    for address in addresses:
        if held is not None and _is_held(address, held):
            continue
        problem = _try(address, holder_of)
        if problem is not None:
            yield problem
        elif held is not None and not address.endswith(":0"):
            yield finding(
                "listen-differs",
                f"the config says {address}, and the running tidegate does not listen there",
                "run: tidegate reload; where the service manager opens the addresses, install it "
                "again with --socket",
                address,
            )


def _is_held(address: str, held: Collection[str]) -> bool:
    """Tell whether one of those is the address, or has its port at whatever address."""
    if address in held:
        return True
    try:
        port = sockets.parse(address)[2]
        return port > 0 and port in {sockets.parse(each)[2] for each in held}
    except sockets.BadAddress:
        return False


def _try(address: str, holder_of: Callable[[int], Neighbour | None]) -> Problem | None:
    """Bind the address for a moment, as tidegate would."""
    if address.startswith("unix:"):
        return None  # one that is left over is replaced at the start
    try:
        sockets.bind(address).sock.close()
    except sockets.BadAddress as error:
        return finding("config-bad", str(error), "correct `listen` in the config", address)
    except sockets.ListenError as error:
        return _explain(address, error, holder_of)
    return None


def _explain(
    address: str, error: sockets.ListenError, holder_of: Callable[[int], Neighbour | None]
) -> Problem:
    cause = error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    if number == errno.EADDRNOTAVAIL:
        return finding(
            "address-not-here",
            f"{address}: this computer does not have that address",
            "correct `listen` in the config; `ip addr` or `ifconfig` shows the addresses it has",
            address,
        )
    if number in {errno.EACCES, errno.EPERM}:
        return finding(
            "address-forbidden",
            f"{address}: user {os.geteuid()} may not open that port",
            "use a port above 1023, or: tidegate service install --socket",
            address,
        )
    holder = holder_of(int(address.rpartition(":")[2]))
    if (holder is None and says_tidegate(address)) or (holder is not None and holder.name == OURS):
        process = f", process {holder.pid}" if holder else ", of another user"
        return finding(
            "port-taken",
            f"{address} is in use by another tidegate{process}",
            "to examine that one, run doctor as the user whose it is (sudo tidegate doctor); for "
            "two of them, choose another port for `listen`",
            address,
        )
    if holder is None:
        by = "another program, which only root may see"
        fix = "end that program, or choose another port for `listen`; sudo tidegate doctor names it"
    else:
        by = f'"{holder.name}", process {holder.pid}'
        fix = f"end it (kill {holder.pid}), or choose another port for `listen` in the config"
    return finding("port-taken", f"{address} is in use by {by}", fix, address)


def says_tidegate(address: str) -> bool:
    """Tell whether the answer there is tidegate's: another user's process may not be looked at."""
    _, host, port = sockets.parse(address)
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (asked, not bound)
    connection = http.client.HTTPConnection(wildcard.get(host, host), port, timeout=2.0)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read(len(OURS) + 1) == f"{OURS} ".encode()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
