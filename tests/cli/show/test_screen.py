"""Sizes and times as people read them."""

from __future__ import annotations

import re
import time
from io import StringIO

import pytest
from rich.cells import cell_len
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


def _a_run(**others: object) -> RunSummary:
    members: dict[str, object] = {
        "id": f"run_{'0123456789abcdef' * 2}", "state": "interrupted",
        "reason": "the worker died at event 812, and more of it is told",
        "model": "hf.co/somewhere/a-model-with-a-name:Q4_K_M", "upstream": "box", "attempts": 1,
        "created": time.time() - 3 * 3600 - 150, "ended": 1.0, "first_seq": 0, "next_seq": 812,
        "bytes": 4096, "subscribers": 0, "place": "journal",
    }  # fmt: skip
    return RunSummary(**(members | others))


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("columns", [40, 60, 80, 100, 160])
def test_a_run_is_one_line_on_any_terminal(columns: int, everywhere: bool) -> None:
    """With the id that other verbs take, its state and age; what is long beside it is cut."""
    out = StringIO()
    runs = [_a_run(), _a_run(model="日本語モデル" * 9, reason=None)]
    show_runs(runs, Console(file=out, width=columns), everywhere=everywhere)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(cell_len, lines)) <= columns
    assert all(line.startswith("01234567  ") for line in lines[1:])
    assert ("reason" in lines[0]) is (columns >= 80)
    assert ("readers" in lines[0]) is (columns >= 160)
    if columns >= 60:
        assert all("interrupted" in line and "3 h 2 min" in line for line in lines[1:])
        assert ("journal" in lines[1]) is everywhere


def test_without_a_terminal_ids_and_all_else_is_whole() -> None:
    """A program that reads the table finds what it found before."""
    out = StringIO()
    show_runs([_a_run()], Console(file=out, width=500))
    for word in (_a_run().id, _a_run().model, _a_run().reason):
        assert str(word) in out.getvalue()


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
