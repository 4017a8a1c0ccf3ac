"""The unit files for systemd, written for the version that reads them.

A key that a version does not know is ignored with a warning, and an unknown `Type=` counts as
`simple`, so nothing is written that the version found cannot read. `systemd/` holds what this
renders for Debian 12 (252) and the places of its package.

Run `python -m tidegate.managers.systemd.unit DIRECTORY` to write those files anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from tidegate.core.settings import Settings
from tidegate.managers.job import NAME, Job, Scope

OLDEST = 252  # Debian 12; `systemd/` is written for it
SOCKET_NAME = "http"  # what a .socket unit calls its descriptors
WATCHDOG_S = 60
STOP_MARGIN_S = 15.0  # beyond drain.stop_limit_s: the last error events, and the way out
CREDENTIALS = "/etc/tidegate/credentials"

# Nothing but its own directories and the network. What weighs most in `systemd-analyze security`
# are CapabilityBoundingSet, SystemCallFilter, RestrictNamespaces and RestrictAddressFamilies.
# ProcSubset=pid is left out: it hides /proc/meminfo and /proc/pressure from the memory guard.
_SANDBOX = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
DevicePolicy=closed
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
"""

# What a user's own service manager can give without privileges.
_USER_SANDBOX = """\
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
"""


def service_unit(job: Job, version: int) -> str:
    """Write `tidegate.service` for this job and that version of systemd."""
    parts = [_head(job), _unit(job, version), _service(job, version)]
    parts.append(_SANDBOX if job.scope is Scope.SYSTEM else _USER_SANDBOX)
    target = "multi-user.target" if job.scope is Scope.SYSTEM else "default.target"
    return "\n".join([*parts, f"[Install]\nWantedBy={target}\n"])


def socket_unit(job: Job, listen: Sequence[str], version: int) -> str:
    """Write `tidegate.socket` for these addresses, written as in the setting `listen`.

    With it the first connection starts the service, and no restart ever closes a port.
    """
    del version  # nothing in it depends on one
    addresses = [f"ListenStream={_escape(each.removeprefix('unix:'))}" for each in listen]
    lines = [
        f"# Enable it beside {NAME}.service: the first connection starts {NAME}, and the port",
        "# stays open whatever becomes of it. These addresses stand above the setting `listen`.",
        "[Unit]",
        f"Description={NAME}, an LLM streaming gateway (sockets)",
        "",
        "[Socket]",
        *addresses,
        f"FileDescriptorName={SOCKET_NAME}",
        "Backlog=1024",
        "SocketMode=0660",
        *([f"SocketGroup={job.user}"] if job.user else []),
        "# Trouble is the service's to tell; the socket stays.",
        "TriggerLimitIntervalSec=0",
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    return "\n".join(lines) + "\n"


def _head(job: Job) -> str:
    if job.scope is Scope.SYSTEM:
        return f"# {NAME} as a system service. Local changes belong into `systemctl edit {NAME}`."
    return (
        f"# {NAME} for one user. Local changes belong into `systemctl --user edit {NAME}`.\n"
        "# `loginctl enable-linger` keeps it running when its user is not logged in."
    )


def _unit(job: Job, version: int) -> str:
    network = ["Wants=network-online.target", "After=network-online.target"]
    lines = [
        "[Unit]",
        f"Description={NAME}, an LLM streaming gateway",
        "Documentation=man:tidegate(1)",
        *(network if job.scope is Scope.SYSTEM else []),
        "# An address may come late, so it is tried again for a while; then its owner has to look.",
        "# Dead workers do not count: tidegate replaces them itself.",
        "StartLimitIntervalSec=600",
        f"StartLimitBurst={10 if version >= 254 else 20}",
    ]
    return "\n".join(lines) + "\n"


def _service(job: Job, version: int) -> str:
    lines = [
        "[Service]",
        *_type(version),
        "NotifyAccess=main",
        f"ExecStart={_command_line(job.command)}",
        *_places(job),
        "UMask=0077",
        "",
        "# A hung worker is the watchdog process's affair; this is for that process itself.",
        f"WatchdogSec={WATCHDOG_S}",
        "Restart=on-failure",
        "RestartSec=5",
        *(["RestartSteps=5", "RestartMaxDelaySec=60"] if version >= 254 else []),
        "# 78 is a bad configuration: starting again would end the same way.",
        "RestartPreventExitStatus=78",
        "TimeoutStartSec=90",
        f"# Above drain.stop_limit_s ({job.stop_limit_s:g} s); while it drains it asks for more.",
        f"TimeoutStopSec={ceil(job.stop_limit_s + STOP_MARGIN_S)}",
        "KillMode=mixed",
        "# When the kernel kills the worker for its memory, the watchdog starts another one.",
        "OOMPolicy=continue",
        *(["MemoryPressureWatch=on"] if version >= 254 else []),
        "# The sockets that it bound itself outlive a crash and a restart.",
        "FileDescriptorStoreMax=16",
        *(["FileDescriptorStorePreserve=restart"] if version >= 254 else []),
        *(["LimitNOFILE=65536"] if job.scope is Scope.SYSTEM else []),
        "# A core dump would hold people's prompts.",
        "LimitCORE=0",
    ]
    return "\n".join(lines) + "\n"


def _type(version: int) -> list[str]:
    if version >= 253:
        return ["Type=notify-reload"]
    return ["Type=notify", "ExecReload=/bin/kill -HUP $MAINPID"]


def _places(job: Job) -> list[str]:
    """Write the user, and the directories that systemd makes for it."""
    if job.scope is Scope.USER:
        return ["# Config, state and runtime directories are the user's own (XDG), unless named."]
    lines = [f"User={job.user}", f"Group={job.user}"] if job.user else []
    for directory, kind, mode in (
        (job.config_file and job.config_file.parent, "Configuration", "0755"),
        (job.state_dir, "State", "0700"),
        (job.runtime_dir, "Runtime", "0750"),
    ):
        lines += _directory(directory, kind, mode) if directory else []
    if job.runtime_dir:
        lines.append(
            "RuntimeDirectoryPreserve=restart"
        )  # the journal, and Unix sockets of `listen`
    # Every file in there is a key: `api_key_file = "NAME"` finds the one of that name.
    return [*lines, f"LoadCredential=tidegate:{CREDENTIALS}"]


_ROOTS = {"Configuration": Path("/etc"), "State": Path("/var/lib"), "Runtime": Path("/run")}


def _directory(directory: Path, kind: str, mode: str) -> list[str]:
    """Have systemd make a directory in its own roots, or let one elsewhere through its sandbox."""
    root = _ROOTS[kind]
    if directory.is_relative_to(root) and directory != root:
        name = _quote(str(directory.relative_to(root)))
        return [f"{kind}Directory={name}", f"{kind}DirectoryMode={mode}"]
    if kind == "Configuration":
        return []
    return [f"ReadWritePaths={_quote(str(directory))}"]


def _escape(text: str) -> str:
    """Escape `%`, which would begin a specifier."""
    return text.replace("%", "%%")


def _command_line(words: Sequence[str]) -> str:
    """Quote a command line: a `$` has a meaning in all words but the first, systemd.service(5)."""
    program, *arguments = map(_quote, words)
    return " ".join([program, *(word.replace("$", "$$") for word in arguments)])


def _quote(word: str) -> str:
    """Quote one word of several."""
    text = _escape(word).replace("\\", "\\\\")
    if word and not any(c.isspace() or c in "\"'\\;" for c in word):
        return text
    return '"' + text.replace('"', '\\"') + '"'


# --- the files that ship ---------------------------------------------------------------------


def package_job() -> Job:
    """Return the job of the Debian package."""
    return Job(
        scope=Scope.SYSTEM,
        program=("/usr/bin/tidegate",),
        config_file=Path("/etc/tidegate/config.toml"),
        state_dir=Path("/var/lib/tidegate"),
        runtime_dir=Path("/run/tidegate"),
        user=NAME,
    )


def shipped() -> dict[str, str]:
    """Write the files of `systemd/`, by name."""
    system = package_job()
    user = Job(scope=Scope.USER, program=system.program)
    listen = Settings().listen
    return {
        f"{NAME}.service": service_unit(system, OLDEST),
        f"{NAME}.socket": socket_unit(system, listen, OLDEST),
        f"{NAME}-user.service": service_unit(user, OLDEST),
        f"{NAME}-user.socket": socket_unit(user, listen, OLDEST),
    }


if __name__ == "__main__":
    for file_name, unit in shipped().items():
        Path(sys.argv[1], file_name).write_text(unit)
