"""An upgrade in the loop of a watchdog, from the request to the recycle that ends it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from msgspec import Struct

from tidegate import __version__
from tidegate.logs import handler as log
from tidegate.managers.systemd.notify import Notifier
from tidegate.watchdog.control.commands import Commands
from tidegate.watchdog.control.server import ControlServer
from tidegate.watchdog.control.status import Totals
from tidegate.watchdog.guard.chronicle import Chronicle
from tidegate.watchdog.guard.monitor import MemoryMonitor
from tidegate.watchdog.guard.samples import Samples
from tidegate.watchdog.listeners import Listeners
from tidegate.watchdog.notify.teller import Teller
from tidegate.watchdog.pid_file import PidFile
from tidegate.watchdog.readiness import Readiness
from tidegate.watchdog.reload import Reloader
from tidegate.watchdog.repairs import RepairMonitor
from tidegate.watchdog.runtime_dir import RuntimeDir
from tidegate.watchdog.signals import Signals
from tidegate.watchdog.upgrade import upgrade
from tidegate.watchdog.upgrade.state import UpgradeError, UpgradeState
from tidegate.watchdog.upgrade.upgrade import Upgrade
from tidegate.watchdog.workers.generations import Generations

_log = logging.getLogger(__name__)


class Handover(Struct, frozen=True, kw_only=True, eq=False):
    """The parts of a watchdog that the program it becomes goes on with."""

    started_s: float  # monotonic
    pid_file: PidFile
    runtime_dir: RuntimeDir
    generations: Generations
    listeners: Listeners
    control: ControlServer
    commands: Commands
    reloader: Reloader
    readiness: Readiness
    memory: MemoryMonitor
    repair_monitor: RepairMonitor
    totals: Totals
    samples: Samples
    chronicle: Chronicle
    teller: Teller

    def leave_behind(self) -> UpgradeState:
        """Gather what the new program has to know."""
        return UpgradeState(
            started_s=self.started_s,
            serves=self.readiness.has_served,
            fleet=self.generations.fleet,
            workers=self.generations.kept(),
            listeners=self.listeners.kept(),
            pid_fd=self.pid_file.fd,
            control_fd=self.control.fileno(),
            runtime_dir=str(self.runtime_dir.place),
            clients=self.commands.kept(),
            config=self.reloader.config,
            totals=self.totals,
            alarms=self.memory.alarms,
            steps=self.memory.steps,
            repairs=self.repair_monitor.since(),
            samples=[list(row) for row in self.samples.rows()],
            deeds=self.chronicle.deeds(),
            outboxes=self.teller.kept(),
        )

    def take_up(self, state: UpgradeState) -> bool:
        """Go on with what the former program left; tell whether it left a config and its workers.

        What the parts took up when they were made (descriptors, totals, repairs) is not repeated.
        """
        self.memory.resume(state.alarms, state.steps)
        self.listeners.resume(state.listeners)
        self.commands.resume(state.clients)
        if state.config is None:
            return False
        self.generations.adopt(state.fleet, state.workers, state.config)
        self.reloader.resume(state.config)
        return True


class Upgrader:
    """Become the program on the disk when asked, and replace the workers of the former one."""

    def __init__(
        self,
        handover: Handover,
        *,
        signals: Signals,
        notifier: Notifier,
        recycle: Callable[[str], str | None],
    ) -> None:
        """Prepare. `recycle` starts a new generation or says why not."""
        self.refused: str | None = None  # why the last one was
        self._handover = handover
        self._signals = signals
        self._notifier = notifier
        self._recycle = recycle
        self._upgrade: Upgrade | None = None  # one that is under way
        self._wants_recycle = False  # to end an upgrade, as soon as no other is under way

    def __repr__(self) -> str:
        return f"<Upgrader under_way={self._upgrade is not None} refused={self.refused!r}>"

    # --- the former program's side --------------------------------------------------------------

    def start(self) -> None:
        """Become the program that is on the disk now, unless its preflight fails."""
        if self._upgrade is not None:
            return
        if self._handover.generations.fleet.stopping:
            self._handover.commands.upgrade_failed("tidegate is stopping")
            return
        _log.info("upgrade: %s is tried", " ".join(upgrade.command()))
        try:
            self._upgrade = Upgrade(self._handover.leave_behind())
        except UpgradeError as error:
            self._refuse(error)

    def cancel(self) -> None:
        """Stop the one that is under way, if any: tidegate ends."""
        if self._upgrade is not None:
            cancelled, self._upgrade = self._upgrade, None
            self._handover.commands.upgrade_failed("tidegate is stopping")
            cancelled.cancel()

    def turn(self) -> None:
        """Become the new program after its preflight, as soon as no client is being answered."""
        if self._upgrade is None:
            return
        handover = self._handover
        is_quiet = handover.commands.is_quiet and not handover.reloader.is_under_way
        is_quiet = is_quiet and not handover.teller.is_sending
        try:
            if self._upgrade.is_due(time.monotonic(), is_quiet=is_quiet) and self._signals.hold():
                _log.info("upgrade: the new program takes over")
                self._notifier.alive()
                handover.reloader.leave()
                handover.teller.let_go()
                notify = self._notifier.environment()
                log.settle()
                upgrade.become(self._upgrade.argv, handover.leave_behind(), notify)
        except UpgradeError as error:
            self._signals.release()
            self._refuse(error)

    def give_up(self) -> None:
        """Go on as before: a fault of ours came between."""
        self._signals.release()
        self._refuse(UpgradeError("a fault of tidegate's own; its log has the stack"))

    def _refuse(self, error: UpgradeError) -> None:
        self._upgrade = None
        self.refused = str(error)
        _log.error("upgrade refused, nothing has changed: %s", error)
        self._handover.commands.upgrade_failed(
            f"the upgrade was refused, nothing has changed: {error}"
        )

    # --- the new program's side -----------------------------------------------------------------

    def resume(self, state: UpgradeState) -> bool:
        """Take up what the former program left; return False when it left nothing that serves."""
        _log.info("version %s goes on where %s left off", __version__, state.version)
        text = f"version {__version__} took over from {state.version}"
        self._handover.chronicle.note("upgrade", text)
        self._wants_recycle = self._handover.take_up(state)
        return self._wants_recycle

    def tick(self) -> None:
        """Start a worker of this version; again on the next tick while another recycle goes on."""
        if self._wants_recycle and self._recycle("upgrade") is None:
            self._wants_recycle = False
            self._handover.commands.upgrade_recycles()
