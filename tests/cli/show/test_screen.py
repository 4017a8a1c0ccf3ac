"""Sizes and times as people read them."""

from __future__ import annotations

import time
from io import StringIO

import pytest
from rich.console import Console

from fakes.status import idle
from tidegate.cli.show.screen import duration_text, show_runs, show_status, size_text
from tidegate.core.protocol.status import ReceiverState
from tidegate.core.runs.summary import RunSummary


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (999 * 1024 + 1000, "1000 KiB"),
        (1000 * 1024, "0.977 MiB"),
        (212 << 20, "212 MiB"),
        (5 << 40, "5120 GiB"),
        (-(3 << 20), "-3 MiB"),
    ],
)
def test_sizes(size, text):
    """A size has about three digits and a binary unit."""
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (9 * 86400 + 3 * 3600 + 59, "9 d 3 h"),
    ],
)
def test_durations(seconds, text):
    """A duration has the two units that matter."""
    assert duration_text(seconds) == text


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("columns", [80, 100, 160])
def test_a_runs_id_is_whole_in_80_columns(columns: int, everywhere: bool) -> None:
    """It is what other verbs take; whatever is long beside it is folded, and nothing is cut."""
    name = f"run_{'0123456789abcdef' * 2}"
    run = RunSummary(
        id=name, state="interrupted", reason="the worker died at event 812, and more of it is told",
        model="hf.co/somewhere/a-model-with-a-name:Q4_K_M", upstream="box", attempts=1,
        created=time.time() - 3 * 3600 - 150, ended=1.0, first_seq=0, next_seq=812, bytes=4096,
        subscribers=0, place="journal",
    )  # fmt: skip
    out = StringIO()
    show_runs([run, run], Console(file=out, width=columns), everywhere=everywhere)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    shown = [line for line in lines if line.startswith(name)] if columns < 160 else lines[1:]
    assert len([line for line in shown if "3 h" in line]) == 2
    assert ("journal" in out.getvalue()) is everywhere
    for word in (*run.reason.split(), "interrupted"):
        assert word in out.getvalue()


def test_receivers_are_shown_with_what_waits_for_them():
    """A line each; none where there is none."""
    told = [
        ReceiverState(name="phone"),
        ReceiverState(name="chat", waiting=3, error="it answered 503", failing_since=1.0),
    ]
    for receivers, lines in (([], 0), (told, 2)):
        console = Console(file=StringIO(), width=200)
        show_status(idle(notify=receivers), console)
        shown = console.file.getvalue()
        assert shown.count("Notify") == bool(lines)
    assert "phone: ok" in shown
    assert "chat: it answered 503, 3 notices waiting" in shown
