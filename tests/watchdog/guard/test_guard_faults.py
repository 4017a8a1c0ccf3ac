"""The Nth system call of the watchdog fails, for every N: it never dies of it, a worker serves."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from fakes.gateway import Gateway
from fakes.machine import wait_until
from fakes.scaled_gateway import StartScaled, scaled_gateways
from tidegate.watchdog.control.client import NotRunning

pytestmark = pytest.mark.processes

FULL = int(os.environ.get("TIDEGATE_TEST_SCALE", "100")) >= 1000
LIMIT_S = 60.0
AT_A_TIME = 4
FAKE_WORKER = [sys.executable, str(Path(__file__).parents[1] / "fake_worker.py")]
# Each a second, in which a tenth of the real thing's passes.
TIMING = {
    "tick_s": 0.2,
    "beat_limit_s": 1.5,
    "start_limit_s": 4.0,
    "kill_wait_s": 0.3,
    "backoff_first_s": 0.05,
}
CONFIG = '[memory]\nbudget = "512MiB"\nrecycles_per_hour = 100\n'
ERRORS = {
    "send": ("EAGAIN", "ENOBUFS", "EPIPE"),
    "kill": ("EPERM",),
    "spawn": ("EMFILE", "ENOMEM", "EAGAIN"),
    "open": ("EMFILE", "ENOMEM", "EACCES"),
}
# Of most calls there are many that are alike: everyday runs take some, a full one takes all.
NUMBERS = {
    "send": range(1, 61) if FULL else range(1, 22, 4),
    "kill": range(1, 9) if FULL else range(1, 5),
    "spawn": range(1, 7) if FULL else range(1, 4),
    "open": range(1, 121) if FULL else range(1, 60, 11),
}


def played(start: StartScaled, call: str, nth: int) -> tuple[int, bool, str]:
    """Start, hang, kill, recycle, document, stop; whether the fault came, and what went wrong."""
    error = ERRORS[call][nth % len(ERRORS[call])]
    running = start(
        CONFIG,
        timing=TIMING,
        worker=FAKE_WORKER,
        fault={"call": call, "nth": nth, "error": error},
    )
    trouble = ""
    try:
        live_through(running)
    except AssertionError as failed:
        trouble = f"{call} {nth} {error}: {failed}\n{running.log.read_text()[-3000:]}"
        running.expected_exit = running.process.poll() or 0
        running.expect_traceback = True  # one report is enough
    return nth, "planted: " in running.log.read_text(), trouble


def status(running: Gateway) -> dict[str, Any]:
    """The status; asked again when the answer was what failed."""
    for _ in range(3):
        with suppress(NotRunning, TimeoutError, AssertionError, msgspec.MsgspecError):
            return running.status()
        ended = running.process.poll()
        assert ended is None, f"the watchdog ended with {ended}"
        time.sleep(0.1)
    raise AssertionError("the watchdog does not answer")


def serving(running: Gateway, but: int = 0) -> int:
    """The pid of the worker that serves, when it is another one."""

    def pid() -> int:
        worker = status(running)["worker"]
        return worker["pid"] if worker and worker["pid"] != but else 0

    wait_until(pid, LIMIT_S, "a worker serves", every_s=0.1)
    return pid() or serving(running, but)


def live_through(running: Gateway) -> None:
    first = serving(running)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(first).send_signal(signal.SIGSTOP)
    second = serving(running, but=first)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(second).kill()
    third = serving(running, but=second)
    for verb in ("recycle", "bundle", "recycle"):
        with suppress(Exception):  # its answer may be what failed
            running.ask(verb, 20.0)
    serving(running, but=third)
    wait_until(running.is_ready, LIMIT_S, "it answers")
    assert running.stop() == 0, "the exit code"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "call",
    ["send", *(pytest.param(call, marks=pytest.mark.long) for call in ERRORS if call != "send")],
)
def test_the_nth_call_may_fail(call: str) -> None:
    """Whichever fails, the watchdog goes on, a worker serves in the end, and it stops as asked."""
    with scaled_gateways() as start, ThreadPoolExecutor(AT_A_TIME) as pool:
        found = list(pool.map(lambda nth: played(start, call, nth), NUMBERS[call]))
    troubles = [trouble for _, _, trouble in found if trouble]
    assert not troubles, "\n\n".join(troubles)
    assert found[0][1], "the first one was never called"
