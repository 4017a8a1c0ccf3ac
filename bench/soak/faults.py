"""The faults of a soak, and what people do to a daemon while it is busy.

Mild faults leave the worker alive and go on all the time, each kind in turn, in a random order.
Harsh ones cost a worker; they have an act of their own, for while one worker's memory is measured
it has to live. Whatever a client may notice of it is noted in the excuses, before it is done.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle

from fakes.gateway import Gateway
from soak.daemon import OTHER_TOTAL_S, TOTAL_S, Daemon
from soak.excuses import Excuses
from soak.upstream import Upstream

STOPPED_S = 3.0  # a stall: below the 10 s after which a worker counts as hung
HUNG_S = 13.0
NOTICED_S = 2.0  # until the last client of a worker that was killed has noticed
BUSY = "a reload is under way"  # the file's watcher was faster than the person; it is taken up
SERVING_LIMIT_S = 45.0  # a replacement after several deaths waits for its back-off

Fault = Callable[["Faults"], Awaitable[None]]


@dataclass(eq=False)
class Faults:
    """Causes them, and remembers when."""

    gateway: Gateway
    daemon: Daemon
    upstreams: list[Upstream]
    excuses: Excuses
    dice: random.Random
    clock: Callable[[], float]  # seconds since the soak began
    happened: list[tuple[float, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # verbs that failed; none should
    _is_on: bool = False
    _task: asyncio.Task[None] | None = None

    def go(self, every_s: float) -> None:
        """Cause a mild fault now and then."""
        self._is_on = True
        self._task = asyncio.create_task(self._cause(every_s))

    async def rest(self) -> None:
        """Stop causing faults, and wait until the last one is over."""
        self._is_on = False
        if self._task is not None:
            await self._task
            self._task = None

    async def _cause(self, every_s: float) -> None:
        order = self.dice.sample(list(MILD), len(MILD))
        for name in cycle(order):
            until_s = time.monotonic() + every_s * (0.5 + self.dice.random())
            while time.monotonic() < until_s:
                if not self._is_on:
                    return
                await asyncio.sleep(0.1)
            await self._one(name, MILD[name])

    async def harsh(self) -> None:
        """Cause every harsh fault once, and wait for service after each."""
        for name in self.dice.sample(list(HARSH), len(HARSH)):
            await self._one(name, HARSH[name])
            await self._wait_serving()
            await asyncio.sleep(1.5)  # load for the new worker, before it too has to go

    async def _one(self, name: str, fault: Fault) -> None:
        self.happened.append((round(self.clock(), 1), name))
        await fault(self)

    async def _wait_serving(self) -> None:
        deadline_s = time.monotonic() + SERVING_LIMIT_S
        while True:
            status = await asyncio.to_thread(self.gateway.status)
            if len(status["workers"]) == 1 and status["worker"] is not None:
                return
            if time.monotonic() > deadline_s:
                self.refused.append(f"no single worker after {SERVING_LIMIT_S:g} s")
                return
            await asyncio.sleep(0.2)

    # --- what faults are made of ---------------------------------------------------------------

    async def command(self, *arguments: str) -> None:
        """Run `tidegate ARGUMENTS`, as people type it."""
        done = await asyncio.to_thread(self.gateway.command, *arguments)
        if done.returncode and BUSY not in done.stderr:
            self.refused.append(f"tidegate {' '.join(arguments)}: {done.stderr.strip()[-200:]}")

    async def worker_pid(self) -> int | None:
        """Return the serving worker's process id, if there is one."""
        worker = (await asyncio.to_thread(self.gateway.status))["worker"]
        return int(worker["pid"]) if worker else None

    async def kill(self, pid: int | None) -> None:
        """Send SIGKILL."""
        now_s = time.monotonic()
        self.excuses.kill(now_s, now_s + NOTICED_S)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop_for(self, seconds: float, *pids: int | None) -> None:
        """Send SIGSTOP, and SIGCONT after a while."""
        known = [pid for pid in pids if pid is not None]
        for pid in known:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            for pid in known:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


# --- mild ----------------------------------------------------------------------------------------


async def an_upstream_dies(faults: Faults) -> None:
    upstream = faults.dice.choice(faults.upstreams)
    upstream.kill()
    await asyncio.sleep(1.0)
    await asyncio.to_thread(upstream.start_again)


async def an_upstream_stalls(faults: Faults) -> None:
    upstream = faults.dice.choice(faults.upstreams)
    upstream.stall()
    await asyncio.sleep(STOPPED_S)
    upstream.go_on()


async def the_worker_stalls(faults: Faults) -> None:
    await faults.stop_for(STOPPED_S, await faults.worker_pid())


async def the_watchdog_stalls(faults: Faults) -> None:
    await faults.stop_for(STOPPED_S, faults.gateway.pid)


async def the_computer_sleeps(faults: Faults) -> None:
    await faults.stop_for(2 * STOPPED_S, faults.gateway.pid, await faults.worker_pid())


async def a_new_config(faults: Faults) -> None:
    faults.daemon.write_config(OTHER_TOTAL_S)
    await asyncio.sleep(1.0)  # it is seen by itself
    faults.daemon.write_config(TOTAL_S)
    os.kill(faults.gateway.pid, signal.SIGHUP)


async def a_bad_config(faults: Faults) -> None:
    good = faults.daemon.config.read_text()
    faults.daemon.config.write_text(good + "\n[nonsense\n")
    os.kill(faults.gateway.pid, signal.SIGHUP)
    await asyncio.sleep(1.0)
    faults.daemon.write_config(TOTAL_S)
    await faults.command("reload")


async def a_sweep(faults: Faults) -> None:
    await faults.command("sweep")


async def a_sweep_of_finished_runs(faults: Faults) -> None:
    now_s = time.monotonic()
    faults.excuses.sweep(now_s, now_s + 5.0)
    await faults.command("sweep", "--finished")


async def tokens_change(faults: Faults) -> None:
    await faults.command("token", "new", "guest")
    await asyncio.sleep(0.5)
    await faults.command("token", "revoke", "guest")


async def somebody_looks(faults: Faults) -> None:
    await faults.command("status")
    await faults.command("runs", "--json")


MILD: dict[str, Fault] = {
    "upstream killed": an_upstream_dies,
    "upstream stopped": an_upstream_stalls,
    "worker stopped 3 s": the_worker_stalls,
    "watchdog stopped 3 s": the_watchdog_stalls,
    "both stopped 6 s": the_computer_sleeps,
    "new config": a_new_config,
    "bad config": a_bad_config,
    "sweep": a_sweep,
    "sweep --finished": a_sweep_of_finished_runs,
    "token made and revoked": tokens_change,
    "status and runs": somebody_looks,
}

# --- harsh ---------------------------------------------------------------------------------------


async def a_recycle(faults: Faults) -> None:
    await faults.command("recycle")


async def a_recycle_and_a_stall(faults: Faults) -> None:
    former = await faults.worker_pid()
    await faults.command("recycle", "--no-wait")
    await faults.stop_for(STOPPED_S, former)


async def the_worker_is_killed(faults: Faults) -> None:
    await faults.kill(await faults.worker_pid())


async def the_draining_worker_is_killed(faults: Faults) -> None:
    former = await faults.worker_pid()
    await faults.command("recycle", "--no-wait")
    await faults.kill(former)


async def the_new_worker_is_killed(faults: Faults) -> None:
    await faults.command("recycle", "--no-wait")
    await faults.kill(await faults.worker_pid())


async def the_worker_hangs(faults: Faults) -> None:
    now_s = time.monotonic()
    faults.excuses.kill(now_s, now_s + HUNG_S + NOTICED_S)
    await faults.stop_for(HUNG_S, await faults.worker_pid())


HARSH: dict[str, Fault] = {
    "recycle": a_recycle,
    "recycle, former one stopped": a_recycle_and_a_stall,
    "kill -9": the_worker_is_killed,
    "recycle, kill -9 of the former one": the_draining_worker_is_killed,
    "recycle, kill -9 of the new one": the_new_worker_is_killed,
    "worker stopped until it counts as hung": the_worker_hangs,
}
