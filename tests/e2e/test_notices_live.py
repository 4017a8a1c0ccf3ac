"""A running tidegate tells its owner, by scripted receivers; and its heartbeat goes out."""

from __future__ import annotations

import http.client
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fakes.gateway import Gateway, gateways
from fakes.machine import wait_until
from fakes.receiver import Receiver, dead_port, receiving
from fakes.scenario import toml
from fakes.upstream import ScriptedUpstream

pytestmark = pytest.mark.processes
TOKEN = "tk_CANARY9d1f7a3c5e8b"
LIMIT_S = 30.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def notify(receiver: Receiver, **more: str) -> str:
    """The config's block for it."""
    lines = "".join(f'{key} = "{value}"\n' for key, value in more.items())
    return f'[[notify]]\nurl = "{receiver.url}/{TOKEN}"\n{lines}'


def loaded(pid: int) -> set[str]:
    """The files of code that a process has mapped, and what it imported of ours that is mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {
        path
        for path in re.findall(r" (/\S+)$", maps, re.MULTILINE)
        if re.search(r"\.so(\.|$)", path)
    }


def texts(gateway: Gateway) -> str:
    """All that it shows of itself: log, status, bundles and decisions."""
    bundle = Path(gateway.ask("bundle")["path"]).read_text()
    others = [each.read_text() for each in gateway.state_dir.glob("*.jsonl")]
    shown = gateway.command("status").stdout + gateway.command("check").stdout
    return "\n".join([gateway.log.read_text(), str(gateway.status()), bundle, shown, *others])


def test_a_lost_worker_is_told_and_nothing_is_loaded_for_it(
    receiver: Receiver, upstream: ScriptedUpstream
) -> None:
    """By a process that is gone afterwards; watchdog and worker have no more code than before."""
    with gateways() as start:
        gateway = start(toml(("box", upstream.url)) + notify(receiver))
        before = loaded(gateway.pid)
        assert not any("ssl" in path for path in before)
        worker = gateway.worker_pid()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: receiver.told, LIMIT_S, "the receiver is told")
        assert receiver.told == [("worker-lost", "event")]
        [notice] = receiver.notices
        assert "killed by SIGKILL" in notice["cause"]
        assert receiver.heard[0].target == f"/{TOKEN}"
        wait_until(lambda: gateway.status()["notify"][0]["waiting"] == 0, LIMIT_S, "it has it")
        assert loaded(gateway.pid) == before
        children = psutil.Process(gateway.pid).children()
        assert [each.pid for each in children] == [gateway.worker_pid()]
        assert TOKEN not in texts(gateway)


def test_notify_test_shows_the_answer(receiver: Receiver, upstream: ScriptedUpstream) -> None:
    """Of each receiver, or of one; the exit code says whether all have it."""
    away = f'[[notify]]\nname = "away"\nurl = "http://127.0.0.1:{dead_port()}/{TOKEN}"\n'
    with gateways() as start:
        gateway = start(toml(("box", upstream.url)) + notify(receiver, name="phone") + away)
        one = gateway.command("notify", "test", "--to", "phone")
        assert (one.returncode, one.stdout) == (0, "phone: delivered, it answered 200: ok\n")
        receiver.status, receiver.echoes = 403, True
        both = gateway.command("notify", "test")
        assert both.returncode == 1
        first, second = both.stdout.splitlines()
        assert first.startswith("phone: NOT delivered, it answered 403: ")
        assert second == "away: NOT delivered, it cannot be reached: Connection refused"
        unknown = gateway.command("notify", "test", "--to", "fridge")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert 'no receiver called "fridge"; there is phone, away' in unknown.stderr
        assert TOKEN not in both.stdout + both.stderr + texts(gateway)


def test_a_reload_names_who_is_told(receiver: Receiver, upstream: ScriptedUpstream) -> None:
    """At once; what changed is said without its address."""
    with gateways() as start:
        gateway = start(toml(("box", upstream.url)))
        none = gateway.command("notify", "test")
        assert "no receiver is configured; [[notify]]" in none.stderr
        gateway.config.write_text(gateway.config.read_text() + notify(receiver))
        said = gateway.command("reload").stdout
        assert "notify[notify]" in said or "nothing" in said.lower()
        wait_until(lambda: gateway.command("notify", "test").returncode == 0, LIMIT_S, "it counts")
        gateway.wait_logged("notify[notify]: added")
        assert TOKEN not in said + texts(gateway)


def test_an_upgrade_loses_no_notice(receiver: Receiver, upstream: ScriptedUpstream) -> None:
    """What waits for a receiver that is away is told by the next program, once."""
    receiver.stop()
    with gateways() as start:
        gateway = start(toml(("box", upstream.url)) + notify(receiver))
        os.kill(gateway.worker_pid(), signal.SIGKILL)
        wait_until(lambda: gateway.status()["notify"][0]["error"], LIMIT_S, "it is away")
        gateway.wait_ready()
        assert gateway.command("upgrade", "--no-wait").returncode == 0
        assert gateway.status()["notify"][0]["waiting"] == 1
        receiver.start()
        wait_until(lambda: receiver.told, 60, "the receiver is told")
        gateway.remember()
        time.sleep(3)
        assert receiver.told == [("worker-lost", "event")]
        assert TOKEN not in texts(gateway)


# What an upstream lists and what it answers, in one.
UPSTREAM_SAYS = (
    b'{"object":"list","data":[{"id":"m"}],"choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"yes"}}]}'
)


def use(gateway: Gateway, seconds: float, until: Callable[[], object] = lambda: False) -> None:
    """Ask it for an answer twice a second, as a house does; failures are the upstream's."""
    over_s = time.monotonic() + seconds
    while time.monotonic() < over_s and not until():
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        body = b'{"model":"box/m","messages":[{"role":"user","content":"so?"}]}'
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, head)
        connection.getresponse().read()
        connection.close()
        time.sleep(0.5)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_flap_of_3_s_tells_nothing_and_an_outage_of_a_minute_tells_twice(
    receiver: Receiver,
) -> None:
    """Of an upstream that is used all the time, and is really away."""
    with receiving() as box, gateways() as start:
        box.body, box.headers = UPSTREAM_SAYS, {"Content-Type": "application/json"}
        gateway = start(toml(("box", box.url), limits="connect_s = 1.0") + notify(receiver))
        use(gateway, 3)
        box.stop()
        use(gateway, 3)
        box.start()
        use(gateway, 40)
        assert receiver.told == []
        box.stop()
        use(gateway, 60)
        assert [state for _, state in receiver.told] == ["open"]
        box.start()
        use(gateway, 60, lambda: len(receiver.told) > 1)
        use(gateway, 15)
        assert [state for _, state in receiver.told] == ["open", "over"]
        begin, end = receiver.notices
        assert begin["id"] == end["id"]
        assert begin["id"].startswith("upstream-")
        assert 50 < end["until"] - end["since"] < 90


# --- the heartbeat that goes out ------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_heartbeat_goes_out_while_it_is_ready(receiver: Receiver) -> None:
    """Every so often, as a GET with its query; it stops when no upstream can be reached."""
    with receiving() as box, gateways() as start:
        box.body, box.headers = UPSTREAM_SAYS, {"Content-Type": "application/json"}
        beat = f'[heartbeat]\nurl = "{receiver.url}/push/{TOKEN}?status=up"\nevery_s = 5\n'
        gateway = start(toml(("box", box.url), limits="connect_s = 1.0") + beat)
        wait_until(lambda: len(receiver.heard) >= 3, LIMIT_S, "it beats")
        assert {(each.method, each.target) for each in receiver.heard} == {
            ("GET", f"/push/{TOKEN}?status=up")
        }
        box.stop()
        wait_until(lambda: not gateway.is_ready(), 60, "it is not ready")
        time.sleep(1)  # one may be on its way
        heard = len(receiver.heard)
        time.sleep(11)
        assert len(receiver.heard) == heard
        box.start()
        wait_until(lambda: len(receiver.heard) > heard, 60, "it beats again")
        receiver.status = 500
        gateway.wait_logged("the heartbeat does not arrive: it answered 500")
        receiver.status = 200
        gateway.wait_logged("the heartbeat arrives again")
        assert TOKEN not in texts(gateway)
