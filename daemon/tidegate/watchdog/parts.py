"""The parts of a watchdog, built in the order of what each stands on, and wired here alone."""

from __future__ import annotations

import functools
import logging
import selectors
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from tidegate.config import LoadedConfig
from tidegate.core.fleet import events
from tidegate.core.fleet import lifecycle as life
from tidegate.core.fleet.lifecycle import Timing
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.control import ControlRequest
from tidegate.core.protocol.status import Status
from tidegate.managers.sockets import BoundSocket
from tidegate.managers.systemd.notify import Notifier
from tidegate.watchdog.control.client import SOCKET_NAME
from tidegate.watchdog.control.commands import Commands, Daemon
from tidegate.watchdog.control.overview import Overview
from tidegate.watchdog.control.server import ControlClient, ControlServer
from tidegate.watchdog.control.status import Totals
from tidegate.watchdog.ending import Ending
from tidegate.watchdog.faults import Faults
from tidegate.watchdog.fleet.dispatcher import Dispatcher
from tidegate.watchdog.fleet.supervisor import Supervisor
from tidegate.watchdog.guard.chronicle import Chronicle
from tidegate.watchdog.guard.decision_log import DecisionLog
from tidegate.watchdog.guard.evidence import Evidence
from tidegate.watchdog.guard.guard import MemoryGuard
from tidegate.watchdog.guard.monitor import MemoryMonitor
from tidegate.watchdog.guard.pressure_signal import PressureSignal
from tidegate.watchdog.guard.samples import Samples
from tidegate.watchdog.listeners import Listeners
from tidegate.watchdog.notify.teller import Teller
from tidegate.watchdog.parking import Parking
from tidegate.watchdog.pid_file import PidFile
from tidegate.watchdog.readiness import Banner, Readiness
from tidegate.watchdog.reload import Reloader
from tidegate.watchdog.repairs import RepairMonitor
from tidegate.watchdog.runtime_dir import RuntimeDir
from tidegate.watchdog.signals import Signals
from tidegate.watchdog.upgrade.state import UpgradeState
from tidegate.watchdog.upgrade.upgrader import Handover, Upgrader
from tidegate.watchdog.workers.generations import Generations
from tidegate.watchdog.workers.process import Spawn, WorkerHandle, spawn

_log = logging.getLogger(__name__)


class Setup(Struct, frozen=True, kw_only=True, eq=False):
    """What a watchdog is started with, and what holds for its whole life."""

    load: Callable[[], LoadedConfig]  # raises ConfigError
    stand_in: Callable[[str], LoadedConfig]  # what a parked daemon runs on, from the reason
    runtime_dir: Path
    first_runtime_dir: Path  # where the configuration has it; the other may stand in for it
    state_dir: Path
    passed: list[BoundSocket]  # the sockets that the service manager opened
    pid_file: PidFile  # held
    inherited: UpgradeState | None  # what an upgrade left
    park: bool  # while the config cannot be used, rather than end
    banner: Banner
    worker_command: Sequence[str]
    timing: Timing
    spawn: Spawn = spawn
    make_selector: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector


class Parts:
    """All parts of a watchdog. An earlier one reaches a later one through the methods here."""

    def __init__(
        self, setup: Setup, daemon: Daemon, on_signals: Callable[[list[int]], None]
    ) -> None:
        """Build them. `daemon` does what the command line asks. Raises ListenError."""
        self._setup = setup
        self.faults = Faults()
        self.ending = Ending()
        self.selector = setup.make_selector()
        self.signals = Signals(self.selector, on_signals)
        self.notifier = Notifier()
        self.listeners = Listeners(setup.passed, self.notifier)
        inherited = setup.inherited
        self.totals = inherited.totals if inherited else Totals()
        self.samples = Samples(inherited.samples if inherited else ())
        self.chronicle = Chronicle(inherited.deeds if inherited else ())
        self._build_workers()
        self._build_control(daemon)
        self._build_config()
        self._build_overview()
        self._build_guard()
        self._build_decisions(daemon)
        self._build_upgrader()

    def _build_workers(self) -> None:
        """Build what starts worker processes, and what says that they serve."""
        setup = self._setup
        self.generations = Generations(
            command=setup.worker_command,
            runtime_dir=setup.runtime_dir,
            state_dir=setup.state_dir,
            policy=life.RestartPolicy(timing=setup.timing, gives_up=not setup.park),
            selector=self.selector,
            on_message=self._on_message,
            on_event=self.do,
            faults=self.faults,
            spawn=setup.spawn,
        )
        was_serving = setup.inherited is not None and setup.inherited.serves
        self.readiness = Readiness(
            self.notifier, self.generations, None if was_serving else setup.banner
        )

    def _build_control(self, daemon: Daemon) -> None:
        """Build the control socket, what keeps it in its place, and what answers there."""
        setup = self._setup
        self.control = ControlServer(
            setup.runtime_dir / SOCKET_NAME,
            self.selector,
            self._on_request,
            time.monotonic,
            setup.inherited.control_fd if setup.inherited else None,
        )
        self.runtime_dir = RuntimeDir(
            setup.first_runtime_dir,
            setup.state_dir,
            setup.pid_file,
            self.control,
            self.generations.move,
        )
        self.commands = Commands(daemon, self.generations, self.control, setup.timing.reply_s)

    def _build_config(self) -> None:
        """Build what brings a config into force, or stays up without a good one."""
        setup = self._setup
        self.reloader = Reloader(
            load=setup.load,
            stand_in=setup.stand_in,
            listeners=self.listeners,
            generations=self.generations,
            control=self.control,
            readiness=self.readiness,
            recycle=self.recycle,
            on_config=self._follow,
            limit_s=setup.timing.configured_s,
            faults=self.faults,
        )
        self.parking = Parking(
            parks=setup.park,
            reloader=self.reloader,
            generations=self.generations,
            start_worker=functools.partial(self.do, events.Begin()),
            end=self.ending.fail_at_once,
        )

    def _build_overview(self) -> None:
        """Build what the status is made of."""
        inherited = self._setup.inherited
        self.memory = MemoryMonitor()
        self.repair_monitor = RepairMonitor(
            self._setup.state_dir, inherited.repairs if inherited else None
        )
        self.teller = Teller(lambda: self.memory.level, inherited.outboxes if inherited else None)
        self.memory.other_pids = lambda: self.teller.pids
        self.overview = Overview(
            generations=self.generations,
            listeners=self.listeners,
            memory=self.memory,
            totals=self.totals,
            samples=self.samples,
            chronicle=self.chronicle,
            repairs=self.repair_monitor.open,
            receivers=self.teller.states,
            started_s=inherited.started_s if inherited else time.monotonic(),
        )

    def _build_guard(self) -> None:
        """Build what judges memory, and what is written down of it."""
        self.evidence = Evidence(
            generations=self.generations,
            state_dir=self._setup.state_dir,
            status=self.status,
            config=lambda: self.reloader.config,
            samples=self.samples,
        )
        self.memory_guard = MemoryGuard(
            memory=self.memory,
            generations=self.generations,
            evidence=self.evidence,
            decisions=DecisionLog(self._setup.state_dir),
            chronicle=self.chronicle,
            send_state=self.send_state,
            do=self.do,
        )
        self.pressure = PressureSignal(self.selector, self.memory)

    def _build_decisions(self, daemon: Daemon) -> None:
        """Build what performs lifecycle's decisions, and what hears the workers."""
        self.supervisor = Supervisor(
            generations=self.generations,
            reloader=self.reloader,
            overview=self.overview,
            commands=self.commands,
            evidence=self.evidence,
            runtime_dir=self.runtime_dir,
            totals=self.totals,
            chronicle=self.chronicle,
            faults=self.faults,
            send_state=self.send_state,
            ending=self.ending,
            stop=daemon.stop,
        )
        self.dispatcher = Dispatcher(
            generations=self.generations,
            reloader=self.reloader,
            commands=self.commands,
            memory_guard=self.memory_guard,
            memory=self.memory,
            evidence=self.evidence,
            readiness=self.readiness,
            listeners=self.listeners,
            totals=self.totals,
            faults=self.faults,
            status=self.status,
            news=lambda since: self.overview.news(since, self.status()),
            do=self.do,
        )

    def _build_upgrader(self) -> None:
        """Build what becomes the next version, of all that is to be left to it."""
        handover = Handover(
            started_s=self.overview.started_s,
            pid_file=self._setup.pid_file,
            runtime_dir=self.runtime_dir,
            generations=self.generations,
            listeners=self.listeners,
            control=self.control,
            commands=self.commands,
            reloader=self.reloader,
            readiness=self.readiness,
            memory=self.memory,
            repair_monitor=self.repair_monitor,
            totals=self.totals,
            samples=self.samples,
            chronicle=self.chronicle,
            teller=self.teller,
        )
        self.upgrader = Upgrader(
            handover, signals=self.signals, notifier=self.notifier, recycle=self.recycle
        )

    def _on_message(self, worker: WorkerHandle, message: msg.FromWorker) -> None:
        self.dispatcher.on_message(worker, message)

    def _on_request(self, client: ControlClient, request: ControlRequest) -> None:
        self.commands.on_request(client, request)

    def do(self, event: events.Event) -> list[events.Effect]:
        """Have lifecycle decide about the workers, and do what it says."""
        return self.supervisor.do(event)

    def recycle(self, reason: str) -> str | None:
        """Start the next generation; return why it was refused, or None."""
        effects = self.do(events.Recycle(reason, planned=False))
        return next((e.error for e in effects if isinstance(e, events.Refuse)), None)

    def _follow(self, config: LoadedConfig) -> None:
        """Apply to the watchdog itself a config that came into force."""
        settings = config.settings
        self.generations.policy = life.RestartPolicy(
            timing=self._setup.timing,
            recycle_limit_s=settings.drain.recycle_limit_s,
            recycles_per_hour=settings.memory.recycles_per_hour,
            gives_up=not self._setup.park,
        )
        self.memory.apply(settings.memory)
        self.teller.apply(config)
        if config.parked is not None:
            _log.warning("parked until the config is mended; /readyz says why")
        elif config.path is None:
            _log.info("no config file at %s; the defaults are in force", config.place)
        for warning in config.warnings:
            _log.warning("config: %s", warning)

    def status(self) -> Status:
        """Make the status from what is known now."""
        parked = None if self.generations.fleet.stopping else self.parking.reason
        return self.overview.now(parked, self.memory_guard.state())

    def send_state(self) -> None:
        """Send each worker its state update, unless one that does not read has others left."""
        seen = self.status()
        for worker in self.generations.ready():
            if not worker.channel.unsent_bytes:
                self.generations.send(worker, self.overview.state_update(worker.number, seen))
