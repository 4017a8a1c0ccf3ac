"""What workers of a former version are told."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace as replaced

from tidegate.config import stand_in
from tidegate.core.fleet import lifecycle as life
from tidegate.core.settings import Limits, Settings, Token, Upstream
from tidegate.watchdog.faults import Faults
from tidegate.watchdog.workers.generations import Generations, KeptWorker
from tidegate.watchdog.workers.process import spawn

# By a former version's own grammar, which knew no key beside those.
KNOWN = {"listen", "allowed_hosts", "limits", "memory", "drain", "auth", "upstream", "model"}
KNOWN_OF_AN_UPSTREAM = {
    "name", "url", "api_key_env", "api_key_file", "api_key_header", "max_concurrent",
    "ask_usage", "limits",
}  # fmt: skip


SELECTOR = selectors.SelectSelector()


@pytest.fixture
def child() -> Iterator[int]:
    """A process that is ours to adopt."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid


def generations(folder: Path) -> Generations:
    return Generations(
        command=["false"],
        runtime_dir=folder,
        state_dir=folder,
        policy=life.RestartPolicy(),
        selector=SELECTOR,
        on_message=lambda worker, message: None,
        faults=Faults(),
        on_event=lambda event: None,
        spawn=spawn,
    )


def kept(pid: int, fd: int) -> KeptWorker:
    return KeptWorker(
        number=1, pid=pid, fd=fd, socket_path="/nowhere/w.sock", accepts=True, remembers=True
    )


def test_a_worker_of_a_former_version_keeps_its_settings_and_hears_of_tokens(
    tmp_path: Path, child: int
) -> None:
    """Also after two upgrades: a setting that it cannot read would cut its streams."""
    usual = stand_in("", tmp_path / "config.toml", {})
    box = Upstream(name="box", url="http://127.0.0.1:1", max_concurrent=3)
    former = replace(usual, settings=Settings(upstreams=[box], limits=Limits(idle_s=7.0)))
    ours, theirs = socket.socketpair()
    with closing(theirs), closing(ours):
        first = generations(tmp_path)
        first.adopt(life.Fleet(), [kept(child, os.dup(ours.fileno()))], former)
        [handed_on], [worker] = first.kept(), first
        handed_on = msgspec.json.decode(msgspec.json.encode(handed_on), type=KeptWorker)
        newer = replace(usual, settings=Settings(limits=Limits(idle_s=9.0)))
        second = generations(tmp_path)
        second.adopt(life.Fleet(), [replaced(handed_on, fd=ours.detach())], newer)
        SELECTOR.unregister(worker.channel)
        worker.channel.close()
        [worker] = second
        assert worker.remembers
        token = Token(name="new", sha256="0" * 64)
        second.reconfigure(worker, replace(newer, tokens=[token], secrets={"box": "k"}), 5)
        said = msgspec.json.decode(theirs.recv(65536))
        assert (said["type"], said["request"], said["secrets"]) == ("configure", 5, {"box": "k"})
        assert said["tokens"][0]["name"] == "new"
        assert said["settings"]["limits"] == {"idle_s": 7.0}
        assert said["settings"].keys() <= KNOWN
        assert said["settings"]["upstream"][0].keys() <= KNOWN_OF_AN_UPSTREAM
        SELECTOR.unregister(worker.channel)
        worker.channel.close()
