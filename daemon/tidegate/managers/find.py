"""Finds the service manager of this computer."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from tidegate.managers.base import Manager, ManagerError
from tidegate.managers.job import Scope
from tidegate.managers.systemd.control import Systemd, is_booted


def find(
    scope: Scope | None = None,
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> Manager:
    """Return the manager of this computer; the system's for root, unless a scope is asked for.

    Raises ManagerError where there is none.
    """
    uid = os.geteuid() if uid is None else uid
    wanted = scope or (Scope.SYSTEM if uid == 0 else Scope.USER)
    if platform == "darwin":
        from tidegate.managers.launchd.control import Launchd  # noqa: PLC0415  (one of the two)

        return Launchd(wanted, environ=environ, uid=uid)

    if not is_booted():
        raise ManagerError(
            "this computer has neither systemd nor launchd: use `tidegate start`, or have its "
            "own init run `tidegate run`"
        )
    return Systemd(wanted, environ=environ, uid=uid)
