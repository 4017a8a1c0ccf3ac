"""The words between the processes survive the channel."""

from __future__ import annotations

import msgspec
import pytest

from tidegate.core.decoding import Undecodable
from tidegate.core.memory.report import StepReport
from tidegate.core.protocol import worker as msg
from tidegate.core.settings import Limits, Settings, Token
from tidegate.core.upstreams.summary import ModelAlias, ModelState, UpstreamModels, UpstreamStatus

FROM_WATCHDOG: list[msg.FromWatchdog] = [
    msg.Configure(
        generation=2,
        settings=Settings(),
        tokens=[Token(name="laptop", sha256="0" * 64)],
        secrets={"box": "sk-ü\n"},
        listeners=[msg.Listener(fd=3, address="[::1]:8433")],
    ),
    msg.StateUpdate(
        level=1,
        ledger_limit_bytes=0,
        shed="memory level 3",
        guard=msg.GuardFigures(used_bytes=2, growth_bytes_per_h=0.5),
    ),
    msg.AskBeat(request=4),
    msg.Sweep(request=1, reason="level 2"),
    msg.Reclaim(request=1, steps=["stale"], stale_after_s=600.0, reason="memory level 2"),
    msg.Inspect(request=1),
    msg.ListRuns(request=1),
    msg.ListModels(request=1),
    msg.StartDraining(limit_s=30.0, reason="stop"),
]
FROM_WORKER: list[msg.FromWorker] = [
    msg.Ready(pid=1),
    msg.Heartbeat(
        rss_bytes=1, ledger_bytes=2, loop_lag_ms=0.5, runs_active=1, runs_finished=2,
        runs_total=3, swept_runs=0, swept_bytes=0,
        upstreams=[UpstreamStatus(name="box", url="http://127.0.0.1", state="ok")],
    ),
    msg.Configured(request=1, error="no"),
    msg.Swept(request=1, runs=2, bytes=3, reasons={"stuck": 2}),
    msg.Reclaimed(
        request=1,
        steps=[
            StepReport(step="stale", runs=1, promised_bytes=2, freed_bytes=2, took_s=0.1)
        ],
    ),
    msg.Inspected(
        request=1, ledger={"window": 1}, runs=[], runs_total=0, types={"dict": 2},
        stacks=["a.py:1 f"], tasks=3, descriptors=4,
    ),
    msg.RunList(request=1, runs=[], total=0),
    msg.ModelList(
        request=1,
        upstreams=[
            UpstreamModels(
                name="box", url="http://127.0.0.1", kind=None, state="ok", total=1,
                models=[ModelState(name="m", loaded=True, per_s=2.5)],
            )
        ],
        aliases=[ModelAlias(name="fast", targets=["box/m"])],
    ),
    msg.ConfigChanged(),
    msg.Draining(),
    msg.Failed(reason="a\nb"),
]  # fmt: skip


@pytest.mark.parametrize("message", FROM_WATCHDOG, ids=lambda m: type(m).__name__)
def test_watchdogs_words_survive(message: msg.FromWatchdog) -> None:
    """What the watchdog says is one line, and is understood as it was said."""
    line = msg.encode(message)
    assert line.count(b"\n") == 1
    assert msg.decode_from_watchdog(line) == message


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda m: type(m).__name__)
def test_workers_words_survive(message: msg.FromWorker) -> None:
    """What a worker says is one line, and is understood as it was said."""
    line = msg.encode(message)
    assert line.count(b"\n") == 1
    assert msg.decode_from_worker(line) == message


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"type":"ready"}', b'{"type":"facts"}', b"\xff", b"[]"]
)
def test_nonsense_is_an_error(line: bytes) -> None:
    """A line that is no message of that side is refused, whatever it is."""
    with pytest.raises(Undecodable):
        msg.decode_from_worker(line)


def test_unknown_field_is_skipped() -> None:
    """During an upgrade the other side may know a field more."""
    assert msg.decode_from_worker(b'{"type":"draining","new":1}') == msg.Draining()


def test_an_unknown_setting_is_skipped_and_one_at_its_default_is_not_sent() -> None:
    """A worker that drains under a newer watchdog must not end over a setting that it lacks."""
    settings = Settings(limits=Limits(idle_s=7.0))
    line = msg.encode(msg.Configure(generation=1, settings=settings, tokens=[], secrets={}))
    assert msgspec.json.decode(line)["settings"]["limits"] == {"idle_s": 7.0}
    newer = line.replace(b'"settings":{', b'"settings":{"new":{"a":1},').replace(
        b'"idle_s"', b'"new_s":[1],"idle_s"'
    )
    told = msg.decode_from_watchdog(newer)
    assert isinstance(told, msg.Configure)
    assert told.settings == settings


def test_the_words_of_a_line_are_for_ever() -> None:
    """A worker drains for an hour beneath a newer watchdog, and ends at a line it cannot read."""
    said = {
        type(each).__name__: msgspec.json.decode(msg.encode(each))["type"]
        for each in [*FROM_WATCHDOG, *FROM_WORKER]
    }
    assert set(said.values()) == {
        "configure", "facts", "askbeat", "sweep", "relieve", "inspect", "listruns", "listmodels",
        "startdraining", "ready", "heartbeat", "configured", "swept", "relieved", "inspected",
        "runlist", "modellist", "configchanged", "draining", "failed",
    }  # fmt: skip
