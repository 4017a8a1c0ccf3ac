"""What people and programs read of notices."""

from __future__ import annotations

import msgspec

from tidegate.core.notices.notice import (
    EVENT,
    MAX_TEXT_LENGTH,
    OPEN,
    OVER,
    Notice,
    NoticeMessage,
    shortened,
    text_of,
    title_of,
    webhook_of,
)

NOW = 1_000_000.0
BROKEN = Notice(
    id="disk-full", state=OPEN, severity="error", cause="the disk is full", fix="make room",
    since=NOW,
)  # fmt: skip
OVER_NOW = Notice(
    id="disk-full", state=OVER, severity="error", cause="the disk is full", since=NOW - 720,
    until=NOW,
)  # fmt: skip
LOST = Notice(
    id="worker-lost", state=EVENT, severity="warning", cause="a worker was lost", since=NOW, count=3
)


def when(at: float) -> str:
    return f"<{at:.0f}>"


def test_the_title_says_where_and_how_bad() -> None:
    """Of several the worst, and how many; good news is good news."""
    assert title_of([BROKEN], "nas") == "tidegate on nas: error"
    assert title_of([OVER_NOW], "nas") == "tidegate on nas: over"
    assert title_of([LOST, OVER_NOW], "nas") == "tidegate on nas: warning, 2 notices"


def test_the_text_says_what_it_is_and_what_to_do() -> None:
    """A paragraph each; what is old says from when, what was left out is counted."""
    text = text_of([BROKEN, OVER_NOW, LOST], 2, NOW, when)
    assert text.split("\n\n") == [
        "the disk is full\n→ make room",
        f"<{NOW - 720:.0f}>: over after 12 min: the disk is full",
        "a worker was lost (3 times)",
        "2 former notices left out: too many waited",
    ]


def test_a_webhook_gets_both() -> None:
    """Texts for people and fields for programs; where it goes is not in it."""
    url = "https://h/secret-path"
    message = NoticeMessage(url=url, notices=[BROKEN], now=NOW, version="1.0")
    body = msgspec.json.encode(webhook_of(message, "nas", when))
    assert b"secret-path" not in body
    read = msgspec.json.decode(body)
    assert read["notices"][0] == {
        "id": "disk-full", "state": "open", "severity": "error", "cause": "the disk is full",
        "fix": "make room", "since": NOW, "until": None, "count": 1,
    }  # fmt: skip
    assert {key: read[key] for key in ("source", "host", "version", "severity", "left_out")} == {
        "source": "tidegate", "host": "nas", "version": "1.0", "severity": "error", "left_out": 0,
    }  # fmt: skip
    assert read["title"] == "tidegate on nas: error"
    assert read["text"] == "the disk is full\n→ make room"
    assert "secret-path" not in repr(message)


def test_texts_of_others_are_cut() -> None:
    """An upstream's error may be a page."""
    long = msgspec.structs.replace(BROKEN, cause="x" * 9999, fix="y" * 9999)
    assert {len(shortened(long).cause), len(shortened(long).fix)} == {MAX_TEXT_LENGTH}
    assert shortened(long).cause.endswith("x…")
    steers = msgspec.structs.replace(BROKEN, cause="a\x1b[31m b\u202ec\nd")
    assert shortened(steers).cause == "a\\x1b[31m b\\u202ec\nd"
