"""Tells the owner: what every receiver is to hear, sent by one process at a time.

    `tick`, once a second: each outbox looks at the status -> the next that has something to send
    -> `sender` sends it -> `turn` takes in what became of it

Nothing is sent at memory level 4 and above, where a process more could cost a worker; it waits.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from tidegate import __version__
from tidegate.config import LoadedConfig
from tidegate.config.keys import variables_of
from tidegate.core.notices.notice import TEST, Notice, NoticeMessage, Outcome
from tidegate.core.notices.outbox import UNREACHED, Outbox, Seen
from tidegate.core.notices.quiet import is_quiet
from tidegate.core.problems import Severity
from tidegate.core.protocol.control import TestedReceiver
from tidegate.core.protocol.status import ReceiverState
from tidegate.core.secret import Secret
from tidegate.core.settings import Notify
from tidegate.watchdog.control.server import OUR_FAULT
from tidegate.watchdog.notify.sender import SEND_COMMAND, Sender

QUIET_LEVEL = 4  # of memory
MOST_TESTS = 4  # that wait; people ask for one
_log = logging.getLogger(__name__)

Tested = Callable[[list[TestedReceiver] | str], object]  # what they answered, or why none was asked


class _Test(Struct, kw_only=True, eq=False):
    """A test that was asked for."""

    names: deque[str]  # that are left
    done: Tested
    answers: list[TestedReceiver] = field(default_factory=list)


class _Sending(Struct, frozen=True, eq=False):
    """A message on its way, to which receiver, and for which test."""

    sender: Sender
    name: str
    test: _Test | None


class Teller:
    """Keep the outboxes, and the process that sends. `tick` and `turn` it; `close` it when done."""

    def __init__(
        self,
        level: Callable[[], int],
        kept: dict[str, Outbox] | None = None,
        command: Sequence[str] = SEND_COMMAND,
    ) -> None:
        """Begin. `level` tells that of memory; `kept` is what an upgrade left."""
        self._level = level
        self._command = command
        self._outboxes = dict(kept or {})
        for outbox in self._outboxes.values():
            outbox.take_back()
        self._receivers: dict[str, Notify] = {}
        self._addresses: dict[str, str] = {}
        self._secret = Secret()
        self._variables: frozenset[str] = frozenset()
        self._sending: _Sending | None = None
        self._tests: deque[_Test] = deque()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Teller receivers={list(self._receivers)} sending={self._sending is not None}>"

    def apply(self, config: LoadedConfig) -> None:
        """Follow a config. What waits for a receiver that stays goes on waiting."""
        for name, address in config.addresses.items():
            if name in self._outboxes and self._addresses.get(name, address) != address:
                self._outboxes[name].try_soon()
        self._addresses = dict(config.addresses)
        self._receivers = {
            each.name: each for each in config.settings.notify if each.name in self._addresses
        }
        former = self._outboxes
        self._outboxes = {name: former.get(name) or Outbox() for name in self._receivers}
        self._secret = Secret(*config.hidden)
        self._variables = frozenset(variables_of(config.settings))

    # --- what is to be told -----------------------------------------------------------------------

    def tick(self, seen: Seen, now_s: float, now: float) -> None:
        """Look what is news, and have the next message sent. `now` is Unix seconds."""
        for name, outbox in self._outboxes.items():
            outbox.observe(
                seen,
                least=Severity(self._receivers[name].min_severity),
                not_about={f"{UNREACHED}{name}"},
                now_s=now_s,
                now=now,
            )
        self._send_next(now_s, now)

    def states(self) -> list[ReceiverState]:
        """Show how each receiver is."""
        return [
            ReceiverState(
                name=name,
                waiting=len(outbox.waiting) + len(outbox.sending),
                error=outbox.error,
                failing_since=outbox.failing_since,
            )
            for name, outbox in self._outboxes.items()
        ]

    # --- a test -----------------------------------------------------------------------------------

    def test(self, name: str | None, done: Tested) -> None:
        """Have the next turns test that receiver, or every one. `done` is called once."""
        names = list(self._receivers) if name is None else [name]
        if not self._receivers:
            done("no receiver is configured; [[notify]] in the config names one")
        elif name is not None and name not in self._receivers:
            done(f'there is no receiver called "{name}"; there is {", ".join(self._receivers)}')
        elif len(self._tests) >= MOST_TESTS:
            done("other tests are under way; try again when they are over")
        else:
            self._tests.append(_Test(names=deque(names), done=done))

    def _next_test(self) -> tuple[str, _Test] | None:
        """Return the receiver that is to be tested now; answer the tests that are over."""
        while self._tests:
            test = self._tests[0]
            if test.names and self._level() >= QUIET_LEVEL:
                self._tests.popleft()
                test.done("memory is short, so nothing is sent just now; see `tidegate status`")
            elif not test.names:
                self._tests.popleft()
                test.done(test.answers)
            elif (name := test.names.popleft()) in self._receivers:
                return name, test
        return None

    # --- one message at a time --------------------------------------------------------------------

    @property
    def pids(self) -> list[int]:
        """Return the process that is sending, whose memory is ours."""
        return [self._sending.sender.pid] if self._sending is not None else []

    @property
    def is_sending(self) -> bool:
        """Tell whether a message is on its way."""
        return self._sending is not None

    def next_s(self) -> float | None:
        """Tell when `turn` has something to do at the latest; monotonic seconds."""
        return self._sending.sender.due_s if self._sending is not None else None

    def turn(self, now_s: float, now: float) -> None:
        """Take in what became of the message that is on its way, and have the next one sent."""
        if (sending := self._sending) is not None:
            if (outcome := sending.sender.outcome(now_s)) is None:
                return
            self._sending = None
            self._take_in(sending.name, sending.test, outcome, now_s, now)
            self._send_next(now_s, now)
        elif self._tests:
            self._send_next(now_s, now)

    def _take_in(
        self, name: str, test: _Test | None, outcome: Outcome, now_s: float, now: float
    ) -> None:
        outbox, answer = self._outboxes.get(name), self._secret.hide(outcome.answer)
        if test is not None:
            test.answers.append(TestedReceiver(name=name, ok=outcome.ok, answer=answer))
            if outcome.ok and outbox is not None:
                outbox.try_soon()
        elif outbox is None:
            pass  # the receiver is no longer configured
        elif outcome.ok:
            outbox.delivered(now_s)
        elif outcome.refused:
            _log.warning("notify %s refuses what it is told, which is lost: %s", name, answer)
            outbox.refused()
        else:
            outbox.failed(answer, retry_after_s=outcome.retry_after_s, now_s=now_s, now=now)

    def _send_next(self, now_s: float, now: float) -> None:
        if self._sending is not None or self._is_closed:
            return
        if (tested := self._next_test()) is not None:
            name, test = tested
            self._start(name, [_test_notice(now)], test, now_s, now)
            return
        if self._level() >= QUIET_LEVEL:
            return
        local = time.localtime(now)
        minute = 60 * local.tm_hour + local.tm_min
        for name, outbox in self._outboxes.items():
            quiet = is_quiet(self._receivers[name].quiet, minute)
            if notices := outbox.take(now_s, is_quiet=quiet):
                self._outboxes[name] = self._outboxes.pop(name)  # the others come before it next
                self._start(name, notices, None, now_s, now)
                return

    def _start(
        self, name: str, notices: list[Notice], test: _Test | None, now_s: float, now: float
    ) -> None:
        """Start the process that sends them; that it cannot be started is told as a failure."""
        outbox = self._outboxes[name]
        message = NoticeMessage(
            url=self._addresses[name],
            notices=[self._harmless(each) for each in notices],
            left_out=outbox.left_out if test is None else 0,
            now=now,
            version=__version__,
        )
        try:
            sender = Sender(self._command, message, self._variables, now_s)
        except OSError as error:
            failed = Outcome(ok=False, answer=f"no process can be started: {error.strerror}")
            self._take_in(name, test, failed, now_s, now)
        else:
            self._sending = _Sending(sender, name, test)

    def _harmless(self, notice: Notice) -> Notice:
        """Hide the keys and addresses that the config knows, should a text have one."""
        hide = self._secret.hide
        return replace(notice, cause=hide(notice.cause), fix=hide(notice.fix))

    def give_up(self) -> None:
        """Begin anew after a fault of ours: who waits for a test is told, and nothing is lost."""
        tests, self._tests = list(self._tests), deque()
        try:
            self.let_go()
            for outbox in self._outboxes.values():
                outbox.take_back()
        finally:
            for test in tests:
                test.done(OUR_FAULT)

    # --- its end ----------------------------------------------------------------------------------

    def kept(self) -> dict[str, Outbox]:
        """Return what an upgrade hands on."""
        return self._outboxes

    def let_go(self) -> None:
        """End the process that sends, for an upgrade: what it had is sent again."""
        sending, self._sending = self._sending, None
        if sending is None:
            return
        if sending.test is not None:
            sending.test.names.appendleft(sending.name)
        elif (outbox := self._outboxes.get(sending.name)) is not None:
            outbox.take_back()
        sending.sender.cancel()

    def close(self) -> None:
        """End the process that sends, and start no other."""
        self._is_closed = True
        self.let_go()


def _test_notice(now: float) -> Notice:
    cause = "this is a test, and it has arrived"
    return Notice(id="test", state=TEST, severity=Severity.NOTE.value, cause=cause, since=now)
