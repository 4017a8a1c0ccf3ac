"""The fleet in virtual time, with its real limits: lost workers, recycles, drains, giving up."""

from __future__ import annotations

import os
import signal

import pytest

from tidegate.core.memory.levels import usual_ledger_limit_bytes
from tidegate.core.protocol import worker as msg
from watchdog.world import REAL, World


def test_a_lost_worker_is_replaced_at_once_and_then_ever_later(world: World) -> None:
    """The first one without a wait, the next ones after a back-off that doubles."""
    world.start()
    took_s = []
    for number in range(1, 6):
        lost_s = world.now_s
        world.workers[number].send_signal(signal.SIGKILL)
        world.until(lambda: number + 1 in world.workers, "the next one starts")  # noqa: B023
        took_s.append(world.now_s - lost_s)
        world.until(lambda: world.serving, "it serves")
    assert took_s == pytest.approx([0.0, 0.5, 1.0, 2.0, 4.0], abs=1e-3)
    status = world.status()
    assert status["state"] == "degraded"
    assert {(r["exit"], r["reason"]) for r in status["restarts"]} == {(-9, "killed by SIGKILL")}


def test_service_for_a_minute_begins_the_back_off_anew(world: World) -> None:
    """Who served so long is replaced at once, whatever was before."""
    world.start()
    for number in (1, 2):
        world.workers[number].exit(3)
        world.until(lambda: number + 1 in world.workers, "the next one starts")  # noqa: B023
        world.until(lambda: world.serving, "it serves")
    world.wait(REAL.settled_s + 1)
    lost_s = world.now_s
    world.workers[3].exit(3)
    world.until(lambda: 4 in world.workers, "the next one starts")
    assert world.now_s == lost_s


def test_a_hung_worker_is_asked_for_its_stacks_killed_and_replaced(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """After ten missed beats, and not before; meanwhile the status is answered."""
    world.start()
    world.workers[1].hangs = True
    world.wait(REAL.beat_limit_s - 1)
    assert world.status()["generation"] == 1
    world.until(lambda: world.workers[1].signals, "it is asked")
    assert world.workers[1].signals == [signal.SIGUSR1, signal.SIGCONT]
    world.until(lambda: len(world.workers[1].signals) == 3, "it is killed")
    assert world.workers[1].signals[-1] == signal.SIGKILL
    world.until(lambda: world.status()["generation"] == 2, "the replacement serves")
    assert "no heartbeat for" in world.status()["restarts"][0]["reason"]


def test_a_worker_that_never_is_ready_is_ended_at_its_limit(world: World) -> None:
    """A recycle to one fails after half a minute, and the former one goes on."""
    world.slow_from = 2
    world.start()
    began_s = world.now_s
    reply = world.ask("recycle")
    assert "did not start: not ready after" in (reply.error or "")
    assert 0 <= world.now_s - began_s - REAL.start_limit_s <= 2 * REAL.tick_s
    assert world.status()["generation"] == 1


def test_worker_that_outlives_its_drain_is_killed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop does not last longer than its limit and its margin, even if the worker hangs."""
    world.start()
    world.workers[1].hangs = True
    asked_s = world.now_s
    world.signal(signal.SIGTERM)
    assert world.run() == os.EX_OK
    timing = REAL
    most_s = 2.0 + timing.drain_margin_s + timing.tick_s + timing.kill_wait_s
    assert most_s - 1.5 < world.now_s - asked_s < most_s + 0.1
    assert "still draining after" in caplog.text


def test_a_drain_has_the_time_that_its_setting_gives(world: World) -> None:
    """A worker with streams goes at the limit; one that ends before is not waited for."""
    world.write(drain={"stop_limit_s": 600.0, "recycle_limit_s": 20.0})
    world.drain_s = 100.0
    world.start()
    asked_s = world.now_s
    world.signal(signal.SIGTERM)
    assert world.run() == os.EX_OK
    assert world.now_s - asked_s == pytest.approx(100.0, abs=0.1)
    assert world.workers[1].last(msg.StartDraining).limit_s == 600.0
    assert world.workers[1].signals == []


def test_second_signal_ends_at_once(world: World) -> None:
    """The second SIGTERM does not wait for streams."""
    world.write(drain={"stop_limit_s": 600.0})
    world.drain_s = 600.0
    world.start()
    asked_s = world.now_s
    world.signal(signal.SIGTERM)
    assert world.status()["state"] == "draining"
    world.signal(signal.SIGTERM)
    assert world.run() == os.EX_OK
    assert world.now_s - asked_s < 1.0


def test_recycle_without_wait_returns_when_the_new_one_serves(world: World) -> None:
    """`--no-wait` returns while the former generation still drains, and a second is refused."""
    world.drain_s = 20.0
    world.start()
    assert world.ask("recycle", wait=False).ok
    status = world.status()
    assert [w["state"] for w in status["workers"]] == ["draining", "serving"]
    assert status["state"] == "recycling"
    refused = world.ask("recycle")
    assert (refused.ok, refused.error) == (False, "a recycle is under way")


def test_recycle_with_wait_returns_when_the_former_one_is_gone(world: World) -> None:
    """It is one recycle and no restart."""
    world.drain_s = 15.0
    world.start()
    asked_s = world.now_s
    assert world.ask("recycle").ok
    assert world.now_s - asked_s == pytest.approx(15.0, abs=0.1)
    status = world.status()
    assert (status["generation"], status["recycles"], len(status["workers"])) == (2, 1, 1)
    assert status["restarts"] == []


def test_recycle_that_fails_changes_nothing(world: World) -> None:
    """A new generation that dies before it is ready leaves the former one serving."""
    world.fail_from = 2
    world.start()
    reply = world.ask("recycle")
    assert not reply.ok
    assert "told to fail" in (reply.error or "")
    status = world.status()
    assert (status["generation"], status["recycles"]) == (1, 0)


def test_crash_loop_gives_up_with_75(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Five workers in a row that die before they are ready end the daemon."""
    world.fail_from = 1
    world.start(serves=False)
    assert world.run() == os.EX_TEMPFAIL
    assert len(world.workers) == 5
    assert caplog.text.count("cannot go on: told to fail") == 5
    assert "giving up: 5 workers in a row" in caplog.text


def test_a_parked_one_never_gives_up(world: World) -> None:
    """It tries for ever, at last every five minutes."""
    world.fail_from = 1
    world.start(park=True, serves=False)
    world.wait(1500.0)
    tried = len(world.workers)
    assert tried > 5
    world.wait(REAL.park_backoff_max_s + 1)
    assert len(world.workers) == tried + 1


def test_a_worker_is_bounded_from_its_first_moment(world: World) -> None:
    """Its limit comes with its settings: clients may be there before the next second is."""
    world.start()
    assert world.ask("recycle").ok
    usual_bytes = usual_ledger_limit_bytes(world.status()["memory"]["budget_bytes"])
    for number in (1, 2):
        first = world.workers[number].told[0]
        assert isinstance(first, msg.Configure)
        assert 0 < first.ledger_limit_bytes <= usual_bytes


def test_sleep_of_the_computer_kills_no_worker(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """When all stood still, the watchdog sees the gap and starts all limits afresh."""
    world.start()
    world.workers[1].hangs = True  # the watchdog turns first
    world.sleep(3600.0)
    world.until(lambda: "the clock stood still" in caplog.text, "the gap is seen")
    world.workers[1].hangs = False
    world.wait(60.0)
    status = world.status()
    assert (status["generation"], status["restarts"]) == (1, [])


def test_a_tick_that_is_a_little_late_is_no_gap(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its delay is told, and every limit goes on."""
    world.start()
    world.wait(3.0)
    world.sleep(4.0)
    world.turns(1)
    assert world.status()["guard"]["tick_delay_s"] == pytest.approx(3.5, abs=0.6)
    assert "the clock stood still" not in caplog.text
