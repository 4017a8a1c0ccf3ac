"""Two hours of samples in a ring."""

from __future__ import annotations

import sys

from tidegate.core.protocol.news import MemoryPoint
from tidegate.watchdog.guard.samples import COLUMNS, EVERY_S, KEPT, Samples


def add(ring: Samples, now_s: float, used: int, level: int = 0) -> None:
    ring.add(
        now_s,
        1e9 + now_s,
        used_bytes=used,
        worker_rss_bytes=used + 1,
        ledger_bytes=7,
        level=level,
        unexplained_bytes=3,
    )


def test_of_each_ten_seconds_the_highest_use_stays() -> None:
    """A peak between two entries is what the owner will look for."""
    ring = Samples()
    for now_s, used in enumerate([10, 50, 20, 30, 10, 10, 10, 10, 10, 10, 11, 12]):
        add(ring, float(now_s), used, level=used // 50)
    assert ring.rows() == [(1e9 + 1, 50, 51, 7, 1, 3), (1e9 + 11, 12, 13, 7, 0, 3)]
    assert len(ring.rows()[0]) == len(COLUMNS)


def test_the_oldest_entries_go() -> None:
    """Two hours are kept, in order, however long it goes on."""
    ring = Samples()
    for n in range(KEPT + 100):
        add(ring, n * EVERY_S, n)
    rows = ring.rows()
    assert len(ring) == len(rows) == KEPT
    assert [row[1] for row in rows] == list(range(100, KEPT + 100))


def test_an_empty_ring_has_no_rows() -> None:
    """Nothing was sampled, nothing is shown."""
    assert Samples().rows() == []


def test_a_clock_that_went_back_begins_a_new_entry() -> None:
    """It must not wait for hours until the old time comes again."""
    ring = Samples()
    add(ring, 5000.0, 9)
    add(ring, 3.0, 1)
    assert [row[1] for row in ring.rows()] == [9, 1]


def test_the_ring_is_small() -> None:
    """It lives in the watchdog for months."""
    ring = Samples()
    for n in range(KEPT + 1):
        add(ring, n * EVERY_S, n << 40)
    entries = ring._entries
    assert sys.getsizeof(entries) + sum(map(sys.getsizeof, entries)) < 60 * 1024


def test_a_page_is_told_what_is_newer() -> None:
    """Oldest first, and of each entry what is drawn; not the last, which still changes."""
    ring = Samples()
    add(ring, 0.0, 0)
    assert ring.points(0.0) == [MemoryPoint(1e9, 0, 7, 3)]
    for n in range(1, 5):
        add(ring, n * EVERY_S, n)
    assert ring.points(1e9 + EVERY_S) == [
        MemoryPoint(1e9 + 2 * EVERY_S, 2, 7, 3),
        MemoryPoint(1e9 + 3 * EVERY_S, 3, 7, 3),
    ]
    assert len(ring.points(0.0)) == 4


def test_a_ring_goes_on_where_a_former_program_left_off() -> None:
    """With its rows as JSON has them; what is none of ours is left out."""
    ring = Samples()
    for n in range(3):
        add(ring, n * EVERY_S, n)
    left = [list(row) for row in ring.rows()]
    again = Samples([*left, [1.0, 2.0], [1e9, -5, 0, 0, 0, 0], [1e9, 1, 1, 1, 999, 1]])
    assert again.rows() == ring.rows()
    add(again, 0.0, 99)
    assert [row[1] for row in again.rows()] == [0, 1, 2, 99]
