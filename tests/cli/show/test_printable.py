"""No verb lets a word from elsewhere steer the terminal, as a page or as JSON."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tidegate import cli
from tidegate.cli.main import main
from tidegate.cli.show.banner import print_calmly
from tidegate.config import tokens

# One of each kind: escape, C1, a direction, line ends, one without width, and a line of its own.
HOSTILE = "a\x1b[2J\x9b1m\u202e\u2028\u0085\u200b\x7f\rb\ntidegate: forged"
STATUS = {
    "state": "serving", "version": "1", "uptime_s": 1.0, "generation": 3, "listen": [HOSTILE],
    "workers": [], "worker": None, "watchdog": {"pid": 1, "rss_bytes": 1},
    "memory": {"budget_source": HOSTILE, "shedding": HOSTILE, "refused": HOSTILE, "would": HOSTILE,
               "steps": [{"step": HOSTILE, "runs": 1, "freed_bytes": 1}]},
    "runs": {"active": 0, "finished": 0, "total": 0},
    "swept": {"runs": 1, "bytes": 1, "last_reason": HOSTILE},
    "recycles": 0, "restarts": [{"at": 1.0, "reason": HOSTILE, "exit": 1}], "reason": HOSTILE,
    "upstreams": [{"name": HOSTILE, "state": HOSTILE, "active": 0, "queued": 0,
                   "last_error": HOSTILE}],
    "repairs": [{"id": HOSTILE, "since": 1.0, "severity": HOSTILE, "cause": HOSTILE,
                 "fix": HOSTILE}],
    "manager": HOSTILE,
    "journal": {"keep": HOSTILE, "place": HOSTILE, "paused": HOSTILE, "set_aside": HOSTILE},
}  # fmt: skip
RUN = {
    "id": HOSTILE, "object": "run", "state": HOSTILE, "reason": HOSTILE, "model": HOSTILE,
    "upstream": HOSTILE, "attempts": 1, "created": 0.0, "ended": None, "first_seq": 0,
    "next_seq": 1, "bytes": 1, "subscribers": 1,
}  # fmt: skip
MODELS = {
    "data": [{"name": HOSTILE, "url": HOSTILE, "kind": HOSTILE, "state": HOSTILE, "total": 1,
              "last_error": HOSTILE, "models": [{"name": HOSTILE, "unit": HOSTILE, "per_s": 1.0}]}],
    "aliases": [{"name": HOSTILE, "targets": [HOSTILE]}],
}  # fmt: skip
CHANGE = {"key": HOSTILE, "what": "changed", "old": HOSTILE, "new": HOSTILE, "effect": "at once"}
ANSWERS: dict[str, Any] = {
    "status": STATUS,
    "runs": {"object": "list", "data": [RUN], "total": 1},
    "models": MODELS,
    "usage": {
        "data": [
            {
                "key": HOSTILE,
                "runs": 1,
                "failed": 0,
                "unknown": 0,
                "input": 1,
                "output": 1,
                "cached": 0,
                "reasoning": 0,
                "seconds": 1.0,
                "bytes": 1,
                "last": 1.0,
            }
        ]
    },
    "sweep": {"runs": 1, "bytes": 1, "reasons": {HOSTILE: 1}},
    "reload": {"changes": [CHANGE], "generation": None, "warnings": [HOSTILE], "unparked": False},
    "bundle": {"path": f"/nowhere/{HOSTILE}", "bytes": 1},
}


def expect_calm(*texts: str) -> None:
    """Nothing but lines of what prints, and no line that is not ours."""
    for text in texts:
        for line in text.split("\n"):
            assert line.isprintable(), ascii(line)
            assert not line.startswith("tidegate: forged")


@pytest.mark.parametrize("verb", ANSWERS)
def test_pages_show_such_words_by_their_numbers(tidegate, watchdog, verb: str) -> None:
    """Every text that a running tidegate answers with may come from elsewhere."""
    watchdog.will(verb, ANSWERS[verb])
    shows_all = ("--verbose",) if verb == "status" else ()
    code, out, err = tidegate(verb, *shows_all)
    assert code == 0, err
    expect_calm(out, err)
    expect_calm(*tidegate(verb)[1:])
    assert "\\x9b1m\\u202e\\u2028\\x85\\u200b\\x7f" in "".join((out + err).split("\n"))


@pytest.mark.parametrize("verb", ANSWERS)
def test_json_has_them_as_escapes(tidegate, watchdog, verb: str) -> None:
    """Programs read what was said; a person who looks at it sees no more than its text."""
    watchdog.will(verb, ANSWERS[verb])
    code, out, err = tidegate(verb, "--json")
    assert (code, err) == (0, "")
    expect_calm(out)
    assert "\\u009b" in out
    assert json.loads(out) == ANSWERS[verb]


@pytest.mark.parametrize(
    "verb", ["status", "runs", "models", "usage", "sweep", "reload", "recycle", "bundle"]
)
def test_refusals_are_shown_so_too(tidegate, watchdog, verb: str) -> None:
    """What a running tidegate says no with has reasons from elsewhere in it."""
    watchdog.will(verb, error=HOSTILE.replace("\n", " "))
    code, out, err = tidegate(verb)
    assert code != 0
    expect_calm(out, err)
    assert "\\x9b1m\\u202e\\u2028" in err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_config_is_judged_in_calm_words(tidegate, flags: list[str]) -> None:
    """A key and a value of the file are repeated, and TOML may write any character."""
    key = '"k\\u009b\\u202E\\u2028\\ntidegate: forged"'
    tidegate.config.write_text(f'{key} = 1\nlisten = ["a\\u009b\\u202E"]\n')
    code, out, err = tidegate("check", *flags)
    assert code == 78
    expect_calm(out, err)
    assert "x9b" in out + err


def test_the_doctor_and_the_log_are_calm(tidegate, tmp_path: Path, monkeypatch) -> None:
    """The same for what others wrote into the log's file, and for a finding's words."""
    log = tidegate.state_dir / "tidegate.log"
    log.write_text(f"2026-11-22T20:00:00+0100 info watchdog {HOSTILE[:-16]}\n", newline="")
    for flags in ([], ["--json"]):
        code, out, err = tidegate("logs", *flags)
        assert code == 0, err
        expect_calm(out, err)
    tidegate.config.write_text('"k\\u009b" = 1\n')
    for flags in ([], ["--json"]):
        code, out, err = tidegate("doctor", "--no-tokens", *flags)
        assert "x9b" in out
        expect_calm(out, err)


def test_tokens_wrong_words_and_the_banner_are_calm(tidegate, capsys, monkeypatch) -> None:
    """Of a hand-edited file, of a command line, and of what a worker found on this computer."""
    file = tidegate.state_dir / "tokens"
    tokens.new(file, "laptop")
    file.write_text(file.read_text().replace('"created": "', '"created": "\\u009b\\u202e'))
    for flags in ([], ["--json"]):
        code, out, err = tidegate("token", "list", *flags)
        assert code == 0
        expect_calm(out, err)
    assert main(["status", f"--{HOSTILE}"]) == 64
    expect_calm(capsys.readouterr().err.replace("\ntidegate: forged", ""))
    print_calmly(f"Found {HOSTILE}\n")
    printed = capsys.readouterr().out
    assert "\x9b" not in printed


def test_every_way_to_the_terminal_goes_through_one() -> None:
    """No verb prints by itself, nor writes to stdout or stderr."""
    for path in sorted(Path(cli.__path__[0]).glob("*.py")):
        if path.name in ("printable.py", "completion.py", "manual.py"):
            continue  # the way itself, and what is our own text from beginning to end
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.stdout.write", "sys.stderr.write"), path.name
