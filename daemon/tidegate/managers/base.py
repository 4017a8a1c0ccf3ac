"""The interface to the service managers, so that the same verbs do the same on every computer.

`Systemd` and `Launchd` are the two; `find` says which of them is here. A manager is asked and
never guessed: what it has loaded governs, not the file that lies beside it. Whatever goes wrong
is a ManagerError with a sentence for people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from tidegate.managers.files import File
from tidegate.managers.job import Job, Scope

Progress = Callable[[str], None]  # called with a line for each step

NO_CREDENTIALS = 243  # systemd.exec(5): EXIT_CREDENTIALS
_EXITS = {
    64: "wrong usage of `tidegate run`",
    70: "a defect of tidegate itself, see its log",
    75: "try again: an address is in use, another one runs, or workers do not start",
    78: "bad configuration",
    203: "the program cannot be executed",
    216: "the group does not exist",
    217: "the user does not exist",
    226: "its sandbox could not be set up, often for a directory that is not there",
    233: "its runtime directory could not be made",
    238: "its state directory could not be made",
    NO_CREDENTIALS: "its credentials could not be read",
}


class ManagerError(Exception):
    """The service manager is not there, cannot be reached, or refused."""


class UnitLimits(Struct, frozen=True, kw_only=True):
    """The limits that the manager enforces on the service; None: no limit, or it does not say."""

    stop_s: float | None = None  # from SIGTERM to SIGKILL
    watchdog_s: float | None = None
    memory_bytes: int | None = None
    open_files: int | None = None


class UnitState(Struct, frozen=True, kw_only=True):
    """The service as its manager sees it."""

    installed: bool  # it knows the service
    enabled: bool = False  # it starts it with the computer, or when its user logs in
    active: bool = False  # started, or about to be, or not yet stopped
    running: bool = False  # started, and has said so where it can
    word: str = "not installed"  # the manager's own word for it
    pid: int | None = None
    said: str = ""  # tidegate's latest line about itself, where the manager hears it
    result: str | None = None  # how it ended or failed last; None: well, or not yet
    exit_code: int | None = None  # of the last process that ended by itself
    restarts: int | None = None  # by the manager, since it was started
    file: Path | None = None
    drop_ins: list[Path] = []
    command: str = ""  # its words, joined by spaces
    limits: UnitLimits = UnitLimits()


class Manager(Protocol):
    """What `tidegate service` needs of a service manager. Every method may raise ManagerError."""

    @property
    def name(self) -> str:
        """Return "systemd" or "launchd"."""

    @property
    def scope(self) -> Scope:
        """Return whose services it manages."""

    @property
    def directory(self) -> Path:
        """Return where its files are written."""

    def supplied(self, job: Job) -> Path | None:
        """Return a file from a package that does the same already; None without one."""

    def files(self, job: Job, sockets: Sequence[str]) -> list[File]:
        """Make the files of the service; `sockets` are addresses for the manager to open."""

    def opens_sockets(self) -> bool:
        """Tell whether it was installed to open the addresses itself."""

    def enable(self, files: Sequence[File]) -> list[str]:
        """Have the manager read the files and start the service with the computer; notes on it."""

    def start(self, limit_s: float, progress: Progress) -> None:
        """Start the service and wait until it has; a ManagerError says why it has not."""

    def stop(self, limit_s: float, progress: Progress) -> None:
        """Stop the service and wait until its processes are gone."""

    def restart(self, limit_s: float, progress: Progress) -> None:
        """Stop the service if it runs, and start it."""

    def remove(self) -> list[str]:
        """Disable the service and remove its files; notes on what was kept."""

    def state(self) -> UnitState:
        """Return how the service is now."""

    def last_lines(self, number: int) -> list[str]:
        """Return the end of what the service has logged since its latest start."""

    def key_advice(self, variable: str, upstream: str) -> str | None:
        """Say where a key goes that the config expects in the environment; None: it has it."""

    def words(self, verb: str) -> str:
        """Return a command of the manager's own, for people to type."""


def exit_text(code: int) -> str:
    """Write an exit code and what it means."""
    return f"exit code {code} ({_EXITS[code]})" if code in _EXITS else f"exit code {code}"
