"""The soak's verdict, tried on numbers: it passes what is flat, and names what grows."""

import asyncio
import importlib
import json
import os
import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from fakes.wire import Chat, numbered

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = sorted((ROOT / "bench" / "recordings").glob("*.json"))
MIB = 1024 * 1024
QUARTER_S = 45
WINDOW_S = 23


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`soak.judge`, which is no part of what is installed."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("soak.judge")


def samples(judging: ModuleType, leak_bytes_per_s: int = 0, *, seed: int = 0) -> list:
    """Four quarters of a worker whose memory jumps with its load, and perhaps creeps."""
    dice = Random(seed)
    found = []
    for second in range(4 * QUARTER_S):
        ledger = dice.randrange(5 * MIB, 25 * MIB)
        burst = dice.choice([0, 0, MIB, 8 * MIB])
        found.append(
            judging.Sample(
                at_s=float(second),
                quarter=second // QUARTER_S,
                generation=1,
                worker_rss_bytes=50 * MIB + ledger + burst + leak_bytes_per_s * second,
                ledger_bytes=ledger,
                worker_descriptors=40 + dice.randrange(20),
                worker_threads=4,
                connections=20,
                watchdog_rss_bytes=20 * MIB,
                watchdog_descriptors=12,
                workers=1,
                active=10,
                finished=30,
                level=0,
                recycles=0,
                restarts=0,
                tick_delay_s=0.0,
            )
        )
    return found


def rests(judging: ModuleType, **added_each: int) -> list:
    """Five moments without load; what is named grows by so much from one to the next."""
    calm = {
        "worker_rss_bytes": 55 * MIB,
        "ledger_bytes": 0,
        "active": 0,
        "finished": 0,
        "descriptors": 21,
        "threads": 4,
        "tasks": 7,
        "watchdog_rss_bytes": 20 * MIB,
        "watchdog_descriptors": 12,
    }
    return [
        judging.Rest(
            at_s=number * 60.0,
            what=f"rest {number}",
            generation=1,
            quiet_after_s=5.0,
            **{name: value + number * added_each.get(name, 0) for name, value in calm.items()},
        )
        for number in range(5)
    ]


def failed(judging: ModuleType, seen: list, rested: list) -> list[str]:
    """What did not pass."""
    return [v.what for v in judging.judge(seen, rested, WINDOW_S) if not v.is_good]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_flat_passes(judging: ModuleType, seed: int) -> None:
    """A worker that jumps by megabytes with its load, and always comes back, has not grown."""
    assert failed(judging, samples(judging, seed=seed), rests(judging)) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_is_found_and_named(judging: ModuleType, seed: int) -> None:
    """64 KiB a second outside the ledger is more than the noise."""
    leaking = samples(judging, 64 * 1024, seed=seed)
    assert failed(judging, leaking, rests(judging)) == [
        "resident memory of the worker without the ledger, under load"
    ]


@pytest.mark.parametrize(
    ("name", "added", "what"),
    [
        ("ledger_bytes", 1, "ledger, at rest"),
        ("active", 1, "active runs, at rest"),
        ("descriptors", 3, "descriptors of the worker, at rest"),
        ("threads", 2, "threads of the worker, at rest"),
        ("tasks", 1, "tasks of the worker, at rest"),
        ("watchdog_descriptors", 3, "descriptors of the watchdog, at rest"),
    ],
)
def test_what_grows_from_rest_to_rest_is_named(
    judging: ModuleType, name: str, added: int, what: str
) -> None:
    """Each figure that must stay is looked at by itself."""
    assert failed(judging, samples(judging), rests(judging, **{name: added})) == [what]


def test_a_ledger_that_was_held_once_is_a_failure(judging: ModuleType) -> None:
    """Nothing may be held at any rest, not only at the last."""
    rested = rests(judging)
    rested[2] = replace(rested[2], ledger_bytes=1)
    assert failed(judging, samples(judging), rested) == ["ledger, at rest"]


def test_a_watchdog_that_grows_is_found(judging: ModuleType) -> None:
    """It must outlive everything, so it is watched too."""
    seen = [
        replace(sample, watchdog_rss_bytes=20 * MIB + round(sample.at_s) * 20_000)
        for sample in samples(judging)
    ]
    assert failed(judging, seen, rests(judging)) == ["resident memory of the watchdog"]


def test_what_was_not_measured_is_no_success(judging: ModuleType) -> None:
    """A worker that never told its tasks has not proved anything."""
    rested = [replace(rest, tasks=None) for rest in rests(judging)]
    assert failed(judging, samples(judging), rested) == ["tasks of the worker, at rest"]
    silent = [replace(sample, worker_rss_bytes=None) for sample in samples(judging)]
    assert failed(judging, silent, rests(judging)) == [
        "resident memory of the worker without the ledger, under load"
    ]


def test_a_worker_that_was_replaced_cannot_be_compared(judging: ModuleType) -> None:
    """The successor begins at its base, which would hide a leak."""
    seen = samples(judging)
    seen[100:] = [replace(sample, generation=2) for sample in seen[100:]]
    assert failed(judging, seen, rests(judging)) == ["workers while one was measured"]


def test_the_end_is_held_against_the_beginning(judging: ModuleType) -> None:
    """After workers came and went, as much is open as before the first client."""
    idle, *_ = rests(judging)
    verdicts = judging.judge_end(idle, replace(idle, ledger_bytes=1, descriptors=40, tasks=20))
    assert [verdict.what for verdict in verdicts if not verdict.is_good] == [
        "ledger, at the end",
        "descriptors, at the end",
        "tasks, at the end",
    ]
    assert all(verdict.is_good for verdict in judging.judge_end(idle, idle))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("leak_kib_per_s", [0, 64])
def test_recorded_lives_are_judged_rightly(
    judging: ModuleType, path: Path, leak_kib_per_s: int
) -> None:
    """A worker that really lived passes, and fails when a leak is laid upon it."""
    recording = json.loads(path.read_text())
    pairs = list(zip(recording["rss_bytes"], recording["ledger_bytes"], strict=True))
    pairs = pairs[75:]  # its warm-up
    blank, seen = samples(judging)[0], []
    for second, (rss, ledger) in enumerate(pairs):
        seen.append(
            replace(
                blank,
                at_s=float(second),
                quarter=second * 4 // len(pairs),
                worker_rss_bytes=rss + leak_kib_per_s * 1024 * second,
                ledger_bytes=ledger,
            )
        )
    what = "resident memory of the worker without the ledger, under load"
    assert (what in failed(judging, seen, rests(judging))) == bool(leak_kib_per_s)


def test_the_leak_is_planted_outside_of_what_is_shipped() -> None:
    """The leaking worker grows by what it was told, and is reachable from nowhere in daemon/."""
    code = """
import threading, time, psutil
from soak.leaky import leak
me, first = psutil.Process(), psutil.Process().memory_info().rss
threading.Thread(target=leak, args=(64 * 1024 * 1024,), daemon=True).start()
deadline = time.monotonic() + 30
while me.memory_info().rss < first + 16 * 1024 * 1024:
    assert time.monotonic() < deadline
    time.sleep(0.05)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "bench")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
    shipped = (ROOT / "daemon").rglob("*.py")
    assert not [path for path in shipped if "soak.leaky" in path.read_text()]


CHAT = Chat("box/numbered:60:20")
WORDS = b"".join([*CHAT.opening(), *(numbered(number, 0, CHAT) for number in range(60))])


@pytest.mark.parametrize(
    ("ending", "end"),
    [
        (CHAT.finish() + CHAT.done(), "whole"),
        (CHAT.finish(), "whole"),
        (CHAT.error(), "ended with an error event"),
        ([], "a silent clean end"),
    ],
    ids=["done", "finish reason", "error", "nothing"],
)
async def test_a_client_that_had_all_in_one_read_is_judged_by_what_it_had(
    monkeypatch: pytest.MonkeyPatch, ending: list[bytes], end: str
) -> None:
    """A run that was over within the read after which the client left ended as its bytes say."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    load, excuses = importlib.import_module("soak.load"), importlib.import_module("soak.excuses")
    body = WORDS + b"".join(ending)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-run-id: run_1\r\n"
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if asked[-1].startswith(b"POST"):
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body)
            writer.write(b"\r\n")  # the end of the body is still to come when the client goes
        else:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        with suppress(ConnectionError):  # it goes with RST
            await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        crowd = load.Load(f"http://{host}:{port}", "tg", 1.0, excuses.Excuses(), random.Random(1))
        assert await load.comes_back(crowd) == end
    assert [request.split(b" ")[0] for request in asked] == [b"POST", b"GET"]
