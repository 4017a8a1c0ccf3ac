"""What a watchdog leaves to the program that it becomes, in a file without a name.

It lies in memory where the system can, for the config that is in force has keys in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from tidegate import __version__
from tidegate.config import LoadedConfig
from tidegate.core.decoding import Decoder, Undecodable
from tidegate.core.fleet.lifecycle import Fleet
from tidegate.core.notices.outbox import Outbox
from tidegate.core.protocol.news import Deed
from tidegate.core.protocol.status import StepState
from tidegate.core.protocol.worker import PROTOCOL
from tidegate.machine.nameless_file import nameless_file
from tidegate.watchdog.control.commands import KeptClients
from tidegate.watchdog.control.status import Totals
from tidegate.watchdog.listeners import KeptListener
from tidegate.watchdog.workers.generations import KeptWorker

FORMAT = 1  # of what is left behind; another one is refused in the preflight
MOST_FD = 2**31 - 1


class UpgradeError(Exception):
    """The program on the disk cannot take over. The text says why; nothing has changed."""


class UpgradeState(Struct, frozen=True, kw_only=True):
    """All that a watchdog leaves to the one that it becomes; its JSON is read by other versions."""

    format: int = FORMAT
    protocol: int = PROTOCOL
    version: str = __version__  # of the program that left it
    started_s: float  # monotonic, like all times here: the clock runs on
    serves: bool  # the service manager has been told that it is ready
    fleet: Fleet
    workers: list[KeptWorker]
    listeners: list[KeptListener]
    pid_fd: int
    control_fd: int
    runtime_dir: str | None = None  # where pid file and control socket are
    clients: KeptClients
    config: LoadedConfig | None
    totals: Totals
    alarms: int = 0
    steps: dict[str, StepState] = {}
    repairs: dict[str, float] = {}  # by id, since when
    samples: list[list[float]] = []  # rows of `watchdog.guard.samples`
    deeds: list[Deed] = []
    outboxes: dict[str, Outbox] = {}  # by receiver

    @property
    def descriptors(self) -> list[int]:
        """List the descriptors that have to survive execve."""
        fds = [self.pid_fd, self.control_fd, *self.clients.descriptors]
        return [*fds, *(w.fd for w in self.workers), *(each.fd for each in self.listeners)]


def write(state: UpgradeState) -> BinaryIO:
    """Write `state` to an open file that has no name; the caller closes it. Raises OSError."""
    file = nameless_file()
    file.write(msgspec.json.encode(state, enc_hook=str))  # a path is the only foreign type
    file.flush()
    return file


def read(fd: int) -> UpgradeState:
    """Read what was written. Raises UpgradeError when this version cannot go on with it."""
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(os.dup(fd), "rb") as file:
            text = file.read()
        about = _about.decode(text)
        if about.format != FORMAT:
            raise UpgradeError(f"what {about.version} leaves has another format; restart instead")
        if about.protocol != PROTOCOL:
            raise UpgradeError(
                f"the workers of {about.version} speak protocol {about.protocol} and {__version__} "
                f"speaks {PROTOCOL}; restart instead"
            )
        return _upgrade_state.decode(text)
    except (OSError, Undecodable) as error:
        raise UpgradeError(f"what the former version left cannot be read: {error}") from error


class _About(Struct, frozen=True):
    """Hold what must be known of a state before anything else of it is believed."""

    format: int
    protocol: int
    version: str


def _to_path(wanted: type, value: object) -> object:
    if wanted is not Path:
        raise NotImplementedError(f"{wanted} is not part of the state")
    return Path(str(value))


_about = Decoder(_About)
_upgrade_state = Decoder(UpgradeState, _to_path)
