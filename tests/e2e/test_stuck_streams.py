"""The original fault, a thousand times faster: streams that hang must leave nothing behind.

A gateway that frees a run's buffer only when the run ends cleanly keeps 200 KB for every stream
whose model call timed out. Here rounds of such streams are played, with every kind of client and
upstream, and afterwards nothing may be held: no byte, no run, no connection, no memory.
"""

import asyncio
from collections import Counter

import pytest

from fakes.client import Stream, chat, get, open_chat
from fakes.machine import descriptors, rss_bytes, until
from fakes.scenario import SCALE, toml, wait_idle
from fakes.upstream import OK, ScriptedUpstream

pytestmark = pytest.mark.alone

STUCK = "stuck:200"
LIMITS = """
total_s = 3.0
grace_s = 1.0
keep_finished_s = 0.0
close_flush_s = 0.5
disconnect_grace_s = 0.2
stall_s = 2.0
"""


async def read_to_the_end(base_url: str, model: str) -> str:
    """A client that reads; returns the reason it was given."""
    answer = await asyncio.wait_for(chat(base_url, model), 60)
    assert b"[DONE]" not in answer.body
    error = answer.events[-1].error if answer.status == 200 else answer.json()["error"]  # type: ignore[index]
    assert error is not None, bytes(answer.body[-300:])
    return str(error["message"])


async def vanish(base_url: str, model: str) -> str:
    """A client that is killed after a few events."""
    stream = await open_chat(base_url, model)
    await stream.read_events(20)
    await stream.vanish()
    return ""


async def never_read(base_url: str, model: str) -> str:
    """A client that reads nothing, and stays connected until it is dropped or the run is over."""
    stream = await open_chat(base_url, model, receive_buffer=16 * 1024)
    await asyncio.sleep(4.5)
    await stream.vanish()
    return ""


@pytest.mark.timeout(600)
async def test_rounds_of_stuck_streams_leave_nothing(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Every client gets the reason; ledger, runs and connections are 0; memory does not grow."""
    running = gateway(toml(("box", scripted_upstream.url), limits=LIMITS))
    worker = running.worker_pid()
    resident, open_files = [], []
    for _ in range(3):
        reasons = await asyncio.gather(
            *(read_to_the_end(running.base_url, STUCK) for _ in range(SCALE))
        )
        assert all("total_s = 3 s" in reason for reason in reasons), Counter(reasons)
        await wait_idle(running, scripted_upstream)
        resident.append(rss_bytes(worker))
        open_files.append(descriptors(worker))
    status = running.status()
    assert status["runs"]["total"] == 3 * SCALE
    listed = (await get(running.base_url, "/v1/runs")).json()["data"]  # type: ignore[index]
    assert not [run for run in listed if run["place"] == "memory"]
    assert resident[2] <= resident[0] * 1.05, resident
    assert open_files[2] <= open_files[0], open_files
    assert running.worker_pid() == worker


@pytest.mark.timeout(300)
@pytest.mark.parametrize("upstream", [STUCK, "drop:100", "reset:100"])
@pytest.mark.parametrize(
    "client",
    [
        vanish,
        pytest.param(read_to_the_end, marks=pytest.mark.long),
        pytest.param(never_read, marks=pytest.mark.long),
    ],
)
async def test_every_kind_of_client_and_upstream_leaves_nothing(
    gateway,
    scripted_upstream: ScriptedUpstream,
    client,  # type: ignore[no-untyped-def]
    upstream: str,
) -> None:
    """Whichever side goes first, and however, the ledger is at zero afterwards."""
    running = gateway(toml(("box", scripted_upstream.url), limits=LIMITS))
    crowd = max(10, SCALE // 5)
    reasons = await asyncio.gather(*(client(running.base_url, upstream) for _ in range(crowd)))
    if client is read_to_the_end:
        assert all(reasons)
    await wait_idle(running, scripted_upstream)
    assert running.status()["runs"]["total"] == crowd


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_an_end_that_never_completes_is_swept(gateway) -> None:  # type: ignore[no-untyped-def]
    """The demo's stuck model has no working time limit: the sweep ends it, tells why, frees it."""
    running = gateway(toml(limits="keep_finished_s = 0.0\nclose_flush_s = 0.5"))
    crowd = max(5, SCALE // 20)
    answers = await asyncio.gather(
        *(asyncio.wait_for(chat(running.base_url, "demo:stuck"), 60) for _ in range(crowd))
    )
    for answer in answers:
        error = answer.events[-1].error
        assert error is not None
        assert "swept: stuck" in error["message"]
        assert b"[DONE]" not in answer.body
    await wait_idle(running)
    swept = running.status()["swept"]
    assert swept["runs"] == crowd
    assert swept["bytes"] > 0
    assert "stuck" in swept["last_reason"]


@pytest.mark.timeout(120)
async def test_a_failover_leaves_nothing_of_the_first_attempt(
    gateway, scripted_upstream: ScriptedUpstream
) -> None:
    """When first_output_s fires, what the first attempt held is freed while the second works."""
    other = ScriptedUpstream().start()
    targets = '"one/preamble:200", "two/wait:2500"'
    try:
        running = gateway(
            toml(
                ("one", scripted_upstream.url),
                ("two", other.url),
                limits="first_output_s = 3.0\nkeep_finished_s = 0.0\nhold_s = 0.2",
                rest=f'\n[[model]]\nname = "both"\ntargets = [{targets}]\n',
            )
        )
        crowd = max(10, SCALE // 10)
        streams: list[Stream] = [await open_chat(running.base_url, "both") for _ in range(crowd)]

        async def bytes_held() -> list[int]:
            runs = (await get(running.base_url, "/v1/runs")).json()["data"]  # type: ignore[index]
            return [int(run["bytes"]) for run in runs]

        holding = 0
        while not other.seen("wait:2500"):
            holding = max([holding, *await bytes_held()])
            await asyncio.sleep(0.1)
        assert holding > 150_000
        await until(lambda: len(other.seen("wait:2500")) == crowd, 5, "all have failed over")
        assert max(await bytes_held()) < 20_000
        await until(lambda: scripted_upstream.open_connections == 0, 3, "the first was let go")
        for stream in streams:
            await stream.read_all()
            assert b"".join(event.raw for event in stream.events) == b"".join(OK)
            await stream.close()
        await wait_idle(running, scripted_upstream, other)
    finally:
        other.stop()
