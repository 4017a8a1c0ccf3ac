"""What the command line asks, and the answers. In virtual time."""

from __future__ import annotations

import json
import time

import pytest

from tidegate.core.protocol import worker as msg
from watchdog.world import REAL, World


def test_runs_of_both_generations_are_listed(world: World) -> None:
    """While one drains, `runs` shows what both hold, newest first."""
    world.drain_s = 20.0
    world.start()
    assert world.ask("recycle", wait=False).ok
    assert [run["id"] for run in world.result("runs")["data"]] == ["run-2", "run-1"]


def test_models_are_those_of_the_serving_generation(world: World) -> None:
    """While one drains, `models` shows what the newer one knows; alone, a draining one answers."""
    world.drain_s = 20.0
    world.start()
    assert [upstream["name"] for upstream in world.result("models")["data"]] == ["box1"]
    assert world.ask("recycle", wait=False).ok
    assert [upstream["name"] for upstream in world.result("models")["data"]] == ["box2"]
    assert world.ask("stop", wait=False).ok
    answered = world.result("models")
    assert answered == {"object": "list", "data": answered["data"], "aliases": []}
    assert [upstream["name"] for upstream in answered["data"]] == ["box2"]


def test_worker_that_does_not_answer_is_named(world: World) -> None:
    """A request has a limit, and the error says which worker was silent."""
    world.mute = True
    world.start()
    asked_s = world.now_s
    assert world.ask("sweep").error == "worker 1 did not answer sweep within 5 s"
    assert 0 <= world.now_s - asked_s - REAL.reply_s < 2 * REAL.tick_s


def test_a_worker_that_ends_keeps_no_request_waiting(world: World) -> None:
    """Its exit is the answer."""
    world.mute = True
    world.start()
    asking = world.asking("sweep")
    world.turns(4)
    asked_s = world.now_s
    world.workers[1].exit(3)
    assert not asking.reply().ok
    assert world.now_s - asked_s < REAL.tick_s


def test_nonsense_requests_are_answered(world: World) -> None:
    """A line that is no request and a verb that is none get an error."""
    world.start()
    assert json.loads(world.ask_raw(b"{}\n"))["ok"] is False
    assert world.ask("dance").error == '"dance" is not a verb that this tidegate knows'


def test_stop_is_answered_when_it_is_over(world: World) -> None:
    """Not before the worker is gone."""
    world.drain_s = 2.0
    world.start()
    asking = world.asking("stop")
    assert world.run() == 0
    assert not asking.is_answered
    world.watchdog.parts.commands.stopped()
    assert asking.reply().ok


def test_status_tells_what_is_not_what_was(world: World) -> None:
    """A worker whose last heartbeat is older than a fifth of a second is asked for one."""
    world.beat_s = 8.0
    world.start()
    for served in range(1, 4):
        world.workers[1].runs = served
        world.wait(0.5)
        asked_s = world.now_s
        assert world.status()["runs"]["total"] == served
        assert world.now_s == asked_s


def test_status_does_not_wait_for_a_worker_that_hangs(world: World) -> None:
    """It is answered with the age of the last heartbeat."""
    world.start()
    world.workers[1].hangs = True
    world.wait(3.0)
    asked_s = world.now_s
    assert world.status()["worker"]["heartbeat_age_s"] == pytest.approx(3.5, abs=0.6)
    assert world.now_s - asked_s < 0.6


def test_a_former_worker_is_not_asked_to_beat(world: World) -> None:
    """It would end at a message that it does not know."""
    world.former = True
    world.beat_s = 2.0
    world.start()
    world.wait(1.0)
    assert world.status()["worker"]["heartbeat_age_s"] > 0.5
    assert not any(isinstance(each, msg.AskBeat) for each in world.workers[1].told)


def test_all_runs_are_those_of_the_files_too(world: World) -> None:
    """Each worker is told what is wanted."""
    world.start()
    assert world.ask("runs", all=True).ok
    assert world.workers[1].last(msg.ListRuns).all
    assert world.ask("runs").ok
    assert not world.workers[1].last(msg.ListRuns).all


def test_usage_is_asked_of_the_one_that_serves(world: World) -> None:
    """The other one writes to the same file."""
    world.drain_s = 20.0
    world.start()
    assert world.ask("recycle", wait=False).ok
    assert world.result("usage") == {"object": "list", "data": []}
    before = time.time() - 3600.0
    assert world.ask("usage", by="model", since_s=3600.0).ok
    asked = world.workers[2].last(msg.ListUsage)
    assert asked.by == "model"
    assert 0.0 <= asked.since - before < 60.0
    assert not any(isinstance(each, msg.ListUsage) for each in world.workers[1].told)


def test_usage_cannot_be_summed_up_by_anything(world: World) -> None:
    """A wrong word gets the right ones, and no worker is asked."""
    world.start()
    error = world.ask("usage", by="colour").error
    assert error == (
        '"colour" is no way to sum up usage; there are token, model, upstream, day, format'
    )
    assert world.ask("usage", since_s=1e300).ok
    assert world.workers[1].last(msg.ListUsage).since == 0.0


def test_all_that_are_ready_forget(world: World) -> None:
    """What the one that drains holds is forgotten too."""
    world.drain_s = 20.0
    world.start()
    assert world.ask("recycle", wait=False).ok
    reply = world.ask("forget", run="run_x")
    assert reply.ok
    assert json.loads(bytes(reply.result)) == {"runs": 2}
    assert [world.workers[n].last(msg.Forget).run for n in (1, 2)] == ["run_x", "run_x"]
    assert world.ask("forget").ok
    assert world.workers[2].last(msg.Forget).run is None


@pytest.mark.parametrize("verb", ["usage", "forget"])
def test_a_worker_that_remembers_nothing_is_not_asked(world: World, verb: str) -> None:
    """It would end at a message that it does not know; what to do instead is said."""
    world.former = True
    world.start()
    error = world.ask(verb).error
    assert error == f"the worker is of an older version and knows no {verb}; `tidegate recycle`"
    assert not any(isinstance(each, msg.Forget | msg.ListUsage) for each in world.workers[1].told)


def test_while_one_drains_that_cannot_forget_nothing_is_said_to_be_forgotten(
    world: World,
) -> None:
    """It holds answers in its memory; usage is another matter."""
    world.drain_s, world.former = 20.0, True
    world.start()
    world.former = False
    assert world.ask("recycle", wait=False).ok
    error = world.ask("forget", run="run_x").error
    assert error is not None
    assert error.startswith("worker 1 is of an older version, cannot forget")
    assert world.ask("usage").ok
    world.until(lambda: len(world.watchdog.parts.generations) == 1, "it is gone")
    assert world.ask("forget", run="run_x").ok
