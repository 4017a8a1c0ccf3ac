"""Wrong keys: which answers are braked, what is remembered, what the log is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.brake import (
    EVERY_S,
    FREE,
    HERE,
    MOST_ADDRESSES,
    MOST_NAMED,
    REPORT_EVERY_S,
    Brake,
    Source,
    source_of,
)

PHONE = Source("192.0.2.7", is_local=False)
OTHER = Source("192.0.2.8", is_local=False)


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("192.0.2.7", PHONE),
        ("::ffff:192.0.2.7", PHONE),
        ("127.0.0.1", Source("127.0.0.1", is_local=True)),
        ("127.9.9.9", Source("127.9.9.9", is_local=True)),
        ("::ffff:127.0.0.1", Source("127.0.0.1", is_local=True)),
        ("::1", Source("::1", is_local=True)),
        ("2001:db8:1:2:3:4:5:6", Source("2001:db8:1:2::/64", is_local=False)),
        ("2001:db8:1:2::9", Source("2001:db8:1:2::/64", is_local=False)),
        ("fe80::1%eth0", Source("fe80::/64", is_local=False)),
        ("", HERE),
        (None, HERE),
    ],
)
def test_a_source_is_an_address_or_a_household(peer: str | None, source: Source) -> None:
    """IPv4 by address, IPv6 by its /64; loopback and Unix sockets are of this computer."""
    assert source_of(peer) == source


def test_a_few_wrong_keys_are_free_and_then_it_takes_time() -> None:
    """Each `EVERY_S` gives one more; tries that came too early cost nothing further."""
    brake = Brake()
    assert [brake.wrong(PHONE, 100.0) for _ in range(FREE)] == [None] * FREE
    assert [brake.wrong(PHONE, 100.0) for _ in range(3)] == [EVERY_S] * 3
    assert brake.wrong(PHONE, 100.0 + EVERY_S / 2) == pytest.approx(EVERY_S / 2)
    assert brake.wrong(PHONE, 100.0 + EVERY_S) is None
    assert brake.wrong(PHONE, 100.0 + EVERY_S) == pytest.approx(EVERY_S)
    assert brake.wrong(OTHER, 100.0) is None
    assert brake.wrong(PHONE, 100.0 + EVERY_S * (FREE + 2)) is None


def test_this_computer_is_never_braked() -> None:
    """Loopback and Unix sockets: who can reach those can read the log as well."""
    brake = Brake()
    for source in (HERE, source_of("127.0.0.1"), source_of("::1")):
        assert [brake.wrong(source, 0.0) for _ in range(FREE * 3)] == [None] * FREE * 3


def test_the_first_is_told_at_once_and_the_rest_once_in_a_minute() -> None:
    """With the count and the addresses, the most first; nothing is told twice or left out."""
    brake = Brake()
    assert brake.report(0.0) is None
    brake.wrong(PHONE, 0.0)
    told = brake.report(0.0)
    assert told is not None
    assert told.text == "wrong keys: 1, from 192.0.2.7 (1)"
    for n in range(30):
        brake.wrong(PHONE, 1.0 + n)
        assert brake.report(1.0 + n) is None
    for n in range(4):
        brake.wrong(Source(f"198.51.100.{n}", is_local=False), 40.0)
    brake.wrong(OTHER, 41.0)
    brake.wrong(OTHER, 41.0)
    assert brake.report(REPORT_EVERY_S - 0.1) is None
    told = brake.report(REPORT_EVERY_S)
    assert told is not None
    assert told.text == (
        "wrong keys: 36, from 192.0.2.7 (30), 192.0.2.8 (2), 198.51.100.0 (1) and 3 more"
    )
    assert brake.report(REPORT_EVERY_S * 9) is None


def test_what_has_been_quiet_for_long_is_forgotten() -> None:
    """With the next report, so that a flood leaves nothing behind."""
    brake = Brake()
    for n in range(500):
        brake.wrong(Source(f"n{n}", is_local=False), 0.0)
    brake.report(0.0)
    brake.wrong(PHONE, 600.0)
    brake.report(600.0)
    assert len(brake) == 1


sources = st.builds(Source, st.sampled_from([f"192.0.2.{n}" for n in range(6)]), st.just(False))
steps = st.lists(st.tuples(sources, st.floats(0, 20)), max_size=200)


@given(steps)
def test_no_source_gets_more_than_its_rate(happenings: list[tuple[Source, float]]) -> None:
    """Over any stretch of time: `FREE` and one for each `EVERY_S`, and every wait is honest."""
    brake, now_s = Brake(), 0.0
    free: dict[str, list[float]] = {}
    said = 0
    for source, after_s in happenings:
        now_s += after_s
        wait_s = brake.wrong(source, now_s)
        if wait_s is None:
            free.setdefault(source.name, []).append(now_s)
        else:
            assert 0 < wait_s <= EVERY_S + 1e-6
        if report := brake.report(now_s):
            assert len(report.by_source) <= MOST_NAMED
            said += report.keys
    for times in free.values():
        for n, begin_s in enumerate(times):
            for m, end_s in enumerate(times[n:], 1):
                assert m <= FREE + (end_s - begin_s) / EVERY_S + 1e-6
    last = brake.report(now_s + REPORT_EVERY_S + 1)  # a sum of floats may fall short
    assert said + (last.keys if last else 0) == len(happenings)


def test_the_book_is_bounded() -> None:
    """The one that was wrong longest ago is forgotten; its count is told all the same."""
    brake = Brake()
    for n in range(MOST_ADDRESSES * 2):
        brake.wrong(Source(f"n{n}", is_local=False), 0.0)
        brake.wrong(PHONE, 0.0)
    assert len(brake) == MOST_ADDRESSES
    assert brake.wrong(PHONE, 0.0) is not None
    told = brake.report(0.0)
    assert told is not None
    assert told.keys == MOST_ADDRESSES * 4 + 1
