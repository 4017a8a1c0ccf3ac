"""The property list for launchd: how a Mac starts tidegate and keeps it alive.

A LaunchDaemon with a user of its own is the way: since macOS 15 a LaunchAgent may not reach other
computers on the network before its owner has allowed it (Local Network Privacy). `launchd/` holds
what this renders for an installation under /usr/local.

What the keys mean here, by launchd.plist(5):

- KeepAlive is a dictionary, for as a boolean it restarts what was stopped as asked, every ten
  seconds, for ever. `--park` keeps a daemon with a bad config from failing at all.
- ExitTimeOut is how long launchd waits after SIGTERM before it kills. macOS is said to cap it at
  60 s. What launchd has loaded governs, whatever the file or the config say by now; so the job is
  told in its environment, loaded with it, and a stop fits itself in: `stop_limit_warning`.
- ThrottleInterval is the least time from one start to the next. 10 is the default, written out.
- ProcessType unset means throttled processor and disk.
- Umask and the limit of Core keep prompts from other users and from the disk.
- HardResourceLimits leaves NumberOfFiles alone, which an administrator may have set lower.
- StandardErrorPath gets only what is written before the log file is open, and last stacks.

Run `python -m tidegate.managers.launchd.plist launchd` to write those files anew.
"""

from __future__ import annotations

import plistlib
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from tidegate.config.places import system_places
from tidegate.core.descriptors import needed
from tidegate.core.settings import Limits
from tidegate.managers.job import LABEL, Job, Scope
from tidegate.managers.launchd.activation import EXIT_VARIABLE, SOCKETS_NAME, fitting_stop_s
from tidegate.managers.sockets import parse

MOST_EXIT_S = 60  # what a loaded job gets at most
EXIT_MARGIN_S = 15.0  # beyond drain.stop_limit_s: the last error events, and the way out
THROTTLE_S = 10
DESCRIPTORS = needed(Limits().max_connections)  # a worker asks for more where the config does
SERVICE_USER = "_tidegate"


def plist(job: Job, sockets: Sequence[str] = ()) -> bytes:
    """Write the property list of this job, as XML.

    `sockets` are addresses as in the setting `listen` for launchd to open; none: tidegate does.
    """
    entries: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": [*job.command, "--park"],
        "EnvironmentVariables": {EXIT_VARIABLE: str(exit_timeout_s(job))},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_S,
        "ExitTimeOut": exit_timeout_s(job),
        "ProcessType": "Interactive",
        "Umask": 0o077,
        "SoftResourceLimits": {"Core": 0, "NumberOfFiles": DESCRIPTORS},
        "HardResourceLimits": {"Core": 0},
    }
    if job.scope is Scope.SYSTEM and job.user:
        entries |= {"UserName": job.user, "GroupName": job.user}
    if job.log_file:
        entries["StandardErrorPath"] = str(job.log_file.with_name("launchd.err"))
    if sockets:
        entries["Sockets"] = {SOCKETS_NAME: [_socket(address) for address in sockets]}
    return plistlib.dumps(entries, sort_keys=False)


def exit_timeout_s(job: Job) -> int:
    """Return how long launchd is asked to wait for a stop, in seconds."""
    return min(MOST_EXIT_S, ceil(job.stop_limit_s + EXIT_MARGIN_S))


def stop_limit_warning(stop_limit_s: float, exit_timeout_s: int) -> str | None:
    """Say why streams get less time for a stop, if so; `exit_timeout_s` is the loaded job's."""
    fitting_s = fitting_stop_s(stop_limit_s, exit_timeout_s)
    if fitting_s == stop_limit_s:
        return None
    return (
        f"drain.stop_limit_s is {stop_limit_s:g}, but launchd kills after {exit_timeout_s} s: "
        f"a stop gives answers in flight {fitting_s:g} s"
    )


def _socket(address: str) -> dict[str, object]:
    """Make one entry under Sockets. Raises BadAddress."""
    _, host, port = parse(address)
    if address.startswith("unix:"):
        return {"SockPathName": host, "SockPathMode": 0o660}
    family = "IPv6" if ":" in host else "IPv4"
    return {"SockNodeName": host, "SockServiceName": str(port), "SockFamily": family}


# --- the files that ship ---------------------------------------------------------------------


def shipped() -> dict[str, bytes]:
    """Write the files of `launchd/`, by name."""
    usual = system_places("darwin")
    system = Job(
        scope=Scope.SYSTEM,
        program=("/usr/local/bin/tidegate",),
        config_file=usual.config_file,
        state_dir=usual.state_dir,
        runtime_dir=usual.runtime_dir,
        log_file=usual.log_file,
        user=SERVICE_USER,
    )
    # A property list knows no "~", so the user who copies this one puts their name in.
    log_file = Path("/Users/YOU/Library/Logs/tidegate/tidegate.log")
    user = Job(scope=Scope.USER, program=system.program, log_file=log_file)
    return {f"{LABEL}.plist": plist(system), f"{LABEL}-agent.plist": plist(user)}


if __name__ == "__main__":
    for name, text in shipped().items():
        Path(sys.argv[1], name).write_bytes(text)
