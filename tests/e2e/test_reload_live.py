"""A reload of a real gateway: what counts at once does, and no stream is cut by it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.client import chat, get, numbers, open_chat
from fakes.gateway import Gateway, gateways
from fakes.machine import free_port, until, wait_until
from fakes.unconfigured import without_config
from fakes.upstream import ScriptedUpstream

# As systemd does it: the socket is descriptor 3 of a process that is told that it is meant.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
ANY = "auth.allow_without_token = true\n"


def write(running: Gateway, toml: str, listen: str | None = None) -> None:
    """The config, as an editor replaces it."""
    beside = running.config.with_name("config.toml.new")
    beside.write_text(f'listen = "{listen or f"127.0.0.1:{running.port}"}"\n{toml}')
    beside.replace(running.config)


def reload(running: Gateway) -> list[str]:
    """What the reload says; the watcher may have been a moment faster."""
    answer = running.ask("reload", 60.0)
    changes = answer["changes"] or (answer["earlier"] or {"changes": []})["changes"]
    return [
        f"{each['key']}: {each['old']} → {each['new']}" if each["old"] else each["key"]
        for each in changes
    ]


def box(upstream: ScriptedUpstream, more: str = "") -> str:
    return f'[[upstream]]\nname = "box"\nurl = "{upstream.url}"\n{more}'


@pytest.fixture(scope="module")
def shared() -> Iterator[Gateway]:
    """One gateway, whose config each test writes."""
    with gateways() as start:
        yield start()


async def test_new_limits_hold_for_new_answers_only(
    shared: Gateway, upstream: ScriptedUpstream
) -> None:
    """A stream under way keeps the limits that it began with; the next one has the new ones."""
    write(shared, box(upstream))
    reload(shared)
    stream = await open_chat(shared.base_url, "numbered:60:30")
    await stream.read_events(3)
    write(shared, f"[limits]\ntotal_s = 0.6\n{box(upstream)}")
    assert reload(shared) == ["limits.total_s: 3600 s → 0.6 s"]
    cut = await chat(shared.base_url, "numbered:60:30")
    assert "total_s" in cut.body.decode()
    await stream.read_rest()
    assert numbers(stream.events) == list(range(60))
    await stream.close()


async def test_a_limit_of_bodies_holds_at_once(shared: Gateway, upstream: ScriptedUpstream) -> None:
    """The very next request is measured by it."""
    write(shared, f'[limits]\nmax_body = "1KiB"\n{box(upstream)}')
    reload(shared)
    answer = await chat(shared.base_url, "ok", user="x" * 2000)
    assert answer.status == 413


async def test_models_and_upstreams_follow_at_once(
    shared: Gateway, upstream: ScriptedUpstream, other_upstream: ScriptedUpstream
) -> None:
    """An alias is listed and leads to its target, and another URL to another server."""
    alias = '[[model]]\nname = "fast"\ntargets = ["box/ok"]\n'
    write(shared, box(upstream, alias))
    assert "model[fast]" in reload(shared)
    listed: Any = (await get(shared.base_url, "/v1/models")).json()
    assert listed["data"][0]["id"] == "fast"
    write(shared, box(other_upstream, alias))
    assert reload(shared) == [f"upstream[box].url: {upstream.url} → {other_upstream.url}"]
    before = len(other_upstream.seen("ok"))
    assert (await chat(shared.base_url, "fast")).clean
    assert len(other_upstream.seen("ok")) == before + 1


async def test_a_limit_of_an_upstream_follows_at_once(
    shared: Gateway, upstream: ScriptedUpstream
) -> None:
    """With one place and no queue, the second request is refused from the reload on."""
    write(shared, f"[limits]\nmax_queued = 0\n{box(upstream, 'max_concurrent = 1')}")
    reload(shared)
    stream = await open_chat(shared.base_url, "stuck:1")
    await stream.read_events(1)
    refused = await chat(shared.base_url, "ok")
    assert refused.status in (429, 503)
    write(shared, f"[limits]\nmax_queued = 0\n{box(upstream, 'max_concurrent = 2')}")
    assert reload(shared) == ["upstream[box].max_concurrent: 1 → 2"]
    assert (await chat(shared.base_url, "ok")).status == 200
    await stream.vanish()


async def test_a_key_that_was_replaced_is_used_at_once(
    shared: Gateway, upstream: ScriptedUpstream
) -> None:
    """Its file has another content; what is told of it is that it changed."""
    key = shared.config.with_name("box.key")
    key.touch(0o600)
    key.write_text("first-CANARY")
    write(shared, box(upstream, f'api_key_file = "{key}"'))
    reload(shared)
    key.write_text("second-CANARY")
    assert reload(shared) == ["api key of box"]
    await chat(shared.base_url, "keyed")
    [seen] = upstream.seen("keyed")
    assert "second-CANARY" in str(seen)
    assert "CANARY" not in shared.log.read_text()


async def test_who_may_come_in_follows_at_once(shared: Gateway, upstream: ScriptedUpstream) -> None:
    """A host that is allowed, a token that was made, and one that was taken back."""
    write(shared, box(upstream))
    reload(shared)
    assert await status_of(shared, "llm.example.com") == 403
    write(shared, f'allowed_hosts = ["llm.example.com"]\n{box(upstream)}')
    assert reload(shared) == ["allowed_hosts: none → llm.example.com"]
    assert await status_of(shared, "llm.example.com") == 200
    made = shared.command("token", "new", "laptop")
    assert made.returncode == 0
    assert await status_of(shared, "localhost") == 401
    assert await status_of(shared, "localhost", made.stdout.strip()) == 200
    assert shared.command("token", "revoke", "laptop").returncode == 0
    assert await status_of(shared, "localhost") == 200
    await until(lambda: "token laptop: removed" in shared.log.read_text(), 10, "it is logged")
    assert shared.log.read_text().count("token laptop: added") == 1
    assert shared.log.read_text().count("token laptop: removed") == 1


async def status_of(running: Gateway, host: str, token: str = "") -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    more = f"Authorization: Bearer {token}\r\n" if token else ""
    writer.write(
        f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def test_a_memory_budget_follows_at_once(shared: Gateway, upstream: ScriptedUpstream) -> None:
    """The status and the ledger's limit go by it."""
    write(shared, f'[memory]\nbudget = "300MiB"\n{box(upstream)}')
    assert "memory.budget: auto → 300MiB" in reload(shared)
    assert shared.status()["memory"]["budget_bytes"] == 300 * 1024 * 1024
    write(shared, f'[memory]\nbudget = "200MiB"\nmode = "observe"\n{box(upstream)}')
    reload(shared)
    memory = shared.status()["memory"]
    assert (memory["budget_bytes"], memory["mode"]) == (200 * 1024 * 1024, "observe")


async def test_a_mistake_leaves_all_as_it_was(shared: Gateway, upstream: ScriptedUpstream) -> None:
    """The command says every mistake with its line and exits with 78; the gateway goes on."""
    write(shared, box(upstream))
    reload(shared)
    write(shared, f"nonsense = 1\nlimits.idle_s = 'x'\n{box(upstream)}")
    refused = shared.command("reload")
    assert refused.returncode == 78
    assert ":2: nonsense: unknown key" in refused.stderr
    assert ":3: limits.idle_s: must be a number of seconds" in refused.stderr
    assert (await chat(shared.base_url, "ok")).clean
    write(shared, box(upstream))
    mended = shared.command("reload")
    assert (mended.returncode, mended.stdout) == (0, "Nothing changed.\n")


async def test_a_stop_goes_by_the_newest_limit(gateway, upstream: ScriptedUpstream) -> None:
    """Also drain limits count from the reload on."""
    running = gateway(f"[drain]\nstop_limit_s = 600\n{box(upstream)}")
    stream = await open_chat(running.base_url, "stuck:1")
    await stream.read_events(1)
    write(running, f"[drain]\nstop_limit_s = 0.5\n{box(upstream)}")
    assert reload(running) == ["drain.stop_limit_s: 600 s → 0.5 s"]
    assert running.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere both addresses always go together")
async def test_the_same_port_is_opened_to_others_and_closed_again(
    gateway, upstream: ScriptedUpstream
) -> None:
    """From loopback to everywhere and back: answered by a new worker, and no stream is cut."""
    running = gateway(box(upstream))
    stream = await open_chat(running.base_url, "numbered:150:20")
    await stream.read_events(3)
    loopback, everywhere = (f"{host}:{running.port}" for host in ("127.0.0.1", "0.0.0.0"))
    write(running, ANY + box(upstream), everywhere)
    done = running.command("reload")
    assert done.returncode == 0, done.stderr
    assert f"listen: {loopback} → {everywhere} (recycled)" in done.stdout
    assert running.status()["listen"] == [everywhere]
    for host in ("127.0.0.1", "127.0.0.9"):
        assert (await get(f"http://{host}:{running.port}", "/readyz")).status == 200
    await stream.read_rest()
    assert numbers(stream.events) == list(range(150))
    await stream.close()

    await until(lambda: len(running.status()["workers"]) == 1, 30, "the former worker is gone")
    write(running, box(upstream), loopback)
    reload(running)
    assert running.status()["listen"] == [loopback]
    assert (await get(running.base_url, "/readyz")).status == 200
    await until(lambda: not connects("127.0.0.9", running.port), 10, "the others are shut out")


def connects(host: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex((host, port)) == 0


async def test_an_address_that_is_taken_leaves_all_as_it_was(
    gateway, upstream: ScriptedUpstream
) -> None:
    """It is said what to do, with 75, for it may pass; nothing of the new config is in force."""
    running = gateway(box(upstream))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        write(running, f'allowed_hosts = ["a.example"]\n{box(upstream)}', taken)
        refused = running.command("reload")
    assert refused.returncode == 75
    assert f"cannot listen on {taken}: another program listens there; stop it" in refused.stderr
    assert running.status()["generation"] == 1
    assert (await get(running.base_url, "/readyz")).status == 200
    assert "allowed_hosts: none" in running.command("reload").stdout


@pytest.mark.long
async def test_a_new_address_during_a_drain_follows_it(gateway, upstream: ScriptedUpstream) -> None:
    """It is not lost: when the last answer of the former worker is over, it is taken up."""
    running = gateway(box(upstream))
    stream = await open_chat(running.base_url, "numbered:100:30")
    await stream.read_events(3)
    running.ask("recycle", 60.0, wait=False)
    port = free_port()
    write(running, box(upstream), f"127.0.0.1:{port}")
    refused = running.command("reload")
    assert refused.returncode == 75
    assert "a recycle is under way" in refused.stderr
    assert running.status()["listen"] == [f"127.0.0.1:{running.port}"]
    await stream.read_rest()
    assert numbers(stream.events) == list(range(100))
    await stream.close()
    moved = [f"127.0.0.1:{port}"]
    await until(lambda: running.status()["listen"] == moved, 40, "it is taken up by itself")


async def test_a_swapped_config_map_is_taken_up(gateway, upstream: ScriptedUpstream) -> None:
    """The file is a link through a directory that is swapped; once, and logged once."""
    running = gateway(box(upstream))
    folder = running.config.parent
    text = running.config.read_text()
    for day, hosts in (("monday", ""), ("tuesday", 'allowed_hosts = ["a.example"]\n')):
        (folder / day).mkdir()
        (folder / day / "config.toml").write_text(hosts + text)
    (folder / "..data").symlink_to("monday")
    (folder / "link").symlink_to("..data/config.toml")
    (folder / "link").replace(running.config)
    (folder / "..data_new").symlink_to("tuesday")
    (folder / "..data_new").replace(folder / "..data")
    said = "config reloaded: allowed_hosts: none → a.example"
    await until(lambda: said in running.log.read_text(), 10, "it is taken up")
    running.process.send_signal(signal.SIGHUP)
    await until(lambda: "config reloaded: nothing changed" in running.log.read_text(), 10, "asked")
    assert running.log.read_text().count("config reloaded") == 2


async def test_a_change_that_no_worker_saw_is_taken_up(gateway, upstream: ScriptedUpstream) -> None:
    """Written while the worker is being replaced: its successor looks as soon as it serves."""
    running = gateway(box(upstream))
    os.kill(running.worker_pid(), signal.SIGKILL)
    write(running, f'allowed_hosts = ["a.example"]\n{box(upstream)}')
    said = "config reloaded: allowed_hosts: none → a.example"
    await until(lambda: said in running.log.read_text(), 20, "it is taken up")


@pytest.fixture
def unmade() -> Iterator[Gateway]:
    """A gateway of a user who has not even a directory for the config."""
    with without_config(has_folder=False) as running:
        yield running


@pytest.mark.long
def test_a_config_is_taken_up_whose_directory_did_not_exist(unmade: Gateway) -> None:
    """Made later, removed, and made again."""
    for name in ("box", "cloud"):
        unmade.config.parent.mkdir(parents=True)
        unmade.config.write_text(f'[[upstream]]\nname = "{name}"\nurl = "http://127.0.0.1:9"\n')
        wait_until(
            lambda: f"upstream[{name}]: added" in unmade.log.read_text(),  # noqa: B023
            10,
            f"{name} is taken up",
        )
        shutil.rmtree(unmade.config.parents[2])
        wait_until(
            lambda: f"upstream[{name}]: removed" in unmade.log.read_text(),  # noqa: B023
            10,
            "the defaults are back",
        )


def test_sockets_of_the_service_manager_are_kept() -> None:
    """Another `listen` is reported as what only a restart can bring; nothing is recycled."""
    folder = Path(tempfile.mkdtemp(prefix="tg-"))
    log = folder / "log"
    (folder / "config.toml").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as given, log.open("ab") as output:
        port = given.getsockname()[1]
        process = subprocess.Popen(
            [
                sys.executable, "-c", ACTIVATE, str(given.fileno()),
                sys.executable, "-m", "tidegate", "run",
                *("--config", str(folder / "config.toml")),
                *("--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"LISTEN_FDS": "1"},
            pass_fds=[given.fileno()],
        )  # fmt: skip
    running = Gateway.of(process, folder, port)
    try:
        running.wait_ready()
        write(running, "", "127.0.0.1:1")
        done = running.command("reload")
        assert done.returncode == 0, done.stderr
        assert "(with a restart: the service manager opened the sockets)" in done.stdout
        assert running.status()["generation"] == 1
        running.finish()
    finally:
        running.kill()
        shutil.rmtree(folder, ignore_errors=True)
