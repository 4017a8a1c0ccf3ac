"""The line of a finished run: whole, safe to show, and never a flood."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from fakes.machine import until
from gateway.records.rows import row
from tidegate.core.records.usage import NO_USAGE, TokenUsage
from tidegate.gateway.records.run_log import MOST_A_SECOND, RunLog, tokens
from tidegate.logs.handler import LineHandler

PHONE = '"phone" asked for "fast" -> "box/qwen3:8b", chat completion, streamed, 1 attempt'
NO_TARGET = PHONE.replace('"box/qwen3:8b"', "no upstream")


@pytest.fixture
async def told(caplog: pytest.LogCaptureFixture) -> SimpleNamespace:
    """A log, and what it has told."""
    caplog.set_level(logging.INFO, "tidegate")
    return SimpleNamespace(log=RunLog(asyncio.get_running_loop()), lines=caplog)


async def test_a_run_that_completed_is_one_line(told) -> None:
    """Who, what, by whom, how long, how much."""
    told.log.note(row(), None)
    assert told.lines.messages == [
        f"run run_1 completed: {PHONE}, first output after 0.31 s, 4.20 s in all, "
        "26 tokens in (20 cached), 290 out (100 thought), 10240 bytes"
    ]


async def test_a_run_that_failed_is_one_line_with_its_reason(told) -> None:
    """What the state says already is said once."""
    usage = {"usage": NO_USAGE, "first_output_s": None}
    told.log.note(row(outcome="failed", code="upstream_503", **usage), "box answered 503")
    told.log.note(row(outcome="cancelled", code="cancelled", **usage), "cancelled: by its client")
    told.log.note(row(outcome="expired", code="queue_s", upstream="", **usage), "waited for 300 s")
    rest = "4.20 s in all, tokens unknown, 10240 bytes"
    assert told.lines.messages == [
        f"run run_1 failed (upstream_503): box answered 503; {PHONE}, {rest}",
        f"run run_1 cancelled: by its client; {PHONE}, {rest}",
        f"run run_1 expired (queue_s): waited for 300 s; {NO_TARGET}, {rest}",
    ]


async def test_without_log_requests_only_what_went_wrong_is_told(told) -> None:
    """As one line without the rest."""
    told.log.tells_all = False
    for _ in range(100):
        told.log.note(row(), None)
    told.log.note(row(outcome="failed", code="upstream_503"), "box answered 503")
    told.log.close()
    assert told.lines.messages == ["run run_1 failed (upstream_503): box answered 503"]


async def test_a_flood_is_counted_and_no_run_is_lost(told) -> None:
    """Some have a line; how many more there were is said soon, and at the end."""
    for _ in range(1000):
        told.log.note(row(), None)
    assert len(told.lines.messages) == MOST_A_SECOND
    await until(lambda: len(told.lines.messages) > MOST_A_SECOND, 10.0, "they are counted")
    assert told.lines.messages[-1] == "990 more runs completed, too fast to tell of each"
    for _ in range(15):
        told.log.note(row(), None)
    told.log.close()
    assert told.lines.messages[-1] == "5 more runs completed, too fast to tell of each"
    assert len(told.lines.messages) == 2 * (MOST_A_SECOND + 1)
    told.log.close()
    assert len(told.lines.messages) == 2 * (MOST_A_SECOND + 1)


async def test_what_went_wrong_is_told_in_a_flood_too(told) -> None:
    """The log itself counts what repeats."""
    for _ in range(50):
        told.log.note(row(), None)
    told.log.note(row(outcome="failed", code="upstream_503"), "box answered 503")
    assert told.lines.messages[-1].startswith("run run_1 failed (upstream_503)")
    told.log.close()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('x" -> "evil/m", completed', '"x\\" -> \\"evil/m\\", completed"'),
        ("a\nrun run_2 failed: no", '"a\\nrun run_2 failed: no"'),
        ("\x1b[2J\u202egnp", '"\\u001b[2J\\u202egnp"'),
        ("漢字:8b", '"漢字:8b"'),
        ("", '""'),
    ],
)
async def test_a_name_from_outside_ends_where_its_quotes_do(told, name: str, shown: str) -> None:
    """It is no line and no terminal's command."""
    told.log.note(row(asked=name), None)
    handler = LineHandler("worker", SimpleNamespace(), journal=True)  # type: ignore[arg-type]
    [record] = told.lines.records
    assert f'"phone" asked for {shown} -> "box/' in handler._text(record)
    handler.writer.close()


async def test_a_client_without_a_token_has_no_name(told) -> None:
    """It is not the empty one."""
    told.log.note(row(token="", streamed=False, first_output_s=None), None)
    assert 'completed: a client without a token asked for "fast"' in told.lines.messages[0]
    assert "chat completion, plain, 1 attempt, 4.20 s in all" in told.lines.messages[0]


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (NO_USAGE, "tokens unknown"),
        (TokenUsage(5, 7), "5 tokens in, 7 out"),
        (TokenUsage(5), "5 tokens in, an unknown number out"),
        (TokenUsage(None, 0), "an unknown number of tokens in, 0 out"),
        (TokenUsage(5, 7, 0, 0), "5 tokens in, 7 out"),
    ],
)
def test_tokens(usage: TokenUsage, text: str) -> None:
    """What is not known is said so, also of one side."""
    assert tokens(usage) == text
