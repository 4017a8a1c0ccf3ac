"""Evidence: which workers are asked, for how long, what is written; no disk is waited for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.status import idle
from tidegate.config import LoadedConfig
from tidegate.core.memory.decision import PolicyState
from tidegate.core.memory.policy import decide
from tidegate.core.protocol.status import Status
from tidegate.core.protocol.worker import Inspect, Inspected, Message
from tidegate.core.runs.summary import RunSummary
from tidegate.core.settings import Settings, Upstream
from tidegate.watchdog.guard import bundle, evidence
from tidegate.watchdog.guard.evidence import LIMIT_S, WRITE_LIMIT_S, Evidence
from tidegate.watchdog.guard.samples import Samples
from watchdog.guard_records import inputs, log_of

KEY = "sk-CANARY-of-the-config"
LIMIT = 30.0  # for what must happen at all


@dataclass
class FakeGenerations:
    """Workers that are only what evidence sees of them."""

    workers: list[Any] = field(default_factory=list)
    sent: list[tuple[int, Message]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.workers)

    def ready(self) -> list[Any]:
        return [worker for worker in self.workers if worker.is_ready]

    @property
    def serving(self) -> Any:
        return next(iter(self.ready()), None)

    def send(self, worker: Any, message: Message) -> None:
        self.sent.append((worker.number, message))


def worker(number: int, pid: int | None = None, *, is_ready: bool = True) -> Any:
    return SimpleNamespace(
        number=number,
        pid=os.getpid() if pid is None else pid,
        is_ready=is_ready,
        beat=SimpleNamespace(rss_bytes=77),
        condemned=None,
        failure=None,
    )


def status() -> Status:
    return idle(generation=1)


def config() -> LoadedConfig:
    upstream = Upstream(name="cloud", url="https://api.example.com/v1", api_key_env="sk-MISPLACED")
    return LoadedConfig(
        settings=Settings(upstreams=[upstream]),
        secrets={"cloud": KEY},
        tokens=[],
        path=None,
        place=Path("/nowhere"),
        warnings=[],
    )


class Rig:
    """Evidence on a clock of the test's own."""

    def __init__(self, state_dir: Path) -> None:
        self.now_s = 1000.0
        self.generations = FakeGenerations([worker(1), worker(2)])
        self.state_dir = state_dir
        self.told: list[Path | None] = []
        self.evidence = Evidence(
            generations=self.generations,  # type: ignore[arg-type]
            state_dir=state_dir,
            status=status,
            config=config,
            samples=Samples(),
            clock=lambda: self.now_s,
        )

    def gather(self, kind: str = "recycle", reason: str = "memory") -> None:
        self.evidence.gather(kind, reason, self.told.append)

    def answer(self, number: int, request: int = 0, **parts: Any) -> None:
        """Generation `number` answers the last request, or an older one."""
        asked = [each for n, each in self.generations.sent if n == number]
        assert isinstance(asked[-1], Inspect)
        answer = Inspected(
            **{
                "request": request or asked[-1].request,
                "ledger": {"window": 5},
                "runs": [],
                "runs_total": 0,
                "types": {"builtins.dict": 3},
                "stacks": ["thread MainThread\na.py:1 f\nb.py:2 g"],
                "tasks": 4,
                "descriptors": 5,
                **parts,
            }
        )
        self.evidence.on_inspected(next(w for w in self.generations if w.number == number), answer)

    def wait_written(self) -> None:
        """Turn as the loop would until nothing is under way; the clock stands still."""
        deadline_s = time.monotonic() + LIMIT
        while self.evidence.is_pending:
            assert time.monotonic() < deadline_s, "it was never written"
            self.evidence.tick(self.now_s)
            time.sleep(0.002)

    def bundles(self) -> list[dict[str, Any]]:
        directory = self.state_dir / "bundles"
        return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.evidence.close()


@pytest.fixture
def hung_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing waits until the event is set, as on a network disk that is away."""
    back = threading.Event()
    write = bundle.write

    def slow(*arguments: Any) -> Path:
        back.wait(60)
        return write(*arguments)

    monkeypatch.setattr(bundle, "write", slow)
    yield back
    back.set()


def test_it_is_written_when_all_workers_have_answered(rig: Rig) -> None:
    """Not before, and no worker is asked twice."""
    rig.gather()
    assert [n for n, _ in rig.generations.sent] == [1, 2]
    assert rig.evidence.is_pending
    rig.answer(1)
    rig.evidence.tick(rig.now_s)
    assert rig.told == []
    rig.answer(2)
    rig.wait_written()
    [path] = rig.told
    assert path is not None
    assert path.name.endswith("Z-recycle-memory.json")
    assert rig.evidence.written == 1
    [read] = rig.bundles()
    assert read["why"] == [{"kind": "recycle", "reason": "memory"}]
    assert read["workers"]["worker 2"]["ledger"] == {"window": 5}
    assert read["workers"]["worker 2"]["stacks"] == [["thread MainThread", "a.py:1 f", "b.py:2 g"]]


def test_who_is_silent_is_shown_as_silent(rig: Rig) -> None:
    """After a second it is written without that worker's inside, but with what the kernel shows."""
    rig.gather()
    rig.answer(1)
    assert rig.evidence.next_s() == rig.now_s + LIMIT_S
    rig.now_s += LIMIT_S
    rig.evidence.tick(rig.now_s)
    rig.wait_written()
    [read] = rig.bundles()
    assert read["workers"]["worker 2"] == "no answer within 1 s"
    if sys.platform == "linux":
        assert any("VmRSS" in line for line in read["processes"]["worker 2"]["status"])
        assert any("Rss" in line for line in read["memory_maps"]["worker 2"]["smaps_rollup"])


def test_an_answer_that_comes_too_late_is_not_taken_for_another(rig: Rig) -> None:
    """Each request has its number."""
    rig.gather()
    rig.now_s += LIMIT_S
    rig.evidence.tick(rig.now_s)
    rig.wait_written()
    rig.gather()
    rig.answer(1, request=1, tasks=666)
    rig.answer(1)
    rig.answer(2)
    rig.wait_written()
    assert rig.bundles()[-1]["workers"]["worker 1"]["tasks"] == 4


def test_a_worker_that_ends_is_not_waited_for(rig: Rig) -> None:
    """Its last figures from outside are in the bundle all the same."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    rig.generations.workers[1] = worker(2, child.pid)
    rig.gather()
    child.kill()
    child.wait()
    rig.answer(1)
    rig.evidence.worker_gone(2)
    rig.wait_written()
    [read] = rig.bundles()
    assert read["workers"]["worker 2"] == "it ended"
    assert read["processes"]["worker 2"]["pid"] == child.pid
    if sys.platform == "linux":
        assert "status" in read["processes"]["worker 2"]


def test_without_a_ready_worker_it_is_written_at_once(rig: Rig) -> None:
    """A daemon that cannot start its worker has evidence too."""
    rig.generations.workers = [worker(1, is_ready=False)]
    rig.gather()
    rig.wait_written()
    assert rig.bundles()[0]["workers"] == "none was asked"


def test_who_asks_meanwhile_shares_the_bundle(rig: Rig) -> None:
    """One document with both reasons; both are told where it is."""
    rig.gather("guard", "level 2")
    rig.gather("recycle", "memory")
    rig.answer(1)
    rig.answer(2)
    rig.wait_written()
    assert len(rig.told) == 2
    assert rig.told[0] == rig.told[1]
    [read] = rig.bundles()
    assert [each["reason"] for each in read["why"]] == ["level 2", "memory"]


def test_a_hung_worker_is_not_asked(rig: Rig) -> None:
    """Before it is killed, everything is read from outside; the figures are those of the moment."""
    rig.evidence.gather_now("kill", "no heartbeat for 10 s")
    assert rig.generations.sent == []
    rig.wait_written()
    [read] = rig.bundles()
    assert read["why"][0]["reason"] == "no heartbeat for 10 s"
    assert "worker 1" in read["processes"]


def test_it_holds_what_is_needed_to_understand(rig: Rig) -> None:
    """Host, status, settings, samples, decisions, limits."""
    log_of(rig.state_dir, [0.1, 0.75])
    given = inputs(0.0, 0.5)
    _, decision = decide(PolicyState(), given)
    rig.evidence.sampled(given, decision)
    rig.evidence.gather_now("guard", "level 2")
    rig.wait_written()
    [read] = rig.bundles()
    assert read["format"] == 1
    assert read["status"]["state"] == "serving"
    assert read["host"]["cores"] == os.cpu_count()
    assert [each["inputs"]["now_s"] for each in read["decisions"]] == [0.0, 1.0]
    assert read["samples"][0][1:] == [
        given.reading.used_bytes, 77, given.reading.ledger_bytes, 0, decision.unexplained_bytes,
    ]  # fmt: skip
    assert read["sample_columns"].split()[1:3] == ["used_bytes", "worker_rss_bytes"]
    assert read["when"]["utc"].endswith("Z")
    assert read["settings"]["upstream"][0]["url"] == "https://api.example.com/v1"


def test_a_directory_that_cannot_be_written_is_said_in_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, None for a client that waits, and the next one is tried anew."""
    rig = Rig(tmp_path / "away")
    for _ in range(2):
        caplog.clear()
        rig.gather()
        rig.answer(1)
        rig.answer(2)
        rig.wait_written()
        assert rig.told[-1] is None
        assert [r.levelname for r in caplog.records] == ["ERROR"]
        assert "No such file or directory" in caplog.text
    rig.state_dir.mkdir()
    rig.evidence.gather_now("kill", "hung")
    rig.wait_written()
    assert rig.evidence.written == 1


def test_a_disk_that_hangs_holds_up_nothing(
    rig: Rig, hung_disk: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that waits is told None in time; when the disk is back the bundle is there."""
    caplog.set_level(logging.INFO)
    began_s = time.monotonic()
    rig.gather()
    rig.answer(1)
    rig.answer(2)
    assert rig.evidence.is_pending
    rig.now_s += WRITE_LIMIT_S
    rig.evidence.tick(rig.now_s)
    assert rig.told == [None]
    assert not rig.evidence.is_pending
    rig.evidence.gather_now("kill", "hung")
    assert not rig.evidence.is_pending
    assert "has not taken the last one yet" in caplog.text
    assert time.monotonic() - began_s < LIMIT, "the test itself was held up"
    hung_disk.set()
    deadline_s = time.monotonic() + LIMIT
    while not rig.evidence.written:
        assert time.monotonic() < deadline_s
        rig.evidence.tick(rig.now_s)
        time.sleep(0.002)
    assert len(rig.bundles()) == 1
    assert rig.told == [None]


def test_bundles_that_wait_for_the_disk_are_bounded(rig: Rig, hung_disk: threading.Event) -> None:
    """A storm of reasons is no storm of documents."""
    for n in range(20):
        rig.evidence.gather_now("kill", f"{n}")
    hung_disk.set()
    rig.wait_written()
    assert rig.evidence.written == 1 + evidence.MAX_WAITING
    assert [read["why"][0]["reason"] for read in rig.bundles()] == ["0", "1", "2", "3", "4"]


def test_nothing_is_due_while_nothing_is_under_way(rig: Rig) -> None:
    """The loop need not wake for it."""
    assert rig.evidence.next_s() is None
    rig.evidence.tick(rig.now_s)
    assert not rig.evidence.is_pending


def test_what_is_on_its_way_is_finished_at_the_end(rig: Rig) -> None:
    """A watchdog that stops leaves whole bundles, also of workers that had not answered yet."""
    rig.evidence.gather_now("kill", "hung")
    rig.gather("guard", "level 2")
    rig.evidence.close()
    assert [read["why"][0]["kind"] for read in rig.bundles()] == ["kill", "guard"]
    assert rig.evidence.written == 2
    assert len(rig.told) == 1


def test_a_disk_that_hangs_does_not_hold_up_the_end(rig: Rig, hung_disk: threading.Event) -> None:
    """The bundle is lost with the process; the stop is not late."""
    rig.evidence.gather_now("kill", "hung")
    rig.evidence.close()
    assert rig.evidence.written == 0
    hung_disk.set()
    rig.wait_written()


def test_a_large_daemon_fits_into_a_bundle(rig: Rig) -> None:
    """Two workers with all the runs, stacks and types that they may show, and two hours."""
    run = RunSummary(
        id="run_" + "x" * 32, state="streaming", reason="r" * 300, model="m" * 100,
        upstream="u" * 40, attempts=3, created=1.0, ended=None, first_seq=10**9, next_seq=10**9,
        bytes=10**9, subscribers=100,
    )  # fmt: skip
    deep = "\n".join(["task", *["gateway/relay/relay.py:123 Relay.something_long"] * 20])
    for n in range(720):
        given = inputs(10.0 * n, 0.5)
        rig.evidence.sampled(given, decide(PolicyState(), given)[1])
    rig.gather()
    for number in (1, 2):
        types = {f"tidegate.some.module.Type{n}": 10**6 for n in range(100)}
        rig.answer(number, runs=[run] * 200, stacks=[deep] * 200, types=types)
    rig.wait_written()
    [path] = (rig.state_dir / "bundles").iterdir()
    assert path.stat().st_size <= bundle.MAX_BUNDLE_BYTES
    [read] = rig.bundles()
    assert len(read["samples"]) == 720 or "shortened" in read
