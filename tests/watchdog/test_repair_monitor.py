"""Everything that a running tidegate finds wrong with itself, each provoked and with its fix."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from fakes.status import idle
from tidegate.core.problems import Problem
from tidegate.core.protocol.status import (
    MemoryState,
    ReceiverState,
    Restart,
    UpstreamState,
)
from tidegate.core.protocol.stores import StoreState
from tidegate.core.settings import MIB
from tidegate.core.upstreams.summary import UpstreamRefusal
from tidegate.watchdog import repairs
from tidegate.watchdog.repairs import Observation, find

NOW = 1_000_000.0
STATUS = idle(generation=1)
WELL = Observation(status=STATUS, now=NOW, free_bytes=1 << 40, connections=5, max_connections=100)
SOURCE = Path(repairs.__file__).read_text()


def upstream(state: str, *refusals: UpstreamRefusal) -> UpstreamState:
    return UpstreamState(
        name="box",
        state=state,
        active=0,
        queued=0,
        last_error="answered 500",
        refusals=list(refusals),
    )


def lost(ago_s: float) -> Restart:
    return Restart(at=NOW - ago_s, reason="killed by SIGKILL", exit=-9)


def with_status(**values: object) -> Observation:
    return replace(WELL, status=replace(STATUS, **values))


def store(keep: str, **values: object) -> StoreState:
    return replace(StoreState(keep=keep, place="disk"), **values)


def with_memory(**values: object) -> Observation:
    return with_status(memory=replace(MemoryState(), **values))


PROVOKED = {
    "notify-failing:phone": (
        with_status(
            notify=[
                ReceiverState(name="hook", error="just now", failing_since=NOW - 59),
                ReceiverState(name="phone", error="it answered 503", failing_since=NOW - 60),
            ]
        ),
        "warning", "phone cannot be told what happens: it answered 503", "notify test --to phone",
    ),
    "parked": (replace(WELL, parked="c.toml:1: no"), "error", "c.toml:1", "fix the config"),
    "config-refused": (replace(WELL, refused_config="c:1"), "warning", "c:1", "tidegate check"),
    "upgrade-refused": (replace(WELL, refused_upgrade="no"), "warning", "no", "tidegate upgrade"),
    "upstream-failing:box": (
        with_status(upstreams=[upstream("ok"), upstream("failing")]),
        "warning", "box is failing: answered 500", "tidegate doctor",
    ),
    "upstream-set-aside:box": (
        with_status(upstreams=[upstream("set aside")]), "warning", "set aside", "tidegate doctor",
    ),
    "upstream-key:box": (
        with_status(upstreams=[upstream("failing", UpstreamRefusal(text="refused the key"))]),
        "warning", "upstream box refused the key", "tidegate reload",
    ),
    "upstream-model:box/m": (
        with_status(upstreams=[upstream("ok", UpstreamRefusal(model="m", text="has no model"))]),
        "warning", "upstream box has no model", "targets",
    ),
    "workers-lost": (with_status(restarts=[lost(30)]), "warning", "SIGKILL", "tidegate logs"),
    "connections-full": (replace(WELL, connections=90), "warning", "90 of 100", "max_connections"),
    "memory-short": (with_memory(shedding="level 3"), "error", "level 3", "memory.budget"),
    "recycle-refused": (with_memory(refused="3 an hour"), "warning", "3 an hour", "bundle"),
    "memory-grows": (
        with_memory(limit_in_s=7200.0, growth_bytes_per_h=5 * MIB),
        "warning", "5.0 MiB an hour that no run explains; full in 2.0 h", "bundle",
    ),
    "budget-small": (
        replace(WELL, configured_budget_bytes=130 * MIB),
        "warning", "memory.budget is 130 MiB and counts as 200", 'memory.budget = "200MiB"',
    ),
    "body-never-fits": (
        replace(WELL, max_body_bytes=32 * MIB, fits_bytes=9 * MIB),
        "warning", "over 9 MiB never fit", "memory.budget",
    ),
    "disk-full": (replace(WELL, free_bytes=100 * MIB), "warning", "100 MiB", "make room"),
    "log-lines-lost": (replace(WELL, lost_lines=3), "warning", "3 log lines", "disk"),
    "stop-limit": (
        replace(WELL, stop_limit_s=90.0, stop_s=55.0), "warning", "stop 55 s", "at most 55",
    ),
    "runtime-directory-gone": (
        replace(WELL, runtime_dir=Path("/var/lib/x/run"), runtime_dir_trouble="no such directory"),
        "warning", "serves from /var/lib/x/run: no such directory", "make it again",
    ),
    "watchdog-fault": (
        replace(WELL, fault="a tick failed"), "warning", "a tick failed", "tidegate bundle",
    ),
    "journal-paused": (
        with_status(journal=store("answers", paused="no space left", dropped_bytes=1 << 20)),
        "warning", "no space left; 1024.0 KiB were not kept", "by itself within a minute",
    ),
    "history-paused": (
        with_status(history=store("rows", paused="read-only")),
        "warning", "not written down just now: read-only", "tidegate doctor",
    ),
    "journal-set-aside": (
        with_status(journal=store("answers", set_aside="/r/journal/runs.db.bad")),
        "note", "/r/journal/runs.db.bad", "remove that file",
    ),
    "history-set-aside": (
        with_status(history=store("rows", set_aside="/s/history/history.db.bad")),
        "note", "/s/history/history.db.bad", "remove that file",
    ),
    "not-watched": (replace(WELL, is_watched=False), "note", "hung watchdog", "WatchdogSec"),
}  # fmt: skip


def test_all_is_well() -> None:
    """Nothing is found where nothing is wrong, or only was, long ago."""
    assert list(find(WELL)) == []
    assert list(find(with_status(restarts=[lost(4000)]))) == []
    assert list(find(with_memory(limit_in_s=30 * 86400.0, growth_bytes_per_h=1))) == []
    assert list(find(with_status(journal=store("off"), history=store("off")))) == []
    assert list(find(with_status(journal=store("answers", dropped_bytes=1, lag_s=9.0)))) == []
    roomy = replace(WELL, configured_budget_bytes=200 * MIB, max_body_bytes=9, fits_bytes=9)
    assert list(find(roomy)) == []


@pytest.mark.parametrize("name", PROVOKED)
def test_each_is_found_and_says_what_to_do(name: str) -> None:
    """One problem of that id and severity, with its cause and its fix."""
    seen, severity, cause, fix = PROVOKED[name]
    (problem,) = find(seen)
    assert (problem.id, problem.severity.value) == (name, severity)
    assert cause in problem.cause
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (with_status(restarts=[lost(n) for n in (900, 60, 5)]), "workers-lost"),
        (replace(WELL, free_bytes=5 * MIB), "disk-full"),
    ],
)
def test_worse_is_an_error(seen: Observation, name: str) -> None:
    """What was a warning becomes one when it is worse."""
    assert [(each.id, each.severity.value) for each in find(seen)] == [(name, "error")]


def test_every_id_in_the_code_is_provoked_here() -> None:
    """A new one needs a row of its own."""
    written = set(re.findall(r'(?:_warning|_error)\(\s*f?"([a-z-]+)', SOURCE))
    written |= set(re.findall(r'id="([a-z-]+)"', SOURCE))
    whole = {name.partition(":")[0] for name in PROVOKED}
    states = {name for name in whole - written if name.startswith("upstream-")}
    assert {name.rstrip("-") for name in written} == whole - states | {"upstream"}


def test_a_system_that_leaves_less_than_the_least_is_named() -> None:
    """It enforces its limit, so ours cannot count as more."""
    (problem,) = find(with_memory(budget_bytes=100 * MIB, budget_source="memory.max of /a"))
    assert problem.id == "budget-small"
    assert "the system leaves 100 MiB (memory.max of /a)" in problem.cause


def test_a_bound_that_few_descriptors_lowered_is_the_one_that_counts() -> None:
    """The repair names it, the setting, and how many open files that needs."""
    few = replace(WELL, connections=346, most_connections=384, max_connections=4096)
    (problem,) = find(few)
    assert problem.id == "connections-full"
    assert "346 of 384" in problem.cause
    assert "limits.max_connections is 4096, but" in problem.cause
    assert "open files to 8448" in problem.fix
    assert list(find(replace(few, connections=345))) == []


def test_the_disk_is_really_read(tmp_path: Path) -> None:
    """Room where the state is kept; a directory that is not there is not guessed at."""
    assert (repairs.RepairMonitor(tmp_path).free_bytes(1e6) or 0) > 0
    assert repairs.RepairMonitor(tmp_path / "none").free_bytes(1e6) is None


def test_opening_and_closing_are_a_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cause and the fix when it opens."""
    caplog.set_level("INFO")
    now_s = [0.0]
    monkeypatch.setattr(repairs.time, "monotonic", lambda: now_s[0])
    monitor = repairs.RepairMonitor(tmp_path)
    short = PROVOKED["memory-short"][0]
    for at_s, seen in ((0.0, short), (6.0, short), (7.0, short), (30.0, WELL), (60.0, WELL)):
        now_s[0] = at_s
        monitor.look(seen)
    assert [line.split(":")[0] for line in caplog.messages] == [
        "repair memory-short",
        "repair memory-short is no longer needed",
    ]
    assert isinstance(next(find(short)), Problem)
