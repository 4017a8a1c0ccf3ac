"""A heap of deadlines: due ones come out in order, and looking costs what is due."""

import heapq
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.held import held
from tidegate.core.runs import deadlines as deadline
from tidegate.core.runs.deadlines import Deadlines


class Counter:
    """Counts the heap operations of the module under test."""

    def __init__(self) -> None:
        self.operations = 0

    def push(self, heap: list[object], item: object) -> None:
        self.operations += 1
        heapq.heappush(heap, item)  # type: ignore[type-var]

    def pop(self, heap: list[object]) -> object:
        self.operations += 1
        return heapq.heappop(heap)  # type: ignore[type-var]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counted = Counter()
    monkeypatch.setattr(deadline, "heappush", counted.push)
    monkeypatch.setattr(deadline, "heappop", counted.pop)
    return counted


def test_due_keys_come_out_earliest_first() -> None:
    """What is due is taken once, in order, and the rest stays."""
    deadlines: Deadlines[str] = Deadlines()
    for key, due_s in [("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 9.0)]:
        deadlines.set(key, due_s)
    assert deadlines.next_s() == 1.0
    assert deadlines.take_due(0.5) == []
    assert deadlines.take_due(3.0) == ["a", "b", "c"]
    assert len(deadlines) == 1
    assert deadlines.next_s() == 9.0


def test_a_moved_deadline_counts_where_it_was_moved_to() -> None:
    """Earlier or later, only the last setting matters; a dropped key never comes up."""
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("later", 1.0)
    deadlines.set("earlier", 9.0)
    deadlines.set("gone", 2.0)
    deadlines.set("later", 5.0)
    deadlines.set("earlier", 4.0)
    deadlines.drop("gone")
    deadlines.drop("never known")
    assert deadlines.take_due(4.5) == ["earlier"]
    assert deadlines.take_due(10.0) == ["later"]
    assert deadlines.next_s() is None


def test_no_more_are_taken_than_asked() -> None:
    """A crowd that is due at once is taken in portions, without losing one."""
    deadlines: Deadlines[int] = Deadlines()
    for key in range(10):
        deadlines.set(key, 1.0)
    assert deadlines.take_due(1.0, most=4) == [0, 1, 2, 3]
    assert deadlines.take_due(1.0, most=100) == [4, 5, 6, 7, 8, 9]


def test_keys_are_never_compared() -> None:
    """Equal deadlines of keys without an order cause no error."""
    deadlines: Deadlines[object] = Deadlines()
    for key in (object(), object(), object()):
        deadlines.set(key, 1.0)
    assert len(deadlines.take_due(1.0)) == 3


@pytest.mark.parametrize("kept", [10, 10_000])
def test_a_look_costs_what_is_due(kept: int, counter: Counter) -> None:
    """With nothing due no heap operation is made; with three due, three, however many there are."""
    deadlines: Deadlines[int] = Deadlines()
    for key in range(kept):
        deadlines.set(key, 1000.0 + key)
    counter.operations = 0
    assert deadlines.take_due(999.0) == []
    assert counter.operations == 0
    assert deadlines.take_due(1002.0) == [0, 1, 2]
    assert counter.operations == 3


def test_an_unmoved_deadline_costs_nothing(counter: Counter) -> None:
    """Setting what is set already does not touch the heap."""
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    counter.operations = 0
    for _ in range(100):
        deadlines.set("a", 1.0)
    assert counter.operations == 0


def test_stale_places_are_swept_out() -> None:
    """A deadline that moves ten thousand times does not grow the heap."""
    deadlines: Deadlines[int] = Deadlines()
    for turn in range(10_000):
        deadlines.set(turn % 10, float(turn))
        if turn % 100 == 0:
            assert len(held(deadlines, tuple)) <= 65 + 10  # places, and what is due of each key
    assert len(deadlines) == 10
    assert len(deadlines.take_due(1e9)) == 10


def test_dropping_gives_the_places_back() -> None:
    """When thousands of keys went, their places went with them."""
    deadlines: Deadlines[int] = Deadlines()
    for key in range(5000):
        deadlines.set(key, float(key))
    for key in range(5000):
        deadlines.drop(key)
    assert len(deadlines) == 0
    assert len(held(deadlines, tuple)) <= 64


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "drop", "take"]), st.integers(0, 8), st.integers(0, 50)),
        max_size=200,
    )
)
def test_any_history_agrees_with_a_plain_table(steps: list[tuple[str, int, int]]) -> None:
    """A dict searched from end to end finds the same."""
    deadlines: Deadlines[int] = Deadlines()
    table: dict[int, float] = {}
    for what, key, at in steps:
        if what == "set":
            deadlines.set(key, float(at))
            table[key] = float(at)
        elif what == "drop":
            deadlines.drop(key)
            table.pop(key, None)
        else:
            due = deadlines.take_due(float(at))
            assert sorted(due) == sorted(k for k, due_s in table.items() if due_s <= at)
            assert [table[k] for k in due] == sorted(table[k] for k in due)
            for k in due:
                del table[k]
        assert deadlines.next_s() == min(table.values(), default=None)
        assert len(deadlines) == len(table)
