"""When a problem becomes a repair, and when it ceases to be one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.problems import (
    CLOSE_AFTER_S,
    MOST_OPEN,
    OPEN_AFTER_S,
    Problem,
    Repairs,
    Severity,
)

DISK = Problem(id="disk", severity=Severity.WARNING, cause="full", fix="make room")
DEAD = Problem(id="dead", severity=Severity.ERROR, cause="dead", fix="start it")


def test_it_opens_after_a_while_and_keeps_its_beginning() -> None:
    """`since` is when it was first seen, however often it is seen again."""
    book = Repairs()
    assert book.observe([DISK], now_s=0.0, now=1000.0) == ([], [])
    assert book.open() == []
    opened, closed = book.observe([DISK], now_s=OPEN_AFTER_S, now=1005.0)
    assert ([each.id for each in opened], closed) == (["disk"], [])
    book.observe([DISK], now_s=500.0, now=1500.0)
    (repair,) = book.open()
    assert (repair.since, repair.severity, repair.cause, repair.fix) == (
        1000.0, "warning", "full", "make room"
    )  # fmt: skip


def test_it_closes_by_itself_after_a_while() -> None:
    """Gone for a moment is not mended."""
    book = Repairs()
    book.observe([DISK], now_s=0.0, now=0.0)
    book.observe([DISK], now_s=OPEN_AFTER_S, now=0.0)
    assert book.observe([], now_s=OPEN_AFTER_S + CLOSE_AFTER_S - 1, now=0.0) == ([], [])
    assert book.observe([DISK], now_s=OPEN_AFTER_S + CLOSE_AFTER_S, now=0.0) == ([], [])
    opened, closed = book.observe([], now_s=OPEN_AFTER_S + 2 * CLOSE_AFTER_S, now=0.0)
    assert ([each.id for each in closed], opened, book.open()) == (["disk"], [], [])


def test_what_passes_by_itself_never_opens() -> None:
    """Each new sight of it begins anew."""
    book = Repairs()
    for turn in range(20):
        book.observe([DISK] if turn % 2 else [], now_s=float(turn), now=0.0)
    assert book.open() == []


def test_the_worst_come_first_with_their_latest_words() -> None:
    """An error before a warning; the cause may change while it is open."""
    book = Repairs()
    for now_s in (0.0, OPEN_AFTER_S):
        book.observe([DISK, DEAD], now_s=now_s, now=now_s)
    worse = Problem(id="disk", severity=Severity.WARNING, cause="fuller", fix="now")
    book.observe([worse, DEAD], now_s=6.0, now=6.0)
    assert [(each.id, each.cause) for each in book.open()] == [("dead", "dead"), ("disk", "fuller")]
    assert book.counts() == {"note": 0, "warning": 1, "error": 1}


def test_what_a_former_program_knew_opens_at_once() -> None:
    """An upgrade forgets no beginning."""
    book = Repairs({"disk": 42.0})
    opened, _ = book.observe([DISK], now_s=7.0, now=1000.0)
    assert [(each.id, each.since) for each in opened] == [("disk", 42.0)]


def test_the_page_is_bounded() -> None:
    """Of too many the oldest of the worst are shown."""
    book = Repairs()
    many = [
        Problem(id=f"p{n}", severity=Severity.NOTE, cause="", fix="") for n in range(MOST_OPEN * 3)
    ]
    for now_s in (0.0, OPEN_AFTER_S):
        book.observe([*many, DEAD], now_s=now_s, now=now_s)
    assert len(book.open()) == MOST_OPEN
    assert book.open()[0].id == "dead"


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 20.0)), max_size=60))
def test_open_and_closed_alternate(steps: list[tuple[bool, float]]) -> None:
    """Whatever comes and goes, it is never opened twice without being closed between."""
    book, now_s, is_open = Repairs(), 0.0, False
    for seen, later_s in steps:
        now_s += later_s
        opened, closed = book.observe([DISK] if seen else [], now_s=now_s, now=now_s)
        for _ in closed:
            assert is_open
            is_open = False
        for _ in opened:
            assert not is_open
            is_open = True
    assert bool(book.open()) is is_open
