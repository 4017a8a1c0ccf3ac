"""What tokens may do while versions that know scopes and such that do not follow each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.client import Stream, chat_body, get
from fakes.former import install_former, install_present
from fakes.gateway import Gateway, StartGateway
from fakes.machine import until
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream

# 0.1.0, and the last commit whose tokens were all alike.
FORMERS = ("68e97ff", "be88e7d")
CHAT = "/v1/chat/completions"
MODEL = "numbered:400:20"


@pytest.fixture(params=FORMERS)
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A link to the source folder of a version that knows no scopes."""
    return install_former(request.param, tmp_path)


def new_token(running: Gateway, *words: str) -> str:
    made = running.command("token", "new", *words)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def by_the_former(running: Gateway, folder: Path, *words: str) -> str:
    """Have the former version's own command do something."""
    places = [
        "--config", str(running.config),
        "--state-dir", str(running.state_dir),
        "--runtime-dir", str(running.runtime_dir),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", *words, *places],
        env=os.environ | {"PYTHONPATH": os.fspath(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


async def statuses(running: Gateway, key: str, *run_ids: str) -> list[int]:
    """What a token gets for a look at the runs, at some of them, and for asking a model."""
    headers = {"Authorization": f"Bearer {key}"}
    paths = ["/v1/runs", *(f"/v1/runs/{run_id}" for run_id in run_ids)]
    looked = [(await get(running.base_url, path, headers=headers)).status for path in paths]
    asked = await get(running.base_url, CHAT, chat_body("ok", stream=False), headers=headers)
    return [*looked, asked.status]


@pytest.mark.timeout(120)
async def test_no_token_widens_or_narrows_in_an_upgrade(
    gateway: StartGateway, installed: Path, scripted_upstream: ScriptedUpstream
) -> None:
    """A version without scopes reads the new file and lets in what was always let in."""
    former = installed.with_name("former") / "daemon"
    running = gateway(
        toml(("box", scripted_upstream.url)), env={"PYTHONPATH": os.fspath(installed)}
    )
    laptop = by_the_former(running, former, "token", "new", "laptop").strip()
    panel, boss = new_token(running, "panel", "--read"), new_token(running, "boss", "--scope=owner")
    assert await statuses(running, laptop) == [200, 200]
    assert [await statuses(running, key) for key in (panel, boss)] == [[401, 401]] * 2
    listed = by_the_former(running, former, "token", "list")
    assert all(name in listed for name in ("laptop", "panel", "boss"))
    stream = await Stream.open(
        running.base_url, CHAT, chat_body(MODEL), headers={"Authorization": f"Bearer {laptop}"}
    )
    await stream.read_events(2)
    run = stream.run_id

    install_present(installed)
    running.process.send_signal(signal.SIGUSR2)
    await until(lambda: running.status()["generation"] == 2, 30, "the new worker serves")
    # The former worker drains: it hears of tokens, and shows no token what is another's.
    late = new_token(running, "late", "--read")
    assert len(running.status()["workers"]) == 2
    assert await statuses(running, laptop, run) == [200, 200, 200]
    for key in (panel, late):
        assert await statuses(running, key, run) == [200, 404, 403]
    assert await statuses(running, boss, run) == [200, 404, 200]
    cancelled = await get(
        running.base_url,
        f"/v1/runs/{run}/cancel",
        method="POST",
        headers={"Authorization": f"Bearer {boss}"},
    )
    assert cancelled.status == 404
    await stream.read_rest()
    assert stream.clean, stream.events[-1]
    await stream.close()
    await until(lambda: len(running.status()["workers"]) == 1, 30, "the former worker is gone")
    # What it handed over is seen: the worker that has it now knows scopes.
    assert await statuses(running, panel, run) == [200, 200, 403]

    # A former version that writes the file drops the scopes, and so the tokens that had one.
    by_the_former(running, former, "token", "new", "phone")
    assert await statuses(running, laptop) == [200, 200]
    for key in (panel, late, boss):
        assert await statuses(running, key) == [401, 401]


@pytest.mark.timeout(120)
async def test_a_reading_token_looks_on_through_a_recycle(
    gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """It sees a draining worker's runs with their names, and an owner ends them."""
    running = gateway(toml(("box", scripted_upstream.url)))
    laptop, panel = new_token(running, "laptop"), new_token(running, "panel", "--read")
    boss = new_token(running, "boss", "--scope", "owner")
    headers = {key: {"Authorization": f"Bearer {key}"} for key in (laptop, panel, boss)}
    stream = await Stream.open(
        running.base_url, CHAT, chat_body("numbered:3000:20"), headers=headers[laptop]
    )
    await stream.read_events(2)
    assert running.command("recycle", "--no-wait").returncode == 0
    path = f"/v1/runs/{stream.run_id}"
    for key in (panel, boss):
        listed = await get(running.base_url, "/v1/runs", headers=headers[key])
        [run] = listed.json()["data"]  # type: ignore[index]
        assert (run["id"], run["token"], run["state"]) == (stream.run_id, "laptop", "streaming")
    scraped = await get(running.base_url, "/metrics", headers=headers[panel])
    assert (scraped.status, b"tidegate_runs" in scraped.body) == (200, True)
    for key, status in ((panel, 403), (boss, 200)):
        answer = await get(running.base_url, f"{path}/cancel", method="POST", headers=headers[key])
        assert answer.status == status
    await stream.read_rest()
    assert stream.events[-1].error is not None
    await until(lambda: len(running.status()["workers"]) == 1, 30, "the former worker is gone")
