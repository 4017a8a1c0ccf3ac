"""Workers come and go: killed, stopped or recycled, and clients notice as little as possible."""

import asyncio
import signal

import psutil
import pytest

from fakes.client import Stream, chat, get, numbers, open_chat, replay, without_ids
from fakes.machine import is_alive, until
from fakes.scenario import SCALE, toml
from fakes.upstream import ScriptedUpstream

STREAMS = min(100, SCALE)


class Knocker:
    """A client that asks one small thing after the other, each on a connection of its own."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.answered = 0
        self.refused = 0
        self.broken = 0
        self.statuses: set[int] = set()

    async def __aenter__(self) -> "Knocker":
        self.going = True
        self.task = asyncio.create_task(self.knock())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.going = False
        await asyncio.wait_for(self.task, 10)

    async def knock(self) -> None:
        while self.going:
            try:
                answer = await get(self.base_url, "/healthz")
            except ConnectionRefusedError:
                self.refused += 1
            except (ConnectionError, asyncio.IncompleteReadError):
                self.broken += 1
            else:
                self.answered += 1
                self.statuses.add(answer.status)
            await asyncio.sleep(0.01)


async def test_a_killed_worker_is_replaced_and_no_client_is_refused(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """The listening socket outlives it: who comes meanwhile waits and is served by the next one."""
    running = gateway(toml(("box", scripted_upstream.url)))
    former = psutil.Process(running.worker_pid())
    stream = await open_chat(running.base_url, "stuck:10")
    await stream.read_events(5)
    async with Knocker(running.base_url) as knocker:
        await until(lambda: knocker.answered, 5, "it answers")
        former.kill()
        await until(lambda: not is_alive(former), 1, "the worker is dead")
        answer = await asyncio.wait_for(chat(running.base_url, "ok"), 3)
        assert answer.clean
        await until(lambda: knocker.answered > 10, 5, "it answers again")
        assert knocker.refused == 0
    await stream.read_rest()
    assert not stream.clean
    await stream.close()
    status = running.status()
    assert status["worker"]["pid"] != former.pid
    assert status["generation"] == 2
    assert status["restarts"][-1]["exit"] == -signal.SIGKILL
    await until(lambda: scripted_upstream.active == 0, 3, "the dead worker's stream is gone")


async def test_a_killed_watchdog_leaves_no_worker(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A worker without a watchdog exits at once: there are no orphans."""
    running = gateway(toml(("box", scripted_upstream.url)))
    running.expected_exit = -signal.SIGKILL
    worker = psutil.Process(running.worker_pid())
    stream = await open_chat(running.base_url, "stuck:10")
    await stream.read_events(5)
    running.process.kill()
    await until(lambda: not is_alive(worker), 3, "the worker is gone")
    await stream.read_rest()
    await stream.close()


async def test_a_stop_lets_streams_finish(gateway, scripted_upstream: ScriptedUpstream) -> None:
    """After SIGTERM an answer that is under way is finished, and the exit code is 0."""
    running = gateway(toml(("box", scripted_upstream.url)))
    streams = [await open_chat(running.base_url, "numbered:50:20") for _ in range(5)]
    for stream in streams:
        await stream.read_events(3)
    running.remember()
    running.process.send_signal(signal.SIGTERM)
    for stream in streams:
        await stream.read_rest()
        await stream.close()
        assert numbers(stream.events) == list(range(50))
        assert stream.clean
    assert await asyncio.to_thread(running.process.wait, 10) == 0


async def test_what_is_left_at_the_stop_limit_is_told(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """A stream that does not end in time gets an error event with the reason; the exit is 0."""
    running = gateway(toml(("box", scripted_upstream.url), rest="\n[drain]\nstop_limit_s = 1.0\n"))
    stream = await open_chat(running.base_url, "stuck:10")
    await stream.read_events(5)
    running.remember()
    running.process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(stream.read_rest(), 10)
    await stream.close()
    error = stream.events[-1].error
    assert error is not None
    assert "stop" in error["message"]
    assert b"[DONE]" not in stream.body
    assert await asyncio.to_thread(running.process.wait, 10) == 0


async def test_who_reads_nothing_does_not_hold_up_the_stop(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """The worker goes by itself, in time; it need not be killed for a client that hangs."""
    running = gateway(toml(("box", scripted_upstream.url), rest="\n[drain]\nstop_limit_s = 0.5\n"))
    stream = await open_chat(running.base_url, "bulk:60000", receive_buffer=16 * 1024)
    await until(lambda: scripted_upstream.seen("bulk:60000"), 5, "the upstream was asked")
    running.remember()
    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(running.process.wait, 10) == 0
    running.wait_logged("worker 1 exited (0)")
    await stream.vanish()


@pytest.mark.timeout(180)
async def test_a_recycle_cuts_no_stream(gateway, scripted_upstream: ScriptedUpstream) -> None:
    """Under a hundred numbered streams: no gap, no reset, no refusal, before, during, after."""
    running = gateway(toml(("box", scripted_upstream.url)))
    former = running.worker_pid()
    model = "numbered:100:30"
    before = [await open_chat(running.base_url, model) for _ in range(STREAMS)]
    readers = [asyncio.create_task(stream.read_all()) for stream in before]
    await until(lambda: len(scripted_upstream.seen(model)) == STREAMS, 20, "all are streaming")
    async with Knocker(running.base_url) as knocker:
        recycle = asyncio.create_task(asyncio.to_thread(running.ask, "recycle", 60.0))
        during = [await asyncio.wait_for(chat(running.base_url, "ok"), 10) for _ in range(30)]
        await asyncio.gather(*readers)
        await recycle
        after = await chat(running.base_url, "ok")
        assert knocker.refused == knocker.broken == 0
        assert knocker.answered > 10
    for stream in before:
        assert numbers(stream.events) == list(range(100))
        assert stream.events[-1].data == b"[DONE]"
        assert stream.clean
        await stream.close()
    assert all(answer.clean and answer.status == 200 for answer in [*during, after])
    status = running.status()
    assert status["worker"]["pid"] != former
    assert (status["generation"], status["recycles"]) == (2, 1)
    assert status["restarts"] == []


@pytest.mark.timeout(180)
async def test_a_run_of_the_draining_generation_is_reached_through_the_new_one(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """It is listed, shown, resumed without a gap, and cancelled, though another process has it."""
    running = gateway(toml(("box", scripted_upstream.url)))
    former = psutil.Process(running.worker_pid())
    creator = await open_chat(running.base_url, "numbered:2000:20")
    await creator.read_events(20)
    run = creator.run_id
    await asyncio.to_thread(running.ask, "recycle", 60.0, wait=False)
    assert running.worker_pid() != former.pid

    listed = (await get(running.base_url, "/v1/runs")).json()["data"]  # type: ignore[index]
    assert [(each["id"], each["state"]) for each in listed] == [(run, "streaming")]
    shown = (await get(running.base_url, f"/v1/runs/{run}")).json()
    assert shown["state"] == "streaming"  # type: ignore[index]

    resumed = await Stream.open(running.base_url, f"/v1/runs/{run}/stream?starting_after=9")
    await resumed.read_events(60)
    assert [event.id for event in resumed.events[:60]] == [str(i) for i in range(10, 70)]
    assert numbers(resumed.events[:60]) == list(range(9, 69))

    cancelled = await get(running.base_url, f"/v1/runs/{run}/cancel", method="POST")
    assert cancelled.json()["state"] == "cancelled"  # type: ignore[index]
    for stream in (creator, resumed):
        await asyncio.wait_for(stream.read_rest(), 5)
        await stream.close()
        error = stream.events[-1].error
        assert error is not None
        assert "cancelled" in error["message"]
    await until(lambda: not is_alive(former), 10, "the draining generation is gone")
    await until(lambda: scripted_upstream.active == 0, 3, "the upstream was let go")


@pytest.mark.timeout(180)
async def test_finished_answers_move_to_the_next_generation(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """What could be replayed before a recycle can be replayed after it, byte for byte."""
    running = gateway(toml(("box", scripted_upstream.url)))
    models = ("ok", "drop:3", "bulk:300", "numbered:30:0")
    answers = [await chat(running.base_url, model) for model in models]
    late = await open_chat(running.base_url, "numbered:60:30")
    await late.read_events(5)
    recycle = asyncio.create_task(asyncio.to_thread(running.ask, "recycle", 60.0))
    await late.read_rest()
    await late.close()
    await recycle
    for answer in [*answers, late]:
        again = await replay(running.base_url, answer.run_id)
        assert again.status == 200
        assert without_ids(bytes(again.body)) == bytes(answer.body)
    shown = (await get(running.base_url, f"/v1/runs/{answers[1].run_id}")).json()
    assert shown["state"] == "failed"  # type: ignore[index]
    assert 'upstream "box"' in shown["reason"]  # type: ignore[index]
