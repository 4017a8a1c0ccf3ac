"""Every function of the watchdog fails once, and every Nth system call: it turns on and answers."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

from fakes.failing_calls import ERRORS, MOST_CALLS, FailingCalls
from fakes.receiver import dead_port
from tidegate.config import LoadedConfig
from tidegate.core import problems as core_repairs
from tidegate.core.fleet import lifecycle
from tidegate.core.protocol import worker as msg
from tidegate.core.protocol.control import ControlRequest
from tidegate.core.settings import Notify
from tidegate.managers.systemd import notify
from tidegate.watchdog import (
    ending,
    listeners,
    parking,
    parts,
    readiness,
    reload,
    repairs,
    watchdog,
)
from tidegate.watchdog.control import commands, overview, pending, reload_replies, server, status
from tidegate.watchdog.faults import EXIT, SAMPLE, TICK, WAIT
from tidegate.watchdog.fleet import dispatcher, supervisor
from tidegate.watchdog.guard import (
    contents,
    decision_log,
    evidence,
    guard,
    monitor,
    pressure_signal,
)
from tidegate.watchdog.notify import sender, teller
from tidegate.watchdog.upgrade import upgrader
from tidegate.watchdog.workers import channel, generations, process
from watchdog.loop_rig import Loop, loop

# What a function that fails had in its hands is left to Python's garbage collector, which warns.
pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MODULES = [
    *(channel, commands, contents, server, decision_log, evidence, generations, guard, listeners),
    *(monitor, overview, process, pending, readiness, reload, reload_replies, repairs, status),
    *(dispatcher, supervisor, ending, parking, parts, pressure_signal, upgrader, watchdog),
    *(lifecycle, msg, notify, sender, teller),
]
# What turns, begins and ends the loop is not a handler of it; `__init__` is of the start.
NOT_HANDLERS = {
    "Watchdog._run", "Watchdog._turn", "Watchdog._end", "Watchdog.serve", "Watchdog._begin",
    "Watchdog._report_end", "Generations.clear", "Generations.close",
}  # fmt: skip


class Tap:
    """Counts the calls of functions, and has one of them raise once."""

    def __init__(self) -> None:
        self.called: dict[str, int] = {}
        self.armed: str | None = None

    def through(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, tapped."""

        @functools.wraps(function)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                self.called[name] = self.called.get(name, 0) + 1
                if self.armed == name:
                    self.armed = None
                    raise RuntimeError(f"{name} fails once")
            return function(*args, **kwargs)

        return tapped


def functions() -> Iterator[tuple[str, object, str, Any]]:
    """Each function and method of the watchdog's modules: its name, and where it is."""
    for module in MODULES:
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                yield name, module, name, value
            elif inspect.isclass(value) and not issubclass(value, BaseException | msgspec.Struct):
                for inner, method in vars(value).items():
                    if not inner.startswith("__") and inspect.isfunction(method):
                        yield f"{name}.{inner}", value, inner, method


@contextmanager
def taps() -> Iterator[Tap]:
    """All of them tapped."""
    tap = Tap()
    patches = [
        mock.patch.object(place, attribute, tap.through(name, function))
        for name, place, attribute, function in list(functions())
        if name not in NOT_HANDLERS
    ]
    for patch in patches:
        patch.start()
    try:
        yield tap
    finally:
        for patch in reversed(patches):
            patch.stop()


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One whose path is short enough for sockets."""
    monkeypatch.setattr(evidence, "LIMIT_S", 0.05)  # the scripted worker shows no inside
    with tempfile.TemporaryDirectory(prefix="tg-") as name:
        yield Path(name)


def ask_everything(daemon: Loop) -> None:
    """What is asked is answered, or hung up on."""
    for verb in ("status", "runs", "models", "sweep", "reload", "nonsense"):
        daemon.ask_raw(msgspec.json.encode(ControlRequest(verb=verb)) + b"\n")
    daemon.ask_raw(b'{"verb":"\xff"}\n')


def signal_a_reload(daemon: Loop) -> None:
    """One that no client waits for, and a tick."""
    signal.raise_signal(signal.SIGHUP)
    daemon.turns(4)


def lose_the_worker(daemon: Loop) -> None:
    """It is replaced."""
    former = daemon.serving
    os.kill(former.pid, signal.SIGKILL)
    daemon.until(lambda: daemon.serving not in (former, None), "the dead worker is replaced")


def recycle(daemon: Loop) -> None:
    """Asked for, with evidence; it succeeds or is refused."""
    daemon.ask_raw(b'{"verb":"recycle","wait":true}\n')
    daemon.until(lambda: len(daemon.watchdog.parts.generations) == 1, "one worker is left")
    daemon.ask_raw(b'{"verb":"bundle"}\n')


def tell(daemon: Loop) -> None:
    """A test to a receiver that is not there, by a process that is gone afterwards."""
    good = daemon.good()
    config = dataclasses.replace(
        good,
        settings=msgspec.structs.replace(good.settings, notify=[Notify()]),
        addresses={"notify": f"http://127.0.0.1:{dead_port()}/"},
    )
    daemon.load = lambda: config
    for line in (b'{"verb":"reload"}\n', b'{"verb":"notify-test"}\n'):
        daemon.ask_raw(line)
    lose_the_worker(daemon)
    daemon.until(lambda: not daemon.watchdog.parts.teller.is_sending, "nothing is on its way")
    daemon.load = daemon.good
    daemon.ask_raw(b'{"verb":"reload"}\n')


PARTS = (ask_everything, signal_a_reload, lose_the_worker, recycle, tell)
SHARDS = 2


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_function_fails_once(shard: int, directory: Path) -> None:
    """Whatever function of the watchdog raises, its loop goes on, answers, and has a worker."""
    with taps() as tap, loop(directory) as daemon:
        daemon.begin()
        parts: dict[str, Callable[[Loop], None]] = {}
        for part in PARTS:
            tap.called.clear()
            part(daemon)
            parts = dict.fromkeys(tap.called, part) | parts
        assert len(parts) > 150, sorted(parts)
        assert {"Teller._take_in", "Sender.outcome", "Commands.tested"} <= parts.keys()
        for name in sorted(parts)[shard::SHARDS]:
            tap.armed = name
            try:
                parts[name](daemon)
                tap.armed = None
                daemon.is_well()
            except BaseException as error:
                raise AssertionError(f"{name} failed once, and: {error!r}") from error


def test_every_nth_system_call_fails(directory: Path) -> None:
    """Each call that opens, reads, writes, looks or closes fails in turn, each in another way."""
    made = 0
    with loop(directory) as daemon:
        daemon.begin()
        for part in (ask_everything, signal_a_reload, lose_the_worker):
            for fail_at in range(1, MOST_CALLS):
                calls = FailingCalls(fail_at, ERRORS[fail_at % len(ERRORS)])
                try:
                    with calls.armed():
                        part(daemon)
                    daemon.is_well()
                except BaseException as error:
                    where = f"call {fail_at} of {part.__name__} failing with {calls.code}"
                    raise AssertionError(f"{where}: {error!r}") from error
                made += 1
                if calls.count < fail_at:
                    break
    assert made > 60


def failing(_: object = None) -> None:
    """What fails always."""
    raise RuntimeError("as ever")


@pytest.mark.parametrize(
    ("vital", "break_it"),
    [
        (TICK, lambda m: m.setattr(watchdog.life, "step", lambda *_: failing())),
        (SAMPLE, lambda m: m.setattr(guard.MemoryGuard, "tick", lambda *_: failing())),
        (EXIT, lambda m: m.setattr(generations.Generations, "gone", failing)),
        (WAIT, lambda m: m.setattr(watchdog.Watchdog, "_wait_s", failing)),
    ],
)
def test_what_must_not_fail_for_ever(
    vital: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tick, sample, exit or wait that fails three times in a row ends it with 75, unvouched."""
    vouched: list[bool] = []
    monkeypatch.setattr(
        notify.Notifier, "keep_alive", lambda _, __, *, is_well: vouched.append(is_well)
    )
    with loop(directory) as daemon:
        daemon.begin()
        with monkeypatch.context() as broken:
            worker = daemon.serving.process
            break_it(broken)
            assert daemon.watchdog._run() == os.EX_TEMPFAIL
            assert worker.wait(30) == 0  # it left when its channel closed
        assert vital in daemon.watchdog.parts.ending.text
        assert not vouched or not vouched[-1]
        assert daemon.faults.total < 20


def test_two_faults_and_a_success_end_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what fails in a row counts."""
    turns = 0
    tick = guard.MemoryGuard.tick

    def mostly_failing(self: guard.MemoryGuard, now_s: float, delay_s: float) -> None:
        nonlocal turns
        turns += 1
        if turns % 3:
            failing()
        tick(self, now_s, delay_s)

    monkeypatch.setattr(guard.MemoryGuard, "tick", mostly_failing)
    with loop(directory) as daemon:
        daemon.begin()
        daemon.until(lambda: turns > 12, "twelve samples")
        daemon.is_well()


def test_a_fault_is_a_repair_and_one_stack_a_minute(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its stack, the next ones are counted, and the status tells of it."""
    monkeypatch.setattr(core_repairs, "OPEN_AFTER_S", 0.0)
    monkeypatch.setattr(repairs.RepairMonitor, "free_bytes", failing)
    with loop(directory) as daemon:
        daemon.begin()
        monkeypatch.setattr(commands.Commands, "give_up_waiting", failing)
        monkeypatch.setattr(repairs.RepairMonitor, "free_bytes", lambda *_: None)

        def is_told() -> bool:
            status = msgspec.json.decode(daemon.ask("status").result)
            return any(each["id"] == "watchdog-fault" for each in status["repairs"])

        daemon.until(is_told, "a repair")
        daemon.until(lambda: daemon.faults.total > 10, "many faults")
    stacks = [r for r in caplog.records if r.exc_info and "limits of commands" in r.getMessage()]
    assert len(stacks) == 1


def test_a_config_that_our_own_judge_trips_over_is_refused(directory: Path) -> None:
    """The former config stays in force, and the client that asked is told whose fault it is."""
    with loop(directory) as daemon:
        daemon.begin()

        def trips() -> LoadedConfig:
            raise KeyError("this was not thought of")

        daemon.load = trips
        reply = daemon.ask("reload")
        assert not reply.ok
        assert "fault of tidegate's own (KeyError)" in str(reply.error)
        daemon.load = daemon.good
        assert daemon.ask("reload").ok
        daemon.is_well()


def test_a_worker_whose_channel_fails_is_replaced(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor is no longer waited for, and another worker takes the place."""
    with loop(directory) as daemon:
        daemon.begin()
        former = daemon.serving
        monkeypatch.setattr(former.channel, "receive", failing)
        daemon.until(lambda: daemon.serving not in (former, None), "another one serves")
        daemon.is_well()
