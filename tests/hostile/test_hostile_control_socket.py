"""Lines on control.sock that are no questions: each costs its client, and the watchdog goes on."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from fakes.gateway import Gateway, StartGateway
from hostile.conftest import Tried
from hostile.lines import ASKED, FORBIDDEN, FROM_WATCHDOG, FROM_WORKER, WORDS, Control
from hostile.mutate import every_byte, every_cut, mutants
from tidegate.watchdog.control.server import MAX_CLIENTS

MUTANTS = 4_000
MIB = 1024 * 1024


@pytest.fixture
def running(gateway: StartGateway) -> Gateway:
    """A real watchdog with a worker; afterwards it is stopped, and its log has no traceback."""
    return gateway()


def judge(running: Gateway, lines: list[bytes]) -> None:
    """Send each line; every answer is a whole reply, and the watchdog is the one it was."""
    control, pid = Control(running.runtime_dir), running.pid
    for line in lines:
        came = control.tell(line)
        if came:
            reply = json.loads(came)
            assert came.endswith(b"\n"), (line[:200], came[:200])
            assert reply["ok"] in {True, False}
            assert reply["ok"] or reply["error"], (line[:200], came[:200])
        assert running.process.poll() is None, line[:300]
    assert running.status()["worker"]["state"] == "serving"
    assert running.pid == pid


def test_every_byte_at_every_place_of_a_question(running: Gateway, tried: Tried) -> None:
    """Each byte in the place of each: an answer or a refusal in words."""
    lines = [line + b"\n" for line in every_byte(b'{"verb":"runs"}')]
    judge(running, lines)
    tried(len(lines))


def test_a_question_cut_at_every_byte(running: Gateway, tried: Tried) -> None:
    """A client that goes in the middle of its line is let go of."""
    lines = [*every_cut(ASKED[-1]), *(cut + b"\n" for cut in every_cut(ASKED[-1]))]
    judge(running, lines)
    tried(len(lines))


def test_changed_questions_and_messages_of_the_channel(running: Gateway, tried: Tried) -> None:
    """What is nearly a question, or a message for a worker, is refused like noise."""
    corpus = [*ASKED, *FROM_WORKER, *FROM_WATCHDOG]
    lines = [
        line[:60_000] + b"\n"
        for line in mutants(corpus, WORDS, "control", MUTANTS)
        if not any(word in line for word in FORBIDDEN)
    ]
    assert len(lines) > MUTANTS // 2
    judge(running, lines)
    tried(len(lines))


def test_a_line_that_never_ends(running: Gateway, tried: Tried) -> None:
    """What is longer than a question can be is refused, and held by nothing."""
    lines = [
        b"x" * (4 * MIB),
        b" " * (2 * MIB) + b'{"verb":"status"}\n',
        b"\n" * MIB,
        b"\x00" * MIB,
    ]
    judge(running, lines)
    tried(len(lines))


def test_clients_that_say_nothing_do_not_keep_others_out(running: Gateway, tried: Tried) -> None:
    """However many are silent, a question is answered."""
    control = Control(running.runtime_dir)
    with ExitStack() as open_ones:
        for _ in range(3 * MAX_CLIENTS):
            open_ones.enter_context(control.connect())
        judge(running, [b'{"verb":"status"}\n'])
    tried(3 * MAX_CLIENTS)
