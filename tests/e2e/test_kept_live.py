"""What outlives a worker, as the owner sees it: status, usage, forget, repairs, the budget."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway, StartGateway, gateways
from fakes.machine import wait_until
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream
from tidegate.core.settings import MIB
from tidegate.machine.mounts import is_in_memory

pytestmark = pytest.mark.long
SHM = Path("/dev/shm")
WORDS = "numbered:400:0"


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartGateway]:
    """Gateways whose runtime directories are in memory."""
    if not is_in_memory(SHM):
        pytest.skip("needs /dev/shm in memory")
    monkeypatch.setattr(tempfile, "tempdir", str(SHM))
    with gateways() as start:
        yield start


def answered(running: Gateway, model: str) -> str:
    """Stream an answer, and return its run's id."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    request = urllib.request.Request(
        f"{running.base_url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
        return str(answer.headers["x-run-id"])


def cut_off(running: Gateway, model: str) -> None:
    """Stream an answer that is cut off, and read what comes of it."""
    with suppress(OSError, http.client.HTTPException):
        answered(running, model)


def kept(running: Gateway, name: str) -> dict[str, Any]:
    """The journal or the history, by the status."""
    state = running.status()[name]
    return dict(state or {"runs": -1, "keep": "", "paused": None, "bytes": 0})


def files(folder: Path) -> bytes:
    """All that lies there."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file())


def test_what_was_used_is_told_and_forgotten(
    in_memory: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """The command shows both files, sums them up, and removes one answer and then all."""
    running = in_memory(toml(("box", scripted_upstream.url)))
    ids = [answered(running, WORDS), answered(running, "ok")]
    wait_until(lambda: kept(running, "history")["runs"] == 2, 10, "both have a row")
    wait_until(lambda: kept(running, "journal")["runs"] == 2, 10, "both are in the journal")
    shown = running.command("status", "--verbose").stdout
    assert "answers, in memory: " in shown
    assert "a row a run, on disk: " in shown
    lines = running.command("usage", "--by", "model").stdout.splitlines()
    assert {line.split()[0] for line in lines[2:4]} == {WORDS, "ok"}
    assert lines[4].startswith("in all ")
    assert running.ask("usage", since_s=0.001)["data"] == []

    journal = running.runtime_dir / "journal"
    assert ids[0].encode() in files(journal) + files(running.state_dir / "history")
    done = running.command("forget", ids[0])
    assert (done.returncode, ids[0] in done.stdout) == (0, True)
    assert ids[0].encode() not in files(journal) + files(running.state_dir / "history")
    assert [run["id"] for run in running.ask("runs", all=True)["data"]] == [ids[1]]
    assert running.command("forget", ids[0]).returncode == 1
    done = running.command("forget", "--all", "--yes")
    assert done.stdout == "Forgotten: 1 run, answers and rows. What still runs is kept.\n"
    assert running.command("runs", "--all").stdout == "No runs are known.\n"
    assert ids[1].encode() not in files(journal) + files(running.state_dir / "history")


def test_a_run_that_still_runs_is_cancelled_and_forgotten_and_all_leaves_it_alone(
    in_memory: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """One is named, so it is meant; all are those that are over. What it wrote since is gone."""
    running = in_memory(toml(("box", scripted_upstream.url)))
    streams = [
        threading.Thread(target=cut_off, args=(running, f"numbered:{n}:50")) for n in (900, 901)
    ]
    for stream in streams:
        stream.start()
    wait_until(lambda: kept(running, "journal")["runs"] == 2, 15, "both are written down")
    assert running.command("forget", "--all", "--yes").returncode == 0
    first, second = running.ask("runs", all=True)["data"]
    assert (first["state"], second["state"]) == ("streaming", "streaming")
    assert running.command("forget", first["id"]).returncode == 0
    [left] = running.ask("runs", all=True)["data"]
    assert (left["id"], left["state"]) == (second["id"], "streaming")
    time.sleep(2.5)  # twice as long as a running answer goes unwritten
    there = files(running.runtime_dir / "journal") + files(running.state_dir / "history")
    assert first["id"].encode() not in there
    assert second["id"].encode() in there
    assert running.command("forget", second["id"]).returncode == 0
    for stream in streams:
        stream.join(10)
        assert not stream.is_alive()


def test_switched_off_it_counts_at_once_and_leaves_nothing(
    in_memory: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Neither a journal nor a history, and that is no repair."""
    text = toml(("box", scripted_upstream.url))
    running = in_memory(text)
    answered(running, WORDS)
    wait_until(lambda: kept(running, "history")["runs"] == 1, 10, "it has a row")
    with running.config.open("a") as config:
        config.write('\n[journal]\nkeep = "off"\n[history]\nmax_rows = 0\n')
    assert running.command("reload").returncode == 0
    for folder in (running.runtime_dir / "journal", running.state_dir / "history"):
        wait_until(lambda folder=folder: not files(folder), 10, f"{folder.name} is empty")  # type: ignore[misc]
    wait_until(lambda: kept(running, "journal")["keep"] == "off", 10, "the status says so")
    done = running.command("usage")
    assert done.returncode == 1, done.stdout
    assert running.status()["repairs"] == []


def test_a_place_that_cannot_be_written_is_a_repair_until_it_can(
    gateway: StartGateway, scripted_upstream: ScriptedUpstream
) -> None:
    """Answers are given as ever meanwhile, and the doctor names the place."""
    running = gateway(toml(("box", scripted_upstream.url)))
    answered(running, "ok")
    wait_until(lambda: kept(running, "history")["runs"] == 1, 10, "it has a row")
    history = running.state_dir / "history"
    shutil.rmtree(history)
    history.write_text("in its place")

    def ids() -> list[str]:
        answered(running, "ok")
        return [each["id"] for each in running.status()["repairs"]]

    wait_until(lambda: "history-paused" in ids(), 40, "it opens", every_s=0.5)
    [repair] = [r for r in running.status()["repairs"] if r["id"] == "history-paused"]
    assert str(history) in repair["cause"]
    doctor = json.loads(running.command("doctor", "--no-tokens", "--json").stdout)
    assert "store-unusable:history" in [each["id"] for each in doctor["problems"]]
    assert "paused: " in running.command("status").stdout
    assert running.command("usage").returncode == 1
    history.unlink()
    wait_until(lambda: "history-paused" not in ids(), 100, "it closes", every_s=0.5)
    assert kept(running, "history")["runs"] >= 1
    running.wait_logged("repair history-paused is no longer needed")


class Incompressible(BaseHTTPRequestHandler):
    """A model whose words cannot be deflated to much less."""

    def do_GET(self) -> None:
        """Name the model."""
        self._answer("application/json", b'{"object":"list","data":[{"id":"noise"}]}')

    def do_POST(self) -> None:
        """Answer with noise."""
        self.rfile.read(int(self.headers["Content-Length"]))
        words = (base64.b64encode(os.urandom(3000)).decode() for _ in range(64))
        chunk = (
            '{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%s"}}]}'
        )
        events = [f"data: {chunk % word}" for word in words]
        self._answer("text/event-stream", "\n\n".join([*events, "data: [DONE]", ""]).encode())

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def noise() -> Iterator[str]:
    """Where such a model is."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Incompressible)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_full_journal_in_memory_is_held_to_its_part_of_the_budget(
    in_memory: StartGateway, noise: str
) -> None:
    """200 MiB, and a journal that may take 900 by its setting: it costs neither level nor worker.

    No client waits for it, and the oldest answers make room for new ones.
    """
    rest = '[memory]\nbudget = "200MiB"\n[journal]\nmax = "900MiB"\n'
    running = in_memory(toml(("box", noise), limits="keep_finished_s = 1.0", rest=rest))
    most, levels, journal = 22 * MIB, set(), kept(running, "journal")
    oldest: set[float] = set()
    deadline_s = time.monotonic() + 150.0
    while len(oldest) < 20 or journal["bytes"] < 0.8 * most:
        answered(running, "noise")
        status = running.status()
        levels.add(status["memory"]["level"])
        journal = status["journal"]
        oldest.add(journal["oldest"])
        assert journal["bytes"] < most + 2 * MIB
        assert time.monotonic() < deadline_s, journal
        time.sleep(0.05)
    there = sum(each.stat().st_blocks * 512 for each in (running.runtime_dir / "journal").glob("*"))
    assert 0.8 * most < there < most + 2 * MIB
    assert status["memory"]["used_bytes"] >= journal["bytes"] + status["watchdog"]["rss_bytes"]
    assert levels <= {0, 1}, levels
    assert (status["recycles"], status["restarts"]) == (0, [])
