"""What clients hear of a reload, and what the file brought before one of them asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tidegate.core.protocol.control import ControlReply
from tidegate.core.protocol.reload import Effect, Reloaded, ReloadRefusal, SettingChange, Why
from tidegate.watchdog.control import reload_replies
from tidegate.watchdog.control.reload_replies import ReloadReplies

CHANGE = SettingChange(key="allowed_hosts", what="changed", effect=Effect.AT_ONCE)
CHANGED, SAME = Reloaded(changes=[CHANGE]), Reloaded(changes=[])


class Rig:
    """Replies, with a control socket that writes down what is answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, ControlReply]] = []
        self.replies: Any = ReloadReplies(self)  # type: ignore[arg-type]

    def reply(self, client: Any, answer: ControlReply) -> None:
        self.answers.append((client, answer))

    def asks(self, result: Reloaded) -> Reloaded:
        """What a client hears."""
        self.replies.done(["client"], result, asked=True)
        _, answer = self.answers[-1]
        assert answer.ok
        return msgspec.json.decode(answer.result, type=Reloaded)


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(reload_replies.time, "monotonic", lambda: clock[0])
    return clock


def test_what_the_file_brought_is_told_once(now_s: list[float]) -> None:
    """To the client that asks next and finds no change, with its age."""
    rig = Rig()
    rig.replies.done([], CHANGED, asked=False)
    now_s[0] += 7.0
    earlier = rig.asks(SAME).earlier
    assert earlier is not None
    assert (earlier.changes, earlier.ago_s) == ([CHANGE], 7.0)
    assert rig.asks(SAME).earlier is None


@pytest.mark.parametrize(("asked", "then"), [(True, SAME), (False, CHANGED)])
def test_what_is_told_or_overtaken_is_not_told_again(
    asked: bool, then: Reloaded, now_s: list[float]
) -> None:
    """A signal is a person who reads the log; and a new change is news enough."""
    rig = Rig()
    rig.replies.done([], CHANGED, asked=asked)
    assert rig.asks(then).earlier is None


def test_a_refusal_goes_to_every_client_with_its_kind() -> None:
    """And with the text that says what to do."""
    rig = Rig()
    rig.replies.refuse(["a", "b"], ReloadRefusal(Why.ADDRESS, "it is taken"))
    assert [client for client, _ in rig.answers] == ["a", "b"]
    for _, answer in rig.answers:
        assert (answer.ok, answer.error) == (False, "it is taken")
        assert msgspec.json.decode(answer.result)["refused"] == Why.ADDRESS.value
