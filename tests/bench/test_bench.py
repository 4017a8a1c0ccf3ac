"""The bench's own arithmetic: medians, verdicts, and which rounds are played again."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
Import = Callable[[str], ModuleType]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    """Import modules of the bench, and forget them, since tests have folders of the same names."""
    stems = [path.stem for path in BENCH.glob("*.py")]
    monkeypatch.syspath_prepend(str(BENCH))
    for stem in stems:
        monkeypatch.delitem(sys.modules, stem, raising=False)
    yield importlib.import_module
    for stem in stems:
        sys.modules.pop(stem, None)


def figures(answers_per_s: float, cpu_us: float, *, busy: float = 0.97, **more: Any) -> dict:
    """What the summary has of one contender under W1b."""
    return {
        "answers_per_s": answers_per_s,
        "cpu_us_per_answer": cpu_us,
        "gateway_busy": busy,
        "harness_busy": 0.5,
        "quiet_rounds": 1,
        "errors": 0,
        "ready_s": 0.5,
        **more,
    }


def verdict(bench: Import, ours: dict, nginx: dict) -> Any:
    """How W1b is judged."""
    verdicts = bench("targets").judge({"W1b": {"nginx": nginx, "tidegate": ours}})
    return next(v for v in verdicts if v.target.workload == "W1b")


@pytest.mark.parametrize(
    ("answers_per_s", "word"),
    [(3999, "missed"), (4000, "met"), (4799, "met"), (4800, "met, stretch too")],
)
def test_a_ratio_must_reach_its_limit(bench: Import, answers_per_s: float, word: str) -> None:
    """At the limit a target is met, below it missed, and at the stretch both are met."""
    judged = verdict(bench, figures(answers_per_s, 100), figures(10_000, 40))
    assert judged.word == word


@pytest.mark.parametrize(("p99_us", "word"), [(160_000, "met"), (160_001, "missed")])
def test_a_time_must_not_pass_its_limit(bench: Import, p99_us: float, word: str) -> None:
    """What should be small is missed above its limit, and is judged without nginx."""
    ours = {"answer_p99_us": p99_us, "quiet_rounds": 1, "ready_s": 0.5}
    verdicts = bench("targets").judge({"K": {"tidegate": ours}})
    assert next(v for v in verdicts if v.target.workload == "K").word == word


def test_rates_count_only_where_both_cores_are_full(bench: Import) -> None:
    """Where nginx waits for the harness its rate is too low, and processor time is compared."""
    ours = figures(4000, 200)
    full = verdict(bench, ours, figures(10_000, 40))
    waiting = verdict(bench, ours, figures(10_000, 40, busy=0.6))
    assert full.found.figure == pytest.approx(0.4)
    assert waiting.found.figure == pytest.approx(0.2)
    assert "0.20" in full.found.beside
    assert "0.40" in waiting.found.beside


def test_a_verdict_says_that_no_round_was_quiet(bench: Import) -> None:
    """A verdict on noisy rounds alone says so, and one on a quiet round does not."""
    ours, nginx = figures(4000, 100), figures(10_000, 40)
    assert "no quiet" not in verdict(bench, ours, nginx).found.beside
    assert "no quiet" in verdict(bench, {**ours, "quiet_rounds": 0}, nginx).found.beside


def test_the_table_has_only_what_was_measured(bench: Import) -> None:
    """Targets without a figure are left out, and the count at the end knows only the others."""
    targets = bench("targets")
    summary = {"W1b": {"nginx": figures(10_000, 40), "tidegate": figures(4000, 100)}}
    lines = targets.table(targets.judge(summary)).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["W1b", "all"]
    assert lines[-1] == "2 of 2 targets met"


def a_round(answers_per_s: float, *, noisy: bool = False, errors: int = 0) -> dict:
    """One round of W1b."""
    return {
        "workload": "W1b",
        "peer": "tidegate",
        "answers_per_s": answers_per_s,
        "noisy": noisy,
        "errors": errors,
        "first_error": "",
        "ready_s": 0.5,
    }


def test_medians_are_of_quiet_rounds_and_errors_of_all(bench: Import) -> None:
    """A noisy round moves no median, but its errors count."""
    rounds = [a_round(10), a_round(30), a_round(1, noisy=True, errors=2)]
    found = bench("report").summarise(rounds)["W1b"]["tidegate"]
    assert (found["answers_per_s"], found["errors"]) == (20, 2)
    assert (found["quiet_rounds"], found["rounds"]) == (2, 3)


def test_the_page_names_versions_and_smaller_loads(bench: Import) -> None:
    """A line says whose version was measured, and where it was asked for fewer streams."""
    found = figures(1, 1, cpu_s_per_million_events=600.0, streams=20)
    about = {"at": "2026-11-29T20:00", "python": "3.11.7", "kernel": "6.18.1-x", "cores": 2}
    run = {
        "about": {**about, "processor": "EPYC", "versions": {"litellm": "1.0"}},
        "summary": {"W3": {"litellm": found}},
        "rounds": [a_round(1), a_round(1, noisy=True)],
    }
    said, _, *lines = bench("report").page(run).splitlines()
    assert "1 of 2 rounds were quiet" in said
    assert lines[2].startswith("| litellm 1.0 |")
    assert "600 (20 streams)" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


class Scripted:
    """A workload whose rounds are noisy as often as the script says."""

    def __init__(self, bench: Import, noise: dict[str, list[bool]]) -> None:
        """Take what each contender's rounds will be; one without a script does not start."""
        self.noise = noise
        self.unready = bench("peers").NotReadyError
        self.workload = bench("workloads").Workload("W4", "", self.measure)

    def measure(self, peer: str, cores: object) -> dict:
        """Play the next round."""
        if peer not in self.noise:
            raise self.unready(peer)
        return {"peer": peer, "noisy": self.noise[peer].pop(0)}


def test_noisy_rounds_are_played_again_until_quiet(bench: Import) -> None:
    """Each noisy round is made up for by a quiet one of the same contender."""
    script = Scripted(bench, {"nginx": [False, False], "tidegate": [True, False, True, False]})
    peers = ["nginx", "tidegate"]
    play = bench("run").play
    played = list(play([script.workload], peers, None, 2, time.monotonic() + 3600))
    assert [r["peer"] for r in played if r["round"] == "again"] == ["tidegate"] * 2
    assert sum(r["peer"] == "tidegate" and not r["noisy"] for r in played) == 2


def test_nothing_is_repeated_when_time_is_up(bench: Import) -> None:
    """Past the deadline what was asked for is still played, and nothing again."""
    script = Scripted(bench, {"nginx": [True, True]})
    played = list(bench("run").play([script.workload], ["nginx"], None, 2, time.monotonic()))
    assert [r["round"] for r in played] == [0, 1]


def test_a_contender_that_does_not_start_is_left_out(bench: Import, capsys: Any) -> None:
    """It is named, and the others go on without it; but without tidegate there is no result."""
    script = Scripted(bench, {"nginx": [False, False]})
    play, until_s = bench("run").play, time.monotonic() + 3600
    played = list(play([script.workload], ["caddy", "nginx"], None, 2, until_s))
    assert [r["peer"] for r in played] == ["nginx", "nginx"]
    assert "without caddy" in capsys.readouterr().err
    with pytest.raises(script.unready):
        list(play([script.workload], ["tidegate"], None, 1, until_s))
