"""Every kind of finding, with its severity.

A kind has one severity, so that a script can rely on it; what it is about is added behind a
colon ("upstream-silent:box"). A finding of a kind that is not in this table cannot be made.
"""

from __future__ import annotations

from tidegate.core.problems import Problem, Severity

_NOTES = (
    "budget-without-swap",
    "daemon-not-running",
    "journal-large",
    "key-not-here",
    "logs-large",
    "mac-sleeps",
    "service-drop-ins",
    "service-none",
    "service-not-enabled",
    "service-unreadable",
    "two-tidegates",
    "upstream-slow",
    "upstreams-none",
)
_WARNINGS = (
    "aiohttp-slow",
    "budget-exceeds-memory",
    "clock-jumps",
    "clock-unsynchronised",
    "config-warning",
    "config-writable",
    "daemon-degraded",
    "daemon-not-ready",
    "daemon-other-version",
    "dependency-old",
    "descriptors-few",
    "disk-low",
    "inodes-low",
    "launchd-agent-network",
    "launchd-throttled",
    "listen-differs",
    "memory-overcommit",
    "memory-scarce",
    "service-linger",
    "service-memory-limit",
    "service-no-watchdog",
    "service-not-notify",
    "service-oom-policy",
    "service-open-files",
    "service-reload-needed",
    "service-restart",
    "service-stop-limit",
    "store-exposed",
    "store-unusable",
    "unfinished",
    "upstream-no-models",
)
_ERRORS = (
    "address-forbidden",
    "address-not-here",
    "clock-wrong",
    "config-bad",
    "credential-exposed",
    "daemon-parked",
    "daemon-silent",
    "directory-exposed",
    "directory-unusable",
    "disk-exhausted",
    "key-unusable",
    "local-network-refused",
    "port-taken",
    "python-old",
    "service-failed",
    "service-not-heard",
    "tokens-unusable",
    "upstream-error",
    "upstream-key-refused",
    "upstream-no-tokens",
    "upstream-silent",
    "upstream-unreachable",
)
SEVERITIES = {
    **dict.fromkeys(_NOTES, Severity.NOTE),
    **dict.fromkeys(_WARNINGS, Severity.WARNING),
    **dict.fromkeys(_ERRORS, Severity.ERROR),
}


def finding(kind: str, cause: str, fix: str, about: str = "") -> Problem:
    """Make a finding of a known kind. Raises KeyError for another one."""
    severity = SEVERITIES[kind]
    name = f"{kind}:{about}" if about else kind
    return Problem(id=name, severity=severity, cause=cause, fix=fix)
