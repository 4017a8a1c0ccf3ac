"""An upgrade from the version before this one, with streams open: none is cut.

The former version comes out of the repository's history. Its daemon runs from a folder behind a
symbolic link, as a package manager would have it, and the link is turned while it streams.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fakes.client import Stream, get, replay
from fakes.former import install_former, install_present
from fakes.gateway import Gateway, StartGateway
from fakes.machine import until
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream
from tidegate.core.protocol.control import ControlRequest
from tidegate.machine.mounts import is_in_memory
from tidegate.watchdog.control.client import ask

# The last commit of 0.1.0, whose watchdog asks for `tidegate.service.worker`; one with the rooms of
# now; and the last one that kept nothing beside its workers.
FORMER = ("68e97ff", "64f5e77", "be88e7d")
WORDS, EACH_MS = 100, 60
MODEL = f"numbered:{WORDS}:{EACH_MS}"
STREAMED = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat")
EACH = 4


@pytest.fixture(params=FORMER)
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A link to the source folder of a former version."""
    return install_former(request.param, tmp_path)


def refused(running: Gateway, request: ControlRequest) -> str:
    """Why it is."""
    return ask(running.runtime_dir, request, 60.0).error or ""


def ask_the_former(running: Gateway) -> None:
    """The command of now asks the watchdog of then: what it knows is answered as ever."""
    for verb in (["status"], ["runs"], ["models"], ["sweep"], ["reload"]):
        done = running.command(*verb)
        assert done.returncode == 0, (verb, done.stderr)
    for verb in (["runs", "--all"], ["usage"], ["usage", "--by", "day"], ["forget", "run_x"]):
        done = running.command(*verb)
        assert done.returncode == 1, (verb, done.stdout)
        assert done.stderr.rstrip().endswith("`tidegate upgrade`"), done.stderr


@pytest.mark.timeout(120)
async def test_streams_outlive_an_upgrade_from_the_former_version(
    gateway: StartGateway, installed: Path, scripted_upstream: ScriptedUpstream
) -> None:
    """Every format's answers are whole, the former worker is not ended, and the new one serves."""
    running = gateway(
        toml(("box", scripted_upstream.url)), env={"PYTHONPATH": os.fspath(installed)}
    )
    ask_the_former(running)
    url, former = running.base_url, running.status()
    body = {"model": MODEL, "messages": [], "input": "x", "prompt": "x", "stream": True}
    opened = [await Stream.open(url, path, body) for path in STREAMED for _ in range(EACH)]
    readers = [asyncio.create_task(stream.read_all()) for stream in opened]
    await until(lambda: len(scripted_upstream.seen(MODEL)) == len(opened), 30, "all are streaming")

    install_present(installed)
    running.process.send_signal(signal.SIGUSR2)
    await until(lambda: running.status()["generation"] == 2, 30, "the new worker serves")
    # The new watchdog goes on talking with the former worker, whatever is asked meanwhile.
    assert len(running.status()["workers"]) == 2
    running.ask("models")
    running.ask("reload")
    assert len(running.ask("runs", all=True)["data"]) == len(opened)
    assert running.ask("usage")["data"] == []  # of the new worker, which remembers
    error = refused(running, ControlRequest(verb="forget", run="run_x"))
    assert error.startswith("worker 1 is of an older version, cannot forget"), error
    resumed = await replay(url, opened[0].headers["x-run-id"])
    assert resumed.clean
    answer = await get(url, "/v1/chat/completions", body | {"model": "ok", "stream": False})
    assert answer.status == 200

    await asyncio.gather(*readers)
    for stream in opened:
        assert stream.clean, stream.events[-1]
        await stream.close()
    await until(lambda: len(running.status()["workers"]) == 1, 30, "the former worker is gone")
    status = running.status()
    assert refused(running, ControlRequest(verb="forget")) == ""
    assert status["journal"]["keep"] == ("answers" if is_in_memory(running.runtime_dir) else "ends")
    assert (status["watchdog"]["pid"], status["restarts"]) == (former["watchdog"]["pid"], [])
    await until(lambda: running.status()["runs"]["total"] == len(opened) + 1, 5, "all are counted")
