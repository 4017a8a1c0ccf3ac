"""The memory guard over real workers: what each level costs."""

from __future__ import annotations

import pytest

from fakes.machine import wait_until
from tidegate.core.memory.levels import LEAST_BUDGET_BYTES
from watchdog.daemon_rig import LIMIT_S, Daemon, is_alive

pytestmark = pytest.mark.processes


def test_memory_that_is_explained_is_swept(daemon: Daemon) -> None:
    """At level 2 and above the worker is told to sweep, and the level is in the status."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start()
    daemon.get("/ledger?120")
    wait_until(
        lambda: daemon.status()["swept"]["runs"] == 1, LIMIT_S, "the sweep was ordered and done"
    )
    daemon.wait_logged("memory level")
    steps = {step["step"]: step for step in daemon.status()["memory"]["steps"]}
    assert steps["stale"]["freed_bytes"] == steps["stale"]["promised_bytes"] > 0
    daemon.wait_logged("step stale freed")


def test_memory_that_is_unexplained_is_recycled(daemon: Daemon) -> None:
    """What the ledger does not explain is got rid of by a new generation, and documented."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start()
    daemon.get("/grow?120")
    wait_until(lambda: daemon.status()["recycles"] == 1, LIMIT_S, "it recycled")
    daemon.wait_logged("that no run explains")
    assert daemon.worker()["generation"] == 2
    bundles = [path.name for path in (daemon.directory / "bundles").iterdir()]
    assert any("recycle-memory" in name for name in bundles), bundles


def test_last_level_costs_the_worker_its_life(daemon: Daemon) -> None:
    """When raw use stays at the budget although it was swept, the worker is replaced."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start()
    daemon.get("/grow?200")
    wait_until(lambda: daemon.status()["generation"] == 2, LIMIT_S, "the replacement serves")
    assert "memory is at the last level" in daemon.status()["restarts"][0]["reason"]
    assert daemon.get() == "2"


def test_last_level_costs_no_second_life_while_the_first_ends(daemon: Daemon) -> None:
    """A worker that takes its time to die is waited for; its replacement holds nothing."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES})
    daemon.start(timing={"kill_wait_s": 2.0})
    pid = daemon.worker()["pid"]
    daemon.get("/grow?200")
    wait_until(lambda: daemon.status()["generation"] == 2, LIMIT_S, "the replacement serves")
    wait_until(lambda: not is_alive(pid), LIMIT_S, "the full one is gone")
    wait_until(
        lambda: len(daemon.status()["workers"]) == 1, LIMIT_S, "only the replacement is left"
    )
    assert daemon.status()["generation"] == 2


def test_observing_only_says_what_it_would_do(daemon: Daemon) -> None:
    """In observe mode nothing is swept, and the log says what would have been."""
    daemon.write(memory={"budget": LEAST_BUDGET_BYTES, "mode": "observe"})
    daemon.start()
    daemon.get("/ledger?120")
    wait_until(lambda: "would sweep" in daemon.log(), LIMIT_S, "it says so")
    assert daemon.status()["swept"]["runs"] == 0
    explained = 120 * 1024 * 1024
    wait_until(
        lambda: daemon.status()["memory"]["ledger_bytes"] == explained, LIMIT_S, "a beat tells"
    )
