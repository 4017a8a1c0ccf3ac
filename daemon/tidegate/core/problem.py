"""Something that is wrong and that a person can mend: what it is, and how."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct


class Severity(Enum):
    """How much it matters; in order."""

    NOTE = "note"  # worth knowing; nothing fails for it
    WARNING = "warning"  # it will fail some day, or fails sometimes
    ERROR = "error"  # it fails now


class Problem(Struct, frozen=True, kw_only=True):
    """One finding. `id` names the kind and what it is about ("upstream-unreachable:box")."""

    id: str
    severity: Severity
    cause: str
    fix: str  # what to do, as a command where there is one
