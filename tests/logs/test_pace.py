"""When a growing total is told."""

from __future__ import annotations

from tidegate.logs.pace import EVERY_S, FEW, QUIET_S, Pace


def play(grows_at: list[float], until_s: float) -> list[float]:
    """When it is told, looked at ten times a second."""
    pace, told, untold = Pace(), [], False
    grows_at = list(grows_at)
    for tenth in range(int(until_s * 10)):
        now_s = tenth / 10
        while grows_at and grows_at[0] <= now_s:
            grows_at.pop(0)
            pace.grew(now_s)
            untold = True
        if untold and now_s >= pace.due_s:
            pace.logged(now_s)
            told.append(now_s)
            untold = False
    assert not untold, "nothing stays untold"
    return told


def test_first_ones_are_told_at_once() -> None:
    """What happens now and then is told when it happens."""
    assert play([0, 10, 20], 30) == [0, 10, 20]


def test_steady_growth_is_told_once_a_minute() -> None:
    """After the first few; and its last part when it is over."""
    told = play([float(n) for n in range(600)], 700)
    assert told[:FEW] == [0, 1, 2, 3, 4]
    gaps = [after - before for before, after in zip(told[FEW - 1 :], told[FEW:], strict=False)]
    assert gaps[:-1] == [EVERY_S] * (len(gaps) - 1)
    assert told[-1] == 599 + QUIET_S


def test_many_at_once_are_told_once_a_second() -> None:
    """Ten in a second are one line."""
    assert play([n / 10 for n in range(25)], 30) == [0, 1, 2, 3]


def test_after_a_quiet_minute_it_is_news_again() -> None:
    """A later flood is told from its first moment."""
    assert play([*map(float, range(30)), 200.0], 300)[-1] == 200
