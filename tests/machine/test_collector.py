"""The collector that looks at little, in processes of their own: there is one a process."""

from __future__ import annotations

import subprocess
import sys

from tidegate.machine import collector

BEGIN = """
import gc, weakref
from tidegate.machine import collector
from tidegate.machine.collector import Collector

class Node:
    def __init__(self):
        self.itself = self

def lost(count):
    nodes = [Node() for _ in range(count)]
    return nodes, [weakref.ref(node) for node in nodes]

def churn():
    "Work enough for a collection of each generation."
    before = gc.get_stats()[2]["collections"]
    kept = []
    while gc.get_stats()[2]["collections"] == before:
        kept.append([])

mine = Collector()
"""


def played(code: str) -> list[str]:
    """What the code prints, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_collection_looks_at_more_than_what_has_come_since_the_last() -> None:
    """However many objects there are: 600,000 here, of which each sees a few thousand."""
    [seen] = played("""
seen = []

def note(phase, about):
    if phase == "start" and about["generation"] == 2:
        seen.append(len(gc.get_objects()))

mine.start(0.0)
gc.callbacks.append(note)
kept = [[] for _ in range(600_000)]
print(len(seen), max(seen))
""")
    times, most = map(int, seen.split())
    young, middle, old = collector.THRESHOLDS
    assert times > 10
    assert most < 1.1 * young * ((middle + 2) * (old + 1) + 1)


def test_a_cycle_that_was_frozen_and_lost_is_found_by_a_look() -> None:
    """No collection finds it before, and the look does, when little is held."""
    assert played("""
mine.start(0.0)
nodes, refs = lost(100)
churn()
nodes.clear()
churn()
print(sum(ref() is not None for ref in refs))
print(mine.look(1e9, held=collector.MOST_HELD + 1, is_quiet=True))
print(mine.look(1e9, held=collector.MOST_HELD, is_quiet=True))
print(sum(ref() is not None for ref in refs))
""") == ["100", "False", "True", "0"]


def test_cycles_that_were_not_frozen_go_by_themselves() -> None:
    """Those that are lost young never pile up, busy or not."""
    assert played("""
mine.start(0.0)
refs = []
for _ in range(50):
    refs += lost(100)[1]
    churn()
churn()
print(sum(ref() is not None for ref in refs))
""") == ["0"]


def test_a_look_waits_for_a_quiet_moment_but_not_for_ever() -> None:
    """Every minute without an answer under way, every hour with one; never without need."""
    assert played("""
mine.start(0.0)
print(mine.look(1e9, held=0, is_quiet=True))  # nothing has come since the start
churn()
print(mine.look(collector.LOOK_EVERY_S, held=0, is_quiet=False))
print(mine.look(collector.LOOK_EVERY_S, held=0, is_quiet=True))
churn()
print(mine.look(collector.LOOK_EVERY_S + 1, held=0, is_quiet=True))
print(mine.look(collector.LOOK_EVERY_S + collector.LOOK_WHEN_BUSY_S, held=0, is_quiet=False))
""") == ["False", "False", "True", "False", "True"]


def test_what_is_frozen_is_freed_as_soon_as_it_is_let_go_of() -> None:
    """A finished run needs no collection: it has no cycles."""
    assert played("""
class Plain: pass

mine.start(0.0)
kept = [Plain() for _ in range(100)]
refs = [weakref.ref(each) for each in kept]
churn()
gc.disable()
kept.clear()
print(sum(ref() is not None for ref in refs))
""") == ["0"]


def test_what_python_keeps_of_freed_tuples_goes_when_it_is_to() -> None:
    """It keeps thousands for the next ones, which hold the memory around them."""
    [kept, left] = played("""
import sys
mine.start(0.0)
before = sys.getallocatedblocks()
tuples = [(each, None, each) for each in range(5_000)]
del tuples
print(sys.getallocatedblocks() - before)
mine.clear_free_lists()
print(sys.getallocatedblocks() - before)
""")
    assert int(kept) > 1_500
    assert int(left) < 100
