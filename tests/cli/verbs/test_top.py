"""`tidegate top`: a picture, many pictures, and what stays when none answers."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from fakes.status import idle
from tidegate.cli.verbs import top as top_module
from tidegate.cli.verbs.top import Speeds
from tidegate.core.runs.summary import RunSummary

LIMIT_S = 60.0


def a_run(number: int = 1, **others: Any) -> RunSummary:
    """One that is under way, unless `others` say else."""
    members: dict[str, Any] = {
        "id": f"run_{number:08x}{'0' * 24}", "state": "streaming", "reason": None, "model": "qwen3",
        "upstream": "box", "attempts": 1, "created": time.time() - 61, "ended": None,
        "first_seq": 0, "next_seq": 812, "bytes": 4096, "subscribers": 1,
    }  # fmt: skip
    return RunSummary(**(members | others))


def will_tell(watchdog: Any, *runs: RunSummary) -> None:
    """Script both answers."""
    watchdog.will("status", idle(upstreams=[], version="0.2.0"))
    watchdog.will("runs", {"object": "list", "data": msgspec.to_builtins(list(runs))})


class TopOnTerminal:
    """The real command on a terminal of 80 by 24."""

    def __init__(self, tidegate: Any) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        # A shell in the background has Ctrl-C ignored, and what it starts inherits that.
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "top", *tidegate.places()],
            stdin=theirs, stdout=theirs, stderr=theirs,
            env={k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"},
        )  # fmt: skip
        signal.signal(signal.SIGINT, former)
        os.close(theirs)
        self.told = ""

    def wait_for(self, words: str) -> str:
        """Read until the words are drawn after what was read before, and return that."""
        deadline_s, since = time.monotonic() + LIMIT_S, len(self.told)
        while not re.search(words, self.told[since:]):
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, self.told[since:]
            if select.select([self._ours], [], [], left_s)[0]:
                self.told += os.read(self._ours, 65536).decode(errors="replace")
        return self.told[since:]

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait(LIMIT_S)
        os.close(self._ours)


@pytest.fixture
def terminal(tidegate: Any) -> Iterator[Any]:
    """Start it, and end it after the test."""
    begun: list[TopOnTerminal] = []

    def begin() -> TopOnTerminal:
        begun.append(TopOnTerminal(tidegate))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def test_once_is_one_picture(tidegate: Any, watchdog: Any) -> None:
    """The sentence, and what runs before what is over."""
    will_tell(watchdog, a_run(1, state="completed", ended=1.0), a_run(2))
    code, out, err = tidegate("top", "--once")
    assert (code, err) == (0, "")
    assert out.startswith("Healthy.")
    assert out.index(a_run(2).id) < out.index(a_run(1).id)
    assert [each.verb for each in watchdog.requests] == ["status", "runs"]


def test_without_a_terminal_it_is_once(tidegate: Any, watchdog: Any) -> None:
    """A pipe takes no drawing."""
    will_tell(watchdog)
    assert tidegate("top")[1].splitlines()[-1].strip() == "No runs are held."


def test_json_is_what_both_answer(tidegate: Any, watchdog: Any) -> None:
    """Unchanged, in one object."""
    will_tell(watchdog, a_run())
    code, out, _ = tidegate("top", "--once", "--json")
    told = json.loads(out)
    assert (code, told["status"]["version"]) == (0, "0.2.0")
    assert told["runs"]["data"][0]["id"] == a_run().id


def test_json_goes_on_line_by_line(
    tidegate: Any, watchdog: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object each time, until Ctrl-C, which is no error."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(top_module.time, "sleep", pause)
    will_tell(watchdog)
    code, out, _ = tidegate("top", "--json")
    assert (code, pauses) == (0, [2.0] * 3)
    assert [json.loads(line)["runs"]["data"] for line in out.splitlines()] == [[]] * 3


@pytest.mark.parametrize("flags", [("--once",), ("--json",), ()])
def test_none_running_is_told_as_elsewhere(tidegate: Any, flags: tuple[str, ...]) -> None:
    """Where it draws once, or for a program."""
    code, out, err = tidegate("top", *flags)
    assert (code, out, "not running" in err) == (69, "", True)


def test_speeds_are_of_what_was_seen_before() -> None:
    """In events a second; of what is over, or new, there is none."""
    speeds = Speeds()
    assert speeds.take([a_run(1), a_run(2)], 10.0) == {}
    later = [a_run(1, next_seq=872), a_run(2, ended=1.0), a_run(3)]
    assert speeds.take(later, 12.0) == {a_run(1).id: 30.0}
    assert speeds.take([a_run(1, next_seq=872)], 12.0) == {}


@pytest.mark.long
def test_it_draws_anew_until_ctrl_c(terminal: Any, tidegate: Any, watchdog: Any) -> None:
    """With speeds from the second picture on; then the terminal is as it was, and the code is 0."""
    will_tell(watchdog, *(a_run(number) for number in range(1, 60)))
    drawn = terminal()
    first = drawn.wait_for("and [0-9]+ runs more")
    assert "00000001" in first
    assert "Healthy." in first
    will_tell(watchdog, a_run(1, next_seq=100_000))
    assert re.search(r"[0-9]{4,}[.][0-9]", drawn.wait_for(r"00000001.*[0-9]{4,}[.][0-9]"))
    drawn.process.send_signal(signal.SIGINT)
    drawn.wait_for(r"\x1b\[[?]1049l")
    assert drawn.process.wait(LIMIT_S) == 0


@pytest.mark.long
def test_one_that_goes_away_is_waited_for(terminal: Any, watchdog: Any) -> None:
    """It says that none answers, and draws again as soon as one does."""
    will_tell(watchdog)
    drawn = terminal()
    drawn.wait_for("No runs are held")
    watchdog.will("status", error="not now")
    drawn.wait_for("Asked again soon")
    will_tell(watchdog)
    drawn.wait_for("No runs are held")
