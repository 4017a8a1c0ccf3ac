"""The start of a watchdog: what has to be held and known before its loop turns."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tidegate.config import ConfigError, LoadedConfig
from tidegate.core.fleet.lifecycle import Timing
from tidegate.logs import handler as log
from tidegate.machine.signals import block_early, write_stacks_when_asked
from tidegate.managers import sockets
from tidegate.managers.launchd import activation
from tidegate.managers.sockets import BoundSocket, ListenError
from tidegate.watchdog.parts import Setup
from tidegate.watchdog.pid_file import PID_FILE_NAME, AlreadyRunning, PidFile
from tidegate.watchdog.readiness import Banner
from tidegate.watchdog.upgrade import upgrade
from tidegate.watchdog.upgrade.state import UpgradeError
from tidegate.watchdog.watchdog import Watchdog
from tidegate.watchdog.workers.process import (
    WORKER_COMMAND,
    allow_many_descriptors,
    forbid_core_dumps,
)

# Errors of a disk or a computer that is short of something; any other will stay.
_PASSING = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
DEFAULT_TIMING = Timing()
_log = logging.getLogger(__name__)


def run(
    *,
    load: Callable[[], LoadedConfig],
    stand_in: Callable[[str], LoadedConfig],
    runtime_dir: Path,
    state_dir: Path,
    log_file: Path | None,
    park: bool = False,
    banner: Banner,
    worker_command: Sequence[str] = WORKER_COMMAND,
    timing: Timing = DEFAULT_TIMING,
) -> int:
    """Be the watchdog until told to stop; return the exit code.

    0 stopped as asked · 75 try again: another one runs, an address is taken, the disk is full, or
    workers die before they are ready · 78 the configuration or a directory is bad, and will be
    next time.
    `banner` is called once, when the first worker is ready, with the addresses really bound.
    """
    if upgrade.is_preflight(os.environ):
        return _preflight(load)
    block_early()
    try:
        log.setup("watchdog", log_file)
    except OSError as error:
        log.setup("watchdog")
        _log.error("cannot write the log file: %s", error)
        return _exit_code(error)
    write_stacks_when_asked()
    forbid_core_dumps()
    allow_many_descriptors()
    try:
        inherited = upgrade.inherited(os.environ)
    except UpgradeError as error:  # not in the preflight, yet now: a start from nothing is left
        _log.critical("%s", error)
        return os.EX_TEMPFAIL
    first_runtime_dir = runtime_dir
    if inherited and inherited.runtime_dir is not None:  # which may stand in for another one
        runtime_dir = Path(inherited.runtime_dir)
    pid_file = PidFile(runtime_dir / PID_FILE_NAME, inherited.pid_fd if inherited else -1)
    try:
        pid_file.hold()
    except AlreadyRunning as error:
        _log.error("%s", error)
        return os.EX_TEMPFAIL
    except OSError as error:
        _log.error("cannot lock the pid file: %s", error)
        return _exit_code(error)
    try:
        watchdog = Watchdog(
            Setup(
                load=load,
                stand_in=stand_in,
                runtime_dir=runtime_dir,
                first_runtime_dir=first_runtime_dir,
                state_dir=state_dir,
                passed=_passed_sockets(),
                pid_file=pid_file,
                inherited=inherited,
                park=park or activation.is_job(),
                banner=banner,
                worker_command=worker_command,
                timing=timing,
            )
        )
        return _serve(watchdog)
    except ListenError as error:
        _log.error("%s", error)
        return _exit_code(error.__cause__)
    finally:
        pid_file.release()


def _exit_code(error: BaseException | None) -> int:
    """Tell by the exit code whether it may be over when we are started again."""
    passes = isinstance(error, OSError) and error.errno in _PASSING
    return os.EX_TEMPFAIL if passes else os.EX_CONFIG


def _serve(watchdog: Watchdog) -> int:
    try:
        return watchdog.serve()
    except Exception:
        _log.exception("the watchdog itself failed")
        watchdog.parts.readiness.report_failure()
        return os.EX_SOFTWARE


def _preflight(load: Callable[[], LoadedConfig]) -> int:
    """Say on stderr why this program could not take over, if so; return the exit code."""
    try:
        inherited = upgrade.preflight(os.environ)
        if inherited.config is not None and inherited.config.parked is None:
            load()  # one that is parked may be helped by the other version
    except (UpgradeError, ConfigError) as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    return os.EX_OK


def _passed_sockets() -> list[BoundSocket]:
    """Take the sockets that the service manager opened for us. Raises ListenError."""
    passed = sockets.adopt_passed(os.environ, os.getpid())
    return passed + activation.adopt_activated() if activation.is_job() else passed
