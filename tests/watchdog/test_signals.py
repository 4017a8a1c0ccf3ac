"""Signals wake the loop, and can be made to wait."""

from __future__ import annotations

import selectors
import signal
import threading
from collections.abc import Iterator

import pytest

from tidegate.machine.signals import HANDLED
from tidegate.watchdog.signals import Signals


@pytest.fixture
def heard() -> Iterator[tuple[Signals, selectors.BaseSelector, list[int]]]:
    """What a loop hears; handlers and mask are as before afterwards."""
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    numbers: list[int] = []
    with selectors.DefaultSelector() as selector:
        signals = Signals(selector, numbers.extend)
        yield signals, selector, numbers
        signals.release()
        signals.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def send(number: signal.Signals) -> None:
    """To this very thread: others in this process would take it, and do not hold any."""
    signal.pthread_kill(threading.get_ident(), number)


def turn(selector: selectors.BaseSelector) -> None:
    for key, mask in selector.select(0):
        key.data(mask)


def test_held_signals_are_heard_after_their_release(
    heard: tuple[Signals, selectors.BaseSelector, list[int]],
) -> None:
    """Nothing is lost: what came meanwhile is heard then."""
    signals, selector, numbers = heard
    assert signals.hold()
    send(signal.SIGHUP)
    turn(selector)
    assert numbers == []
    signals.release()
    turn(selector)
    assert numbers == [signal.SIGHUP]


def test_who_has_come_already_is_heard_first(
    heard: tuple[Signals, selectors.BaseSelector, list[int]],
) -> None:
    """A signal whose handler ran and that the loop has not seen yet would die with the loop."""
    signals, selector, numbers = heard
    send(signal.SIGHUP)
    assert not signals.hold()
    send(signal.SIGUSR2)
    turn(selector)
    assert numbers == [signal.SIGHUP, signal.SIGUSR2]
    assert signals.hold()


def test_a_stop_is_heard_behind_a_flood_of_reloads(
    heard: tuple[Signals, selectors.BaseSelector, list[int]],
) -> None:
    """The buffer of wake-ups is full long before; what it could not take is heard all the same."""
    _, selector, numbers = heard
    for _ in range(100_000):
        send(signal.SIGHUP)
    send(signal.SIGTERM)
    for _ in range(200):
        turn(selector)
    assert signal.SIGTERM in numbers
