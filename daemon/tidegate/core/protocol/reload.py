"""What became of a reload: what the daemon answers over control.sock, and the command prints."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from tidegate.core.settings import Effect


class SettingChange(Struct, frozen=True, kw_only=True):
    """One difference. Where a value may be a secret, and where a whole entry came, none is told."""

    key: str  # as in the file, `upstream[box].limits.idle_s`; or "token laptop"
    what: str  # "added" | "removed" | "changed"
    old: str | None = None
    new: str | None = None
    effect: Effect

    def text(self) -> str:
        """Write it as one line, without when it takes effect."""
        if self.old is None or self.new is None:
            return f"{self.key}: {self.what}"
        return f"{self.key}: {self.old} → {self.new}"


class Why(Enum):
    """Why a new config is not in force."""

    CONFIG = "config"  # it has a mistake; the same file will be refused again
    ADDRESS = "address"  # one that it names cannot be listened on now
    BUSY = "busy"  # it needs a new worker, and one is just being replaced, or tidegate stops
    WORKER = "worker"  # the worker that was to take it over did not


class ReloadRefusal(Struct, frozen=True):
    """A refusal: the former config stays in force."""

    why: Why
    text: str  # with what to do


class ReloadRefused(Struct, frozen=True, kw_only=True):
    """The result of a reload that was refused; the text is the reply's error."""

    refused: Why


class Earlier(Struct, frozen=True, kw_only=True):
    """What was taken up unasked, because the file had changed."""

    changes: list[SettingChange]
    ago_s: float


class Reloaded(Struct, frozen=True, kw_only=True):
    """The result of a reload that was done."""

    changes: list[SettingChange]
    generation: int | None = None  # the new worker's, if one was needed
    unparked: bool = False  # a parked tidegate serves from now on
    warnings: list[str] = []  # what works, but perhaps not as its author thinks
    earlier: Earlier | None = None  # when nothing changed this time
