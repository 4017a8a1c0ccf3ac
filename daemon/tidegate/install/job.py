"""What a service manager is asked to start and keep alive. Units and plists are written from it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from msgspec import Struct

NAME = "tidegate"  # of the unit, its user and its directories
LABEL = "dev.tidegate.tidegate"  # of the job under launchd, which wants a reversed domain


class Scope(Enum):
    """Whose service it is."""

    SYSTEM = "system"  # the computer's: starts with it, under a user of its own
    USER = "user"  # one person's, under their name


class Job(Struct, frozen=True, kw_only=True):
    """`tidegate run` as a service. Every path is absolute."""

    scope: Scope
    program: tuple[str, ...]  # what `tidegate` is here: one word, or an interpreter and its words
    config_file: Path
    state_dir: Path
    runtime_dir: Path
    log_file: Path | None = None  # None: standard error, which the journal reads
    user: str | None = None  # whom it runs as; None: whoever owns the service manager
    stop_limit_s: float = 30.0  # drain.stop_limit_s, which the manager's own limit must exceed

    @property
    def command(self) -> list[str]:
        """The whole command line."""
        words = [*self.program, "run", "--config", str(self.config_file)]
        words += ["--state-dir", str(self.state_dir), "--runtime-dir", str(self.runtime_dir)]
        return [*words, "--log-file", str(self.log_file)] if self.log_file else words
