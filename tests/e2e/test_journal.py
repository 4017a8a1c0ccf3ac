"""What a worker gave survives it: killed, hung, replaced, upgraded, and its watchdog with it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from conftest import RUN_LONG
from fakes.client import Event, Stream, chat, get, open_chat, replay, without_ids
from fakes.gateway import Gateway
from fakes.machine import is_alive, until
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream

# On the disk, as the tests' own directories are on one.
KEPT = '\n[journal]\nkeep = "answers"\nplace = "disk"\n'
EACH = 20  # running, and finished
MOMENTS = 20 if RUN_LONG else 2
LOST_S = 1.0  # what a crash may cost


@dataclass
class Reader:
    """A client that notes when it had how many events."""

    stream: Stream
    had: list[tuple[float, int]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, base_url: str, model: str) -> Reader:
        reader = cls(await open_chat(base_url, model))
        reader.task = asyncio.create_task(reader._read())
        return reader

    async def _read(self) -> None:
        count = 0
        while True:
            count += 1
            try:
                await self.stream.read_events(count)
            except (ConnectionError, asyncio.IncompleteReadError, AssertionError):
                return
            if len(self.stream.events) < count:
                return
            self.had.append((time.monotonic(), len(self.stream.events)))

    async def end(self) -> None:
        assert self.task is not None
        await asyncio.wait_for(self.task, 30)
        await self.stream.close()

    @property
    def run_id(self) -> str:
        return self.stream.run_id

    def count_at(self, moment_s: float) -> int:
        """How many events it had by then."""
        return max((count for at_s, count in self.had if at_s <= moment_s), default=0)


async def answers(base_url: str, count: int = EACH) -> list[Stream]:
    """So many whole answers, of both kinds of road: with pauses, and at once."""
    return await asyncio.gather(
        *(chat(base_url, f"numbered:{20 + n}:{n % 2 * 5}") for n in range(count))
    )


async def begin(base_url: str, count: int = EACH) -> list[Reader]:
    """So many answers that go on for a while."""
    return [await Reader.begin(base_url, "numbered:3000:20") for _ in range(count)]


async def settle() -> None:
    """What has ended is written within a part of a second."""
    await asyncio.sleep(0.8)


async def check_whole(base_url: str, finished: list[Stream]) -> None:
    """Each is what its client had, byte for byte."""
    for answer in finished:
        again = await replay(base_url, answer.run_id)
        assert again.status == 200, again.body
        assert without_ids(bytes(again.body)) == bytes(answer.body)
        assert again.clean


async def check_interrupted(base_url: str, readers: list[Reader], died_s: float) -> None:
    """Each is failed, as far as its reader had it a second before, and ends with an error."""
    for reader in readers:
        await reader.end()
        shown = (await get(base_url, f"/v1/runs/{reader.run_id}")).json()
        assert isinstance(shown, dict)
        assert shown["state"] == "failed", shown
        again = await replay(base_url, reader.run_id)
        *events, error = again.events
        kept = len(events)
        assert shown["reason"] == f"the worker died at event {kept}"
        assert kept >= reader.count_at(died_s - LOST_S)
        had = [event.data for event in reader.stream.events]
        both = min(kept, len(had))
        assert [event.data for event in events[:both]] == had[:both]
        assert_is_error(error)
        assert b"[DONE]" not in again.body


def assert_is_error(event: Event) -> None:
    assert json.loads(event.data)["error"]["code"] == "worker_died", event


async def next_worker(running: Gateway, former: psutil.Process) -> None:
    """Waits until another worker serves."""
    await until(lambda: not is_alive(former), 30, "the worker is gone")
    await until(lambda: running.worker_pid() != former.pid, 30, "another one serves")
    await until(running.is_ready, 30, "it is ready")


@pytest.mark.timeout(600)
async def test_a_killed_worker_costs_a_second_of_what_it_was_giving(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """At any moment; what was finished is whole, and still is when the next one has died."""
    config = toml(("box", scripted_upstream.url), rest=KEPT)
    running = gateway(config)
    finished: list[Stream] = []
    drawn = random.Random(8)
    for moment in range(MOMENTS):
        if moment % 3 == 2:  # else the watchdog waits longer each time before it tries again
            assert await asyncio.to_thread(running.stop) == 0
            running = await asyncio.to_thread(gateway, config, after=running)
        finished = finished[-EACH:] + await answers(running.base_url)
        readers = await begin(running.base_url)
        await settle()
        await asyncio.sleep(drawn.uniform(0.0, 2.5))
        worker = psutil.Process(running.worker_pid())
        died_s = time.monotonic()
        worker.kill()
        await next_worker(running, worker)
        await check_whole(running.base_url, finished)
        await check_interrupted(running.base_url, readers, died_s)
    listed = (await get(running.base_url, "/v1/runs")).json()
    assert isinstance(listed, dict)
    ids = [run["id"] for run in listed["data"]]
    assert len(ids) == len(set(ids)) >= 2 * EACH


@pytest.mark.timeout(300)
async def test_a_worker_that_hangs_leaves_what_it_had(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """It is replaced, and then all is as after a kill."""
    running = gateway(toml(("box", scripted_upstream.url), rest=KEPT))
    finished = await answers(running.base_url, 5)
    readers = await begin(running.base_url, 5)
    await settle()
    worker = psutil.Process(running.worker_pid())
    stopped_s = time.monotonic()
    os.kill(worker.pid, signal.SIGSTOP)
    await next_worker(running, worker)
    await check_whole(running.base_url, finished)
    await check_interrupted(running.base_url, readers, stopped_s)


@pytest.mark.timeout(300)
async def test_both_may_be_killed_and_started_anew(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Whoever starts it again finds all that was written."""
    config = toml(("box", scripted_upstream.url), rest=KEPT)
    running = gateway(config)
    running.expected_exit = -signal.SIGKILL
    finished = await answers(running.base_url, 5)
    readers = await begin(running.base_url, 5)
    await settle()
    worker = psutil.Process(running.worker_pid())
    running.remember()
    died_s = time.monotonic()
    running.process.kill()
    worker.kill()
    await until(lambda: not is_alive(worker), 10, "the worker is gone")
    again = await asyncio.to_thread(gateway, config, after=running)
    await check_whole(again.base_url, finished)
    await check_interrupted(again.base_url, readers, died_s)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("verb", ["recycle", "upgrade"])
async def test_generations_write_beside_each_other(
    gateway, scripted_upstream: ScriptedUpstream, verb: str
) -> None:
    """While one drains and the other serves, both write; each of both may be killed."""
    running = gateway(toml(("box", scripted_upstream.url), rest=KEPT))
    finished = await answers(running.base_url, 5)
    kept = [await Reader.begin(running.base_url, "numbered:150:20") for _ in range(3)]
    former_readers = await begin(running.base_url, 3)
    former = psutil.Process(running.worker_pid())
    order = asyncio.create_task(asyncio.to_thread(running.ask, verb, 120.0))
    await until(lambda: running.worker_pid() != former.pid, 60, "the next one serves")
    await until(running.is_ready, 30, "it is ready")
    finished += await answers(running.base_url, 5)
    latter_readers = await begin(running.base_url, 3)
    for reader in kept:  # the former one gives them to their ends
        await reader.end()
        assert reader.stream.clean
        finished.append(reader.stream)
    await settle()
    await check_whole(running.base_url, finished)
    states = {
        run["id"]: run["state"]
        for run in (await get(running.base_url, "/v1/runs")).json()["data"]  # type: ignore[index, call-overload]
    }
    assert {states[reader.run_id] for reader in former_readers} == {"streaming"}
    died_s = time.monotonic()
    former.kill()
    await until(lambda: not is_alive(former), 10, "the former one is gone")
    await settle()
    await check_interrupted(running.base_url, former_readers, died_s)
    await check_whole(running.base_url, finished)
    latter = psutil.Process(running.worker_pid())
    died_s = time.monotonic()
    latter.kill()
    await next_worker(running, latter)
    await check_whole(running.base_url, finished)
    await check_interrupted(running.base_url, latter_readers, died_s)
    await order


async def test_no_prompt_key_or_token_is_in_any_file(
    gateway, scripted_upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Of what clients and upstreams are told in confidence there is no byte in either store."""
    key = tmp_path / "key"
    key.write_text("sk-canary-of-the-upstream")
    key.chmod(0o600)
    upstream = (
        f'[[upstream]]\nname = "box"\nurl = "{scripted_upstream.url}"\napi_key_file = "{key}"\n'
    )
    running = gateway(f"{upstream}{KEPT}")
    token = running.command("token", "new", "laptop").stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    said = [{"role": "user", "content": "the canary of a prompt"}]
    for model in ("ok", "drop:2", "status:503", "error-middle", "numbered:200:10"):
        await chat(running.base_url, model, headers=headers, messages=said)
    stream = await open_chat(running.base_url, "stall:3", headers=headers, messages=said)
    await stream.read_events(4)
    await settle()
    assert running.status()["journal"]["keep"] == "answers"
    folders = [running.state_dir / name for name in ("journal", "history")]
    files = [file for folder in folders for file in folder.iterdir()]
    assert {file.name for file in files} >= {"runs.db", "runs.db-wal", "history.db"}
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        found = file.read_bytes()
        for canary in (token, "canary", "sk-", key.read_text()):
            assert canary.encode() not in found, (file, canary)
    await stream.vanish()


async def test_a_stop_writes_all_down(gateway, scripted_upstream: ScriptedUpstream) -> None:
    """What ended just before it, and what it cut, with the reason that its reader was told."""
    config = toml(("box", scripted_upstream.url), rest=f"{KEPT}\n[drain]\nstop_limit_s = 0.5\n")
    running = gateway(config)
    cut = await open_chat(running.base_url, "numbered:3000:20")
    await cut.read_events(20)
    finished = await answers(running.base_url, 8)
    stopping = asyncio.create_task(asyncio.to_thread(running.stop))
    await asyncio.wait_for(cut.read_rest(), 20)
    assert await stopping == 0
    again = await asyncio.to_thread(gateway, config, after=running)
    await check_whole(again.base_url, finished)
    shown = (await get(again.base_url, f"/v1/runs/{cut.run_id}")).json()
    assert isinstance(shown, dict)
    assert (shown["state"], shown["place"]) == ("cancelled", "memory")
    assert "stop" in shown["reason"]
    replayed = await replay(again.base_url, cut.run_id)
    assert without_ids(bytes(replayed.body)) == bytes(cut.body)
    await cut.close()
