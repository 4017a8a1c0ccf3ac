"""When a watchdog's work is over, and with which exit code and words."""

from __future__ import annotations

import os

import pytest

from tidegate.watchdog import ending
from tidegate.watchdog.ending import UNREAPABLE_S, Ending


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, which the test moves."""
    clock = [100.0]
    monkeypatch.setattr(ending.time, "monotonic", lambda: clock[0])
    return clock


def test_a_stop_ends_with_0_once_the_last_process_is_reaped(now_s: list[float]) -> None:
    """Not before it is over, and then as soon as no process is left."""
    end = Ending()
    assert not end.is_over(is_reaped=True)
    end.over()
    assert not end.is_over(is_reaped=False)
    assert end.is_over(is_reaped=True)
    assert (end.exit_code, end.text) == (os.EX_OK, "stopped")


def test_a_process_that_cannot_be_ended_is_not_waited_for_for_ever(now_s: list[float]) -> None:
    """It hangs in the kernel: after a few seconds the watchdog goes without it."""
    end = Ending()
    end.over()
    now_s[0] += UNREAPABLE_S
    assert not end.is_over(is_reaped=False)
    now_s[0] += 0.1
    assert end.is_over(is_reaped=False)


def test_what_fails_before_the_beginning_is_over_at_once(now_s: list[float]) -> None:
    """With the exit code that says whether another try may help."""
    end = Ending()
    end.fail_at_once("config.toml: nonsense", os.EX_CONFIG)
    assert end.is_over(is_reaped=True)
    assert (end.exit_code, end.text) == (os.EX_CONFIG, "failed: config.toml: nonsense")


def test_giving_up_is_logged_and_drains_first(
    now_s: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """It ends with 75, and not before what goes on is over."""
    end = Ending()
    end.give_up("five workers died")
    assert caplog.messages == ["giving up: five workers died"]
    assert not end.is_over(is_reaped=True)
    assert (end.exit_code, end.text) == (os.EX_TEMPFAIL, "failed: five workers died")
