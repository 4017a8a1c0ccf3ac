"""`tidegate replay`: decisions made again, from a log, from a bundle, and from anything else."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.cli.verbs.replay import compare
from tidegate.watchdog.guard import bundle, decision_log
from watchdog.guard_records import log_of

RATIOS = [0.1, 0.65, 0.75, 0.95]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of four decisions."""
    return log_of(tmp_path, RATIOS)


def change(log: Path, number: int, **values: Any) -> None:
    """Write other values, by dotted place ("decision__level"), into one record. None removes it."""
    lines = log.read_text().splitlines()
    record = json.loads(lines[number])
    for place, value in values.items():
        *outer, name = place.split("__")
        table = record
        for part in outer:
            table = table[part]
        table[name] = value
        if value is None:
            del table[name]
    lines[number] = json.dumps(record)
    log.write_text("\n".join(lines) + "\n")


def test_a_log_comes_out_the_same(tidegate, log):
    """A line for each record: when, where memory stood, what was decided; and exit 0."""
    code, out, err = tidegate("replay", str(log))
    *lines, summary = out.splitlines()
    assert (code, err) == (0, "")
    assert len(lines) == len(RATIOS)
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  level 0, 10 % of \d+ MiB: nothing", lines[0])
    assert all(line.endswith("  same") for line in lines)
    assert "refuse new runs (memory level " in lines[-1]
    assert summary.startswith("4 decisions made again by tidegate ")
    assert summary.endswith("all the same.")


def test_what_differs_is_named_with_both_values(tidegate, log):
    """And the exit code is 1."""
    change(log, 0, decision__level=1, decision__squeeze=True)
    code, out, _ = tidegate("replay", str(log))
    assert code == 1
    assert "differs: level 1 -> 0" in out
    assert "differs: squeeze true -> false" in out
    assert "1 differ." in out


def test_a_bundle_is_replayed_as_well(tidegate, log, tmp_path):
    """Its decisions are records like any other."""
    sections = {"format": 1, "why": [], "decisions": decision_log.tail(tmp_path, 10**6)}
    path = bundle.write(tmp_path, sections, "kill", "hung", 1e9)
    code, out, _ = tidegate("replay", str(path))
    assert code == 0
    assert out.count("  same") == len(RATIOS)


def test_json_is_a_line_for_each_record(tidegate, log):
    """With the differences as values."""
    change(log, 2, decision__cause="slack")
    code, out, _ = tidegate("replay", "--json", str(log))
    verdicts = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [comparison["same"] for comparison in verdicts] == [True, True, False, True]
    [difference] = verdicts[2]["differences"]
    assert difference == {"field": "cause", "recorded": "slack", "now": "explained"}


def test_fields_of_another_version_are_said_in_words(tidegate, log):
    """What is unknown here, and what is missing and was taken as usual."""
    change(log, 3, version="9.9", inputs__moon="full", inputs__slack_bytes=None)
    code, out, _ = tidegate("replay", str(log))
    assert code == 0
    note = "written by tidegate 9.9: inputs.moon is unknown here, inputs.slack_bytes is taken as"
    assert note in out


def test_a_record_of_another_form_is_said_in_words(tidegate, log):
    """It is not the same, and no traceback."""
    change(log, 0, version="0.0.1", inputs__reading=None)
    change(log, 1, before=[])
    code, out, err = tidegate("replay", str(log))
    assert (code, err) == (1, "")
    assert "record 1 cannot be read as a decision, it is of tidegate 0.0.1: " in out
    assert "record 2 cannot be read as a decision, it is of tidegate" in out
    assert out.count("  same") == 2


def test_a_line_that_was_cut_off_is_no_difference(tidegate, log):
    """The computer lost power while it was written."""
    with log.open("a") as file:
        file.write('{"at": 1795391112.0, "version')
    code, out, _ = tidegate("replay", str(log))
    assert code == 0
    assert "record 5 cut off while it was written" in out


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"\x00\xff\xfe" * 100, b"[1, 2]\n", b'{"format": 99}\n', b'{"a": 1}\n{"b":\n',
     b"{" * 100_000, b'{\n"format": 1,\n"decisions": []\n}\n', b'{"format": 1, "decisions": 7}'],
)  # fmt: skip
def test_a_file_that_is_neither_is_wrong_usage(tidegate, tmp_path, content):
    """Exit 64 with words, whatever it is."""
    path = tmp_path / "file"
    path.write_bytes(content)
    code, out, err = tidegate("replay", str(path))
    assert (code, out) == (64, "")
    assert "neither a bundle nor a log of decisions" in err or "no decisions are in it" in err


def test_no_file_and_a_directory_are_wrong_usage(tidegate, tmp_path):
    """Exit 64, and the system's reason."""
    for path, why in ((tmp_path / "nowhere", "No such file"), (tmp_path, "Is a directory")):
        code, _, err = tidegate("replay", str(path))
        assert code == 64
        assert why in err


def test_hostile_values_do_not_reach_the_terminal(tidegate, log):
    """A record may come from anybody."""
    change(log, 0, version="\x1b[2J", decision__cause="\x1b[31mred", inputs__moon=1)
    code, out, _ = tidegate("replay", str(log))
    assert code == 1
    assert "\x1b" not in out


@pytest.mark.parametrize("value", [1e308, -1e308, 2**63 - 1, -(2**63), 0])
def test_hostile_figures_end_in_words(tidegate, log, value):
    """No traceback, whatever the record claims."""
    change(log, 0, inputs__limits__budget_bytes=int(min(value, 2**63 - 1)) if value < 1e300 else 0)
    change(log, 1, inputs__now_s=value, before__ticked_s=-value, at=value)
    code, out, err = tidegate("replay", str(log))
    assert code in (0, 1)
    assert err == ""
    assert len(out.splitlines()) >= 5


STRANGE = [0, -1, 1e308, -1e308, 1e-320, 2**63, 10**30, None, True, "", [], {}, [1], {"a": 1}]


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_no_record_ends_in_a_traceback(log, data):
    """Whatever value stands in whatever place."""
    record = json.loads(log.read_text().splitlines()[-1])
    table = record
    for _ in range(4):
        name = data.draw(st.sampled_from(sorted(table)))
        if not isinstance(table[name], dict) or not table[name] or data.draw(st.booleans()):
            break
        table = table[name]
    table[name] = data.draw(st.sampled_from(STRANGE))
    comparison = compare(1, json.dumps(record).encode())
    assert comparison.same or comparison.differences or comparison.note


def test_a_large_log_is_read_line_by_line(tidegate, log, capsys):
    """Its size is no matter."""
    log.write_bytes(log.read_bytes() * 500)
    tracemalloc.start()
    code = tidegate("replay", "--json", str(log))[0]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code == 0
    assert peak_bytes < log.stat().st_size / 2


def test_an_endless_line_is_no_record(tidegate, log):
    """It is not read into memory as one piece."""
    with log.open("ab") as file:
        file.write(b"x" * 3_000_000 + b"\n")
    code, out, _ = tidegate("replay", str(log))
    assert code == 1
    assert out.count("longer than 1048576 bytes") == 1
    assert "5 decisions made again" in out
