"""One notice, and what a receiver is sent of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from tidegate.core.decoding import Decoder
from tidegate.core.problems import ORDER, Severity
from tidegate.core.text import count, visible

OPEN, OVER, EVENT, TEST = "open", "over", "event", "test"
MAX_TEXT_LENGTH = 500  # of a cause or a fix: what an upstream says may be a page
MAX_MESSAGE_LENGTH = 3000  # ntfy takes 4,096 bytes; the rest goes with the next one
LATE_S = 120.0  # a notice that is older says from when it is
MAX_PAYLOAD_BYTES = 256 * 1024  # some 32 notices at their longest are a fifth of it


class Notice(Struct, frozen=True, kw_only=True):
    """One thing to tell. Times are Unix seconds."""

    id: str  # of the repair, or of a kind of event: "worker-lost", "recycle", "update"
    state: str  # OPEN, OVER, EVENT or TEST
    severity: str
    cause: str
    fix: str = ""
    since: float
    until: float | None = None  # when it was over
    count: int = 1  # events of that kind


class NoticeMessage(Struct, frozen=True, kw_only=True):
    """What the sending process reads: where to, and what. Nothing of it may be shown."""

    url: str
    notices: list[Notice]
    left_out: int = 0  # former ones that there was no room for
    now: float  # Unix seconds
    version: str

    def __repr__(self) -> str:
        return f"<NoticeMessage notices={len(self.notices)}>"


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of it. `answer` is for people, and has no part of the address."""

    ok: bool
    answer: str
    refused: bool = False  # the receiver will never take this one
    retry_after_s: float | None = None  # as it asked


_message = Decoder(NoticeMessage)
_outcome = Decoder(Outcome)


def decode_message(data: bytes) -> NoticeMessage:
    """Decode what the sending process was given. Raises Undecodable."""
    return _message.decode(data)


def decode_outcome(data: bytes) -> Outcome:
    """Decode what it answered. Raises Undecodable."""
    return _outcome.decode(data)


def shortened(notice: Notice) -> Notice:
    """Cut texts that are too long to be told, and show what would steer a terminal."""
    return replace(notice, cause=cut(notice.cause), fix=cut(notice.fix))


def worst_severity(notices: Sequence[Notice]) -> str:
    """Return the severity of the worst of them; of what is over only where all is."""
    going_on = [each for each in notices if each.state != OVER] or notices
    return max((each.severity for each in going_on), key=lambda each: ORDER[Severity(each)])


def title_of(notices: Sequence[Notice], host: str) -> str:
    """Write one line above them: "tidegate on nas: error", or how many they are."""
    states = {each.state for each in notices}
    word = states.pop() if states in ({OVER}, {TEST}) else worst_severity(notices)
    more = f", {count(len(notices), 'notice')}" if len(notices) > 1 else ""
    return f"tidegate on {host}: {word}{more}"


def text_of(
    notices: Sequence[Notice], left_out: int, now: float, when: Callable[[float], str]
) -> str:
    """Write them for people, a paragraph each; `when` writes a time of the day."""
    paragraphs = [paragraph(each, now, when) for each in notices]
    if left_out:
        paragraphs.append(f"{count(left_out, 'former notice')} left out: too many waited")
    return "\n\n".join(paragraphs)


def paragraph(notice: Notice, now: float, when: Callable[[float], str]) -> str:
    """Write one notice for people."""
    at = f"{when(notice.since)}: " if now - notice.since >= LATE_S else ""
    if notice.state == OVER:
        lasted = _duration((notice.until or now) - notice.since)
        return f"{at}over after {lasted}: {notice.cause}"
    times = f" ({notice.count} times)" if notice.count > 1 else ""
    fix = f"\n→ {notice.fix}" if notice.fix else ""
    return f"{at}{notice.cause}{times}{fix}"


def webhook_of(
    message: NoticeMessage, host: str, when: Callable[[float], str]
) -> dict[str, object]:
    """Make what a webhook gets as JSON, see docs/notify.md."""
    notices = message.notices
    return {
        "source": "tidegate",
        "host": host,
        "version": message.version,
        "severity": worst_severity(notices),
        "title": title_of(notices, host),
        "text": text_of(notices, message.left_out, message.now, when),
        "notices": notices,
        "left_out": message.left_out,
    }


def cut(text: str) -> str:
    """Cut one text; what does not print is shown by its number."""
    text = visible(text[:MAX_TEXT_LENGTH], keep="\n")
    return text if len(text) < MAX_TEXT_LENGTH else f"{text[: MAX_TEXT_LENGTH - 1]}…"


def _duration(seconds: float) -> str:
    """Write a duration in the largest unit of which there are two: "90 s", "12 min", "5 h"."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
