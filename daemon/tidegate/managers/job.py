"""The job that a service manager starts and keeps alive; units and plists are written from it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from msgspec import Struct

NAME = "tidegate"  # of the unit, its user and its directories
LABEL = "dev.tidegate.tidegate"  # of the job under launchd, which wants a reversed domain


class Scope(Enum):
    """Whether the service is the system's or a user's."""

    SYSTEM = "system"  # the computer's: starts with it, under a user of its own
    USER = "user"  # one person's, under their name


class Job(Struct, frozen=True, kw_only=True):
    """`tidegate run` as a service. Every path is absolute; None means the usual place."""

    scope: Scope
    program: tuple[str, ...]  # what `tidegate` is here: one word, or an interpreter and its words
    config_file: Path | None = None
    state_dir: Path | None = None
    runtime_dir: Path | None = None
    log_file: Path | None = None  # None: standard error, which the journal reads
    user: str | None = None  # it runs as this user; None: as the service manager's own
    stop_limit_s: float = 30.0  # drain.stop_limit_s, which the manager's own limit must exceed

    @property
    def command(self) -> list[str]:
        """Return the whole command line."""
        flags = {
            "--config": self.config_file,
            "--state-dir": self.state_dir,
            "--runtime-dir": self.runtime_dir,
            "--log-file": self.log_file,
        }
        places = [word for flag, path in flags.items() if path for word in (flag, str(path))]
        return [*self.program, "run", *places]
