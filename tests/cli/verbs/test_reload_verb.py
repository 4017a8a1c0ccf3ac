"""`tidegate reload`: what changed, when it counts, and what was refused with which exit code."""

from __future__ import annotations

import json

import msgspec
import pytest

from tidegate.core.protocol.control import ControlReply
from tidegate.core.protocol.reload import Earlier, Reloaded, ReloadRefused, SettingChange, Why
from tidegate.core.settings import Effect

IDLE = SettingChange(
    key="limits.idle_s", what="changed", old="120 s", new="60 s", effect=Effect.NEW_ANSWERS
)
LISTEN = SettingChange(
    key="listen",
    what="changed",
    old="127.0.0.1:8433",
    new="0.0.0.0:8433",
    effect=Effect.NEW_WORKER,
)
TOKEN = SettingChange(key="token laptop", what="added", effect=Effect.AT_ONCE)


def test_each_change_is_a_line_with_when_it_counts(tidegate, watchdog) -> None:
    """Values old and new, what became of the worker, and secrets by name only."""
    watchdog.will("reload", Reloaded(changes=[LISTEN, IDLE, TOKEN], generation=2))
    assert tidegate("reload") == (
        0,
        "listen: 127.0.0.1:8433 → 0.0.0.0:8433 (recycled)\n"
        "limits.idle_s: 120 s → 60 s (for answers that begin from now on)\n"
        "token laptop: added (at once)\n",
        "",
    )


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (Reloaded(changes=[]), "Nothing changed.\n"),
        (
            Reloaded(changes=[], earlier=Earlier(changes=[IDLE], ago_s=3.4)),
            "Nothing changed just now. The file had been taken up by itself 3 s ago:\n"
            "limits.idle_s: 120 s → 60 s (for answers that begin from now on)\n",
        ),
        (Reloaded(changes=[], unparked=True), "The config is good again: tidegate serves.\n"),
        (None, "The config is good; tidegate starts with it.\n"),
    ],
)
def test_what_did_not_change_is_said_too(tidegate, watchdog, result, says) -> None:
    """Nothing, what came before one asked, and the first config that is good."""
    watchdog.will("reload", result)
    assert tidegate("reload") == (0, says, "")


def test_warnings_go_to_stderr(tidegate, watchdog) -> None:
    """What works but perhaps not as its author thinks is not among the changes."""
    watchdog.will("reload", Reloaded(changes=[TOKEN], warnings=["short\x1b[2J"]))
    code, out, err = tidegate("reload")
    assert (code, out) == (0, "token laptop: added (at once)\n")
    assert err == "tidegate: warning: short\\x1b[2J\n"


@pytest.mark.parametrize(
    ("why", "code"), [(Why.CONFIG, 78), (Why.ADDRESS, 75), (Why.BUSY, 75), (Why.WORKER, 75)]
)
def test_a_refusal_says_whether_another_try_may_help(tidegate, watchdog, why, code) -> None:
    """A mistake in the file exits with 78; what may pass by itself exits with 75."""
    raw = msgspec.Raw(msgspec.json.encode(ReloadRefused(refused=why)))
    watchdog.replies["reload"] = ControlReply(ok=False, error="no, because", result=raw)
    assert tidegate("reload") == (code, "", "tidegate: no, because\n")
    printed_code, out, err = tidegate("reload", "--json")
    assert (printed_code, err) == (code, "")
    assert json.loads(out) == {"error": "no, because", "refused": why.value}


def test_json_is_what_the_daemon_said(tidegate, watchdog) -> None:
    """For programs: keys, values and effects as they are."""
    watchdog.will("reload", Reloaded(changes=[IDLE], generation=None))
    shown = json.loads(tidegate("reload", "--json")[1])
    assert shown["changes"] == [
        {
            "key": "limits.idle_s",
            "what": "changed",
            "old": "120 s",
            "new": "60 s",
            "effect": "for answers that begin from now on",
        }
    ]
    assert shown["unparked"] is False
