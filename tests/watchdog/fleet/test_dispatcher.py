"""What workers say reaches the parts that it concerns. In virtual time."""

from __future__ import annotations

import signal

import pytest

from tidegate.core.fleet.lifecycle import Timing
from tidegate.core.protocol import worker as msg
from watchdog.world import REAL, World


def test_each_generation_knows_the_other_at_once(world: World) -> None:
    """When `--no-wait` returns, both have been told where the other is and what it is doing."""
    world.drain_s = 20.0
    # No tick comes in between that could have told them.
    world.start(timing=Timing(tick_s=60.0, gap_s=300.0))
    assert world.ask("recycle", wait=False).ok
    former, new = world.workers[1], world.workers[2]
    former.act()
    new.act()
    order = former.told.index(former.last(msg.StartDraining))
    knew = [each for each in former.told[:order] if isinstance(each, msg.StateUpdate)]
    assert knew[-1].peer_socket == str(world.directory / "worker-2.sock")
    facts = new.last(msg.StateUpdate)
    assert facts.peer_socket == str(world.directory / "worker-1.sock")
    assert facts.peer_active == {"box": 1}


def test_totals_outlive_a_worker(world: World) -> None:
    """Runs counted by one generation are still counted when another serves."""
    world.start()
    world.workers[1].runs = 2
    world.wait(2.0)
    assert world.status()["runs"]["total"] == 2
    assert world.ask("recycle").ok
    world.workers[2].runs = 1
    world.wait(2.0)
    assert world.status()["runs"]["total"] == 3


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"nonsense"}\n',
        b'{"type":"failed","reason":"\xff"}\n',
        b"[" * 10_000 + b"\n",
        b"\xff\n",
        b"9" * 5000 + b"\n",
    ],
    ids=lambda line: str(line[:12]),
)
def test_worker_that_talks_nonsense_is_replaced(
    world: World, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    """A line that is no message costs the worker its place; the watchdog stays."""
    world.start()
    world.workers[1].say_raw(line)
    world.until(lambda: 2 in world.workers and world.serving, "the replacement serves")
    assert "its message cannot be understood" in caplog.text
    world.wait(REAL.kill_wait_s)
    assert world.workers[1].signals[-1] == signal.SIGKILL


def test_failing_upstream_is_degraded(world: World) -> None:
    """The state is degraded while an upstream fails."""
    world.upstream = "failing"
    world.start()
    world.wait(2.0)
    status = world.status()
    assert (status["state"], status["upstreams"][0]["name"]) == ("degraded", "box")
    world.upstream = "ok"
    world.wait(2.0)
    assert world.status()["state"] == "serving"
