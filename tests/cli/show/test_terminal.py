"""Every verb that prints a page, on a real terminal of 80 columns: nothing goes past the last."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import time
from typing import Any

import pytest
from rich.cells import cell_len

LIMIT_S = 60.0
COLUMNS = 80
NAME = "hf.co/unsloth/Qwen3-30B-A3B-Instruct-GGUF:Q4_K_M"
RUN = {
    "id": f"run_01234567{'0' * 24}", "object": "run", "state": "interrupted", "model": NAME,
    "reason": "the worker died at event 812, and more of it is told here than a line has room for",
    "upstream": "workstation", "attempts": 1, "created": time.time() - 90_000, "ended": 1.0,
    "first_seq": 0, "next_seq": 812, "bytes": 204_800, "subscribers": 1, "place": "journal",
}  # fmt: skip
MODEL = {"name": NAME, "loaded": True, "per_s": 41.0, "unit": "tokens/s", "first_output_s": 0.3}
STATUS = {
    "state": "degraded", "version": "0.2.0", "uptime_s": 788_400.0, "generation": 3,
    "listen": ["127.0.0.1:8433", "192.168.178.20:8433", "unix:/run/tidegate/http.sock"],
    "workers": [{"pid": 4242, "generation": 3, "state": "serving", "rss_bytes": 55 << 20,
                 "loop_lag_ms": 0.4, "heartbeat_age_s": 0.3}],
    "worker": None, "watchdog": {"pid": 4241, "rss_bytes": 14 << 20},
    "memory": {"level": 3, "budget_bytes": 1 << 30, "used_bytes": 900 << 20, "shedding": "level 3",
               "budget_source": "a quarter of this computer's memory, and no more than 1 GiB"},
    "runs": {"active": 3, "finished": 17, "total": 4021},
    "swept": {"runs": 2, "bytes": 405_504, "last_reason": "swept: stuck 612 s, level 2"},
    "recycles": 1, "restarts": [], "reason": "upstream workstation fails: it answered 503",
    "upstreams": [{"name": "workstation", "state": "failing", "active": 2, "queued": 1,
                   "last_error": "it answered 503 and said that there is no capacity left"}],
    "repairs": [{"id": "disk-full", "since": time.time() - 90, "severity": "error",
                 "cause": "the history cannot be written for want of space on its disk",
                 "fix": "make room there, or set history.max_rows to less than it is now"}],
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "status": STATUS,
    "runs": {"object": "list", "data": [RUN, RUN]},
    "models": {
        "data": [
            {"name": "workstation", "url": "http://192.168.178.30:11434/v1", "kind": "ollama",
             "state": "ok", "total": 2, "models": [MODEL, {**MODEL, "name": "phi"}]}
        ],
        "aliases": [{"name": "fast", "targets": [f"workstation/{NAME}", f"cloud/{NAME}"]}],
    },
}  # fmt: skip


def on_a_terminal(tidegate: Any, *arguments: str, **environ: str) -> list[str]:
    """What such a command leaves on one of 80 by 24, a line each, colours left out."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "NO_COLOR"}}
    command = [sys.executable, "-m", "tidegate", *arguments, *tidegate.places()]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", **environ},
    )  # fmt: skip
    os.close(theirs)
    told = b""
    try:
        while piece := _read(ours):
            told += piece
    finally:
        process.kill()
        process.wait(LIMIT_S)
        os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", told.decode()).replace("\r", "").splitlines()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)  # ends with the command, which has limits of its own
    except OSError:  # how Linux tells the end of a terminal
        return b""


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--verbose"),
        ("runs",),
        ("runs", "--all"),
        ("models",),
        ("top", "--once"),
        ("check",),
        ("help",),
        ("usage", "--help"),
    ],
    ids=" ".join,
)
def test_nothing_goes_past_the_last_column(tidegate, watchdog, arguments) -> None:
    """Nor is a word cut by the terminal, which would fold what is longer than a line."""
    for verb, answer in ANSWERS.items():
        watchdog.will(verb, answer)
    tidegate.config.write_text('[limits]\nidle_s = "soon"\nlisten = ["127.0.0.1:1"]\n')
    if arguments == ("help",):
        tidegate.places = list
    lines = on_a_terminal(tidegate, *arguments)
    assert len(lines) > 2
    shown = [line for line in lines if str(tidegate.config) not in line]  # a path is not cut
    assert max(map(cell_len, shown)) <= COLUMNS


def test_a_run_and_a_model_have_a_line_each(tidegate, watchdog) -> None:
    """The run with its short id; the model's name whole, for it fits; `--wide` has all of both."""
    for verb, answer in ANSWERS.items():
        watchdog.will(verb, answer)
    runs = on_a_terminal(tidegate, "runs")
    assert [line[:10] for line in runs[1:]] == ["01234567  "] * 2
    models = on_a_terminal(tidegate, "models")
    assert [line.split()[:2] for line in models[3:5]] == [[NAME, "yes"], ["phi", "yes"]]
    wide = on_a_terminal(tidegate, "runs", "--wide")
    assert all(RUN["id"] in line and RUN["reason"] in line for line in wide[1:])


def test_no_color_is_heeded(tidegate, watchdog) -> None:
    """The words are the same."""
    watchdog.will("status", STATUS)
    told = [
        re.sub(r"\d+", "#", "\n".join(on_a_terminal(tidegate, "status", **environ)))
        for environ in ({}, {"NO_COLOR": "1"})
    ]
    assert told[0] == told[1]
