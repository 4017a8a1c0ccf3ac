"""The book of retained bytes: the total is the sum, and the limit holds where bytes are charged."""

import pytest

from tidegate.core.errors import LedgerFull
from tidegate.core.runs.ledger import Entry, Ledger


def test_the_total_is_the_sum_of_the_accounts() -> None:
    """Every change of an entry is in its account and in the total at once."""
    ledger = Ledger()
    one, two = ledger.open(), ledger.open()
    one.set(Entry.WINDOW, 1000)
    two.set(Entry.BODY, 50)
    one.set(Entry.WINDOW, 400)
    one.set(Entry.PARTIAL, 7)
    assert (one.total_bytes, two.total_bytes, ledger.total_bytes) == (407, 50, 457)
    assert ledger.statistics() == {
        "record": 0,
        "partial": 7,
        "held": 0,
        "window": 400,
        "outbound": 0,
        "stored": 0,
        "body": 50,
        "message": 0,
        "connection": 0,
    }
    assert one.close() == 407
    assert sum(ledger.statistics().values()) == 50
    assert ledger.total_bytes == 50
    assert ledger.accounts == {two}
    assert "body" in repr(two)


def test_closing_twice_frees_once() -> None:
    """A second close finds nothing."""
    ledger = Ledger()
    account = ledger.open()
    account.set(Entry.WINDOW, 10)
    assert account.close() == 10
    assert account.close() == 0
    assert ledger.total_bytes == 0


def test_the_book_is_tight_before_it_is_full() -> None:
    """Seven eighths is where eviction begins, the limit is where charges fail, 0 is no limit."""
    ledger = Ledger(800)
    account = ledger.open()
    account.set(Entry.WINDOW, 700)
    assert (ledger.is_tight, ledger.is_full) == (False, False)
    account.set(Entry.WINDOW, 701)
    assert (ledger.is_tight, ledger.is_full) == (True, False)
    with pytest.raises(LedgerFull):
        account.set(Entry.WINDOW, 801)
    assert (ledger.is_tight, ledger.is_full) == (True, True)
    ledger.limit_bytes = 0
    assert (ledger.is_tight, ledger.is_full) == (False, False)
    account.set(Entry.WINDOW, 10**12)


def test_relief_that_helps_lets_the_charge_pass() -> None:
    """What can be given back is given back before a client is refused."""
    ledger = Ledger(1000)
    old, new = ledger.open(), ledger.open()
    old.set(Entry.WINDOW, 600)
    asked = []

    def reclaim() -> None:
        asked.append(ledger.total_bytes)
        old.set(Entry.WINDOW, 0)

    ledger.reclaim = reclaim
    new.set(Entry.WINDOW, 700)
    assert asked == [1300]
    assert ledger.total_bytes == 700


def test_relief_that_does_not_help_refuses_with_the_figures() -> None:
    """The refusal names what is retained and what is allowed; the bytes stay on the books."""
    ledger = Ledger(1024 * 1024)
    account = ledger.open()
    with pytest.raises(LedgerFull, match="2048 KiB retained of 1024 KiB allowed"):
        account.set(Entry.WINDOW, 2 * 1024 * 1024)
    assert ledger.total_bytes == account.total_bytes == 2 * 1024 * 1024


def test_letting_go_never_fails() -> None:
    """An account above the limit can shrink without being refused or asking for room."""
    ledger = Ledger()
    account = ledger.open()
    account.set(Entry.WINDOW, 5000)
    ledger.limit_bytes = 100
    ledger.reclaim = lambda: pytest.fail("no more was asked for")
    account.set(Entry.WINDOW, 4000)
    account.set(Entry.WINDOW, 4000)
    assert ledger.total_bytes == 4000


def test_a_closed_account_cannot_be_charged() -> None:
    """A late charge would be no run's: it is refused or ignored, and the total stays the sum."""
    ledger = Ledger()
    account = ledger.open()
    account.close()
    account.set(Entry.WINDOW, 100)
    assert ledger.total_bytes == sum(each.total_bytes for each in ledger.accounts)


def test_the_largest_body_that_ever_fits_does() -> None:
    """With what it takes while it arrives, and with its own connection."""
    ledger = Ledger(40 * 1024 * 1024)
    most = ledger.largest_body_bytes
    assert most is not None
    assert 16 * 1024 * 1024 < most < 20 * 1024 * 1024
    ledger.connections.set(Entry.CONNECTION, 64 * 1024)
    ledger.open().set(Entry.BODY, most * 9 // 8)
    assert Ledger().largest_body_bytes is None
    assert Ledger(1000).largest_body_bytes == 0


def test_requests_leave_half_of_the_book_to_answers() -> None:
    """What clients send is refused at half of the limit; an answer may still grow."""
    ledger = Ledger(1000)
    upload, answer = ledger.open(), ledger.open()
    ledger.connections.set(Entry.CONNECTION, 100)
    upload.set(Entry.BODY, 400)
    with pytest.raises(LedgerFull, match="of requests retained"):
        upload.set(Entry.MESSAGE, 1)
    upload.set(Entry.MESSAGE, 0)
    answer.set(Entry.WINDOW, 350)
    assert (ledger.intake_bytes, ledger.total_bytes) == (500, 850)
    assert ledger.accounts == {upload, answer}
