"""Sizes and times as people read them."""

from __future__ import annotations

import re
import time
from io import StringIO

import pytest
from rich.console import Console

from fakes.status import idle
from tidegate.cli.show.screen import duration_text, show_runs, size_text
from tidegate.cli.show.status_page import show_status
from tidegate.core.problems import Repair
from tidegate.core.protocol.status import MemoryState, ReceiverState, UpstreamState
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
        show_status(idle(notify=receivers), console, verbose=True)
        shown = console.file.getvalue()
        assert shown.count("Notify") == bool(lines)
    assert "phone: ok" in shown
    assert "chat: it answered 503, 3 notices waiting" in shown


def _told(color: bool, columns: int = 80, **flags: bool) -> str:
    """Draw a status with every trouble, as a terminal of so many columns gets it."""
    repair = Repair(
        id="disk-full", since=time.time() - 90, severity="error", fix="make room on that disk",
        cause="the history cannot be written to /var/lib/tidegate/history/history.db for no space",
    )  # fmt: skip
    upstreams = [
        UpstreamState(name=name, state=state, active=2, queued=1, last_error=error)
        for name, state, error in (
            ("box", "ok", None),
            ("cloud", "failing", "it answered 503 and said that it has no capacity at the moment"),
        )
    ]
    memory = MemoryState(level=3, budget_bytes=1 << 30, used_bytes=900 << 20, shedding="level 3",
                         mode="observe", would="recycle the worker")  # fmt: skip
    told = idle(repairs=[repair], upstreams=upstreams, memory=memory, listen=["127.0.0.1:8433"])
    out = StringIO()
    console = Console(file=out, width=columns, force_terminal=color, highlight=False)
    show_status(told, console, **flags)
    return out.getvalue()


@pytest.mark.parametrize("verbose", [False, True])
def test_a_status_fits_80_columns(verbose: bool) -> None:
    """No line goes past column 80, and no word that is not longer than a line is cut in two."""
    text = _told(color=False, verbose=verbose)
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    assert {"/var/lib/tidegate/history/history.db", "capacity", "moment", "127.0.0.1:8433"} <= {
        word.rstrip(",.") for word in words
    }


def test_colours_of_a_status_only_repeat_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal shows them; with NO_COLOR there is none, and not a word less."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = _told(color=True)
    assert "\x1b[1;32mHealthy." in coloured
    assert "\x1b[31mfailing" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = _told(color=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)
    assert re.sub(r"\x1b\[[0-9;]*m", "", plain) == re.sub(r"\x1b\[[0-9;]*m", "", coloured)
