"""The verbs: what they print, what they ask, and with which code they exit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from fakes.status import idle
from tidegate.cli.main import main
from tidegate.cli.parser import command_line
from tidegate.cli.verbs import ask
from tidegate.config import places
from tidegate.watchdog.control.client import NotRunning

STATUS = {
    "state": "serving",
    "version": "0.5.0",
    "uptime_s": 788_400.0,
    "generation": 3,
    "listen": ["127.0.0.1:8433"],
    "workers": [
        {
            "pid": 4242,
            "generation": 3,
            "state": "serving",
            "rss_bytes": 55 << 20,
            "loop_lag_ms": 0.4,
            "heartbeat_age_s": 0.3,
        }
    ],
    "worker": None,
    "watchdog": {"pid": 4241, "rss_bytes": 14 << 20},
    "memory": {
        "level": 1,
        "budget_bytes": 1 << 30,
        "budget_source": "a quarter of this computer's memory",
        "used_bytes": 212 << 20,
        "base_bytes": 40 << 20,
        "ledger_bytes": 150 << 20,
        "unexplained_bytes": 12 << 20,
        "growth_bytes_per_h": None,
        "mode": "enforce",
    },
    "runs": {"active": 3, "finished": 17, "total": 4021},
    "swept": {"runs": 2, "bytes": 405_504, "last_reason": "swept: stuck 612 s, level 2"},
    "recycles": 1,
    "restarts": [{"at": 1_795_000_000.0, "reason": "hung", "exit": -9}],
    "upstreams": [
        {"name": "box", "state": "ok", "active": 2, "queued": 0, "last_error": None},
        {
            "name": "cloud",
            "state": "failing",
            "active": 0,
            "queued": 1,
            "last_error": "\x1b[2Jrefused",
        },
    ],
}
RUN = {
    "id": "run_abc",
    "object": "run",
    "state": "streaming",
    "reason": None,
    "model": "[red]qwen3",
    "upstream": "box",
    "attempts": 1,
    "created": 0.0,
    "ended": None,
    "first_seq": 0,
    "next_seq": 812,
    "bytes": 204_800,
    "subscribers": 1,
}

READING = [
    ["status"],
    ["runs"],
    ["usage"],
    ["forget", "run_abc"],
    ["models"],
    ["sweep"],
    ["recycle"],
    ["reload"],
    ["stop"],
]


@pytest.mark.parametrize("verb", READING, ids=lambda verb: verb[0])
def test_none_running_is_exit_69(tidegate, verb):
    """A verb that needs a running tidegate says where it looked and exits with 69."""
    code, out, err = tidegate(*verb)
    assert (code, out) == (69, "")
    assert "not running" in err
    assert str(tidegate.runtime_dir) in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["help", "dance"],
        ["status", "--jsn"],
        ["token"],
        ["token", "new"],
        ["run", "extra"],
        ["runs", "--finished"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_64(capsys, arguments):
    """A wrong command line shows the usage and exits with 64."""
    assert main(arguments) == 64
    assert "usage: tidegate" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["help"], []], ids=" ".join)
def test_help_is_no_error(capsys, arguments):
    """The help lists every verb and exits with 0, as the command alone does."""
    assert main(arguments) == 0
    out = capsys.readouterr().out
    verbs = "run start stop restart status runs models sweep recycle reload check token version"
    assert all(f"    {verb} " in out for verb in verbs.split())


def test_status_screen_says_what_was_swept_and_why(tidegate, watchdog):
    """The whole screen shows state, memory, runs, the last sweep's reason, failing upstreams."""
    watchdog.will("status", STATUS)
    code, out, _ = tidegate("status", "--verbose")
    assert code == 0
    assert "serving, up 9 d 3 h" in out
    assert "212 MiB of 1 GiB, level 1: tidy" in out
    assert "3 active, 17 kept for resuming, 4021 in all" in out
    assert "2 runs, 396 KiB" in out
    assert "swept: stuck 612 s, level 2" in out
    assert "cloud: failing" in out
    assert "hung" in out


def test_help_for_a_verb_is_what_its_own_flag_shows(capsys):
    """For one with verbs of its own, those are listed."""
    for verb in ("status", "token", "help"):
        assert main(["help", verb]) == 0
        told = capsys.readouterr().out
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out == told
        assert f"usage: tidegate {verb}" in told


def test_status_begins_with_one_sentence_and_tells_what_is_wrong(tidegate, watchdog):
    """Pids, sweeps and restarts are for `--verbose`; with trouble, what it is stays in sight."""
    repair = {"id": "disk", "since": time.time() - 90, "severity": "error", "cause": "it is full",
              "fix": "make room"}  # fmt: skip
    paused = {"keep": "rows", "place": "disk", "paused": "no space left"}
    told = {**STATUS, "flat_s": 6 * 86400.0, "repairs": [repair], "history": paused}
    watchdog.will("status", told)
    out = tidegate("status")[1]
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "Healthy. 212 of 1,024 MiB, flat for 6 days, 3 answers running."
    assert lines[1] == "tidegate 0.5.0, serving, up 9 d 3 h, listening at 127.0.0.1:8433"
    for part in (
        "error for 1 min 30 s: it is full",
        "make room (disk)",
        "level 1: tidy",
        "paused: no space left",
        "cloud: failing",
        "ok: box (2 active, 0 queued)",
    ):
        assert part in out
    for part in ("pid", "Swept", "Restarts", "a row a run"):
        assert part not in out
    assert len(lines) < len(tidegate("status", "-v")[1].splitlines())


def test_status_shows_what_is_kept_where_and_what_is_not(tidegate, watchdog):
    """A line each for the journal and the history, and another for what is wrong with it."""
    journal = {
        "keep": "answers", "place": "memory", "bytes": 1_258_291, "runs": 310,
        "oldest": time.time() - 3 * 3600 - 150, "dropped_bytes": 2048,
    }  # fmt: skip
    history = {
        "keep": "rows", "place": "disk", "bytes": 4096, "runs": 1, "oldest": time.time() - 61,
        "paused": "no space left on the disk", "lag_s": 70.0, "waiting_bytes": 512,
        "set_aside": "/s/history/history.db.bad",
    }  # fmt: skip
    watchdog.will("status", {**STATUS, "journal": journal, "history": history})
    lines = [line.strip() for line in tidegate("status", "--verbose")[1].splitlines()]
    told = lines[lines.index(next(line for line in lines if line.startswith("Journal"))) :][:6]
    assert [re.sub(r"^(Journal|History) +", "", line) for line in told] == [
        "answers, in memory: 1.2 MiB, 310 runs, the oldest 3 h 2 min old",
        "2 KiB could not be kept since the worker started",
        "a row a run, on disk: 4 KiB, 1 run, the oldest 1 min 1 s old",
        "paused: no space left on the disk",
        "512 bytes have waited for 1 min 10 s to be written",
        "a damaged file was put aside: /s/history/history.db.bad",
    ]
    off = {"keep": "off", "place": "disk"}
    watchdog.will("status", {**STATUS, "journal": off})
    out = tidegate("status", "--verbose")[1]
    assert re.search(r"Journal +off *\n", out)
    assert "History" not in out


def test_status_lets_no_escape_sequence_through(tidegate, watchdog):
    """An upstream's error text cannot move the cursor or clear the screen."""
    watchdog.will("status", STATUS)
    _, out, _ = tidegate("status")
    assert "\x1b" not in out
    assert "[2Jrefused" in out


def test_status_of_one_that_is_starting_is_shown(tidegate, watchdog):
    """A tidegate without a worker yet has a status as well."""
    young = {**STATUS, "state": "starting", "workers": [], "upstreams": [], "restarts": []}
    watchdog.will("status", young)
    code, out, _ = tidegate("status")
    assert code == 0
    assert out.startswith("Starting. ")


def test_parked_one_says_why(tidegate, watchdog):
    """A parked tidegate shows each mistake of its config."""
    parked = {**STATUS, "state": "parked", "workers": [], "reason": "c.toml:1: a\nc.toml:2: b"}
    watchdog.will("status", parked)
    assert "Because" in tidegate("status")[1]
    assert "c.toml:2: b" in tidegate("status")[1]


def test_status_of_another_version_is_said_to_be(tidegate, watchdog):
    """An answer without what the screen needs is a refusal with a hint, not a stack trace."""
    watchdog.will("status", {"state": "serving"})
    code, _, err = tidegate("status")
    assert code == 1
    assert "another version" in err


def test_json_is_passed_on_unchanged(tidegate, watchdog):
    """`--json` prints what the watchdog said, also fields that the screen does not know."""
    watchdog.will("status", {**STATUS, "new": 1})
    watchdog.will("runs", {"object": "list", "data": [RUN]})
    assert json.loads(tidegate("status", "--json")[1]) == {**STATUS, "new": 1}
    assert json.loads(tidegate("runs", "--json")[1])["data"] == [RUN]


def test_runs_are_a_table(tidegate, watchdog):
    """The table shows each run's id whole and a model's name as it is, brackets included."""
    watchdog.will("runs", {"object": "list", "data": [RUN]})
    code, out, _ = tidegate("runs")
    assert code == 0
    row = out.splitlines()[1]
    assert all(cell in row for cell in ("run_abc", "[red]qwen3", "812", "200 KiB"))


def test_all_runs_say_where_each_is_known_from(tidegate, watchdog):
    """With `--all` those are asked for that only the files know, and a column tells them apart."""
    watchdog.will("runs", {"object": "list", "data": [RUN, {**RUN, "place": "journal"}]})
    lines = tidegate("runs", "--all")[1].splitlines()
    assert [request.all for request in watchdog.requests] == [True]
    assert "where" in lines[0]
    assert ["memory" in lines[1], "journal" in lines[2]] == [True, True]
    watchdog.will("runs", {"object": "list", "data": []})
    assert tidegate("runs", "--all")[1] == "No runs are known.\n"


def test_no_runs_is_a_sentence(tidegate, watchdog):
    """Without runs there is a sentence instead of an empty table."""
    watchdog.will("runs", {"object": "list", "data": []})
    assert tidegate("runs")[1] == "No runs are held.\n"


def test_sweep_asks_for_finished_ones_only_when_told(tidegate, watchdog):
    """`--finished` is passed on, and the answer says how much was released and why."""
    watchdog.will("sweep", {"runs": 2, "bytes": 2048, "reasons": {"stuck": 2}})
    assert tidegate("sweep")[1] == "Swept 2 runs, 2 KiB.\n  2: stuck\n"
    tidegate("sweep", "--finished")
    assert [request.finished for request in watchdog.requests] == [False, True]


def test_recycle_waits_unless_told(tidegate, watchdog):
    """`--no-wait` is passed on."""
    watchdog.will("recycle")
    assert tidegate("recycle")[0] == 0
    assert tidegate("recycle", "--no-wait")[0] == 0
    assert [request.wait for request in watchdog.requests] == [True, False]


def test_refusals_are_told(tidegate, watchdog):
    """A refused recycle exits with 1, a refused config with 78, each with the reason."""
    watchdog.will("recycle", error="a recycle is under way")
    watchdog.will("reload", error="config.toml:1: nonsense")
    assert tidegate("recycle") == (1, "", "tidegate: a recycle is under way\n")
    assert tidegate("reload") == (78, "", "tidegate: config.toml:1: nonsense\n")


def test_no_answer_ends_after_a_limit(tidegate, watchdog, monkeypatch):
    """A tidegate that accepts and says nothing is given up on, with exit 75."""
    monkeypatch.setattr(ask.ask, "__defaults__", (0.2,))
    code, _, err = tidegate("status")
    assert code == 75
    assert "no answer to status within 0.2 s" in err


def test_check_of_a_good_config(tidegate):
    """A good config is summed up in a few lines."""
    tidegate.config.write_text('[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:1"')
    code, out, _ = tidegate("check")
    assert code == 0
    assert out.startswith(f"OK: {tidegate.config}\n")
    assert "box" in out
    assert json.loads(tidegate("check", "--json")[1]) == {"ok": True, "errors": [], "warnings": []}


def test_check_of_a_bad_config_is_exit_78(tidegate):
    """A bad config is answered with every mistake, for people and for programs."""
    tidegate.config.write_text("a = 1\nb = 2")
    code, out, err = tidegate("check")
    assert (code, out) == (78, "")
    assert err.count("unknown key") == 2
    code, out, _ = tidegate("check", "--json")
    assert code == 78
    assert len(json.loads(out)["errors"]) == 2


def test_token_is_alone_on_stdout(tidegate):
    """A new token is all that is printed to stdout, and the list never shows it."""
    code, out, err = tidegate("token", "new", "laptop")
    assert code == 0
    assert out.startswith("tg-")
    assert out.count("\n") == 1
    assert "cannot be shown again" in err
    listed = tidegate("token", "list")[1]
    assert "laptop" in listed
    assert out.strip() not in listed
    assert json.loads(tidegate("token", "list", "--json")[1])[0]["name"] == "laptop"


@pytest.mark.parametrize(
    ("flags", "scope"),
    [
        ((), "use"),
        (("--read",), "read"),
        (("--scope", "read"), "read"),
        (("--scope=owner",), "owner"),
    ],
)
def test_a_token_is_made_for_a_scope_and_listed_with_it(tidegate, flags, scope):
    """To call models where nothing else is said."""
    assert tidegate("token", "new", "panel", *flags)[0] == 0
    code, out, err = tidegate("token", "list")
    assert (code, out.split()[-2:], err) == (0, [scope, "panel"], "")
    assert json.loads(tidegate("token", "list", "--json")[1])[0]["scope"] == scope


@pytest.mark.parametrize("flags", [("--scope",), ("--scope", "all"), ("--read", "--scope=owner")])
def test_a_scope_that_is_none_makes_no_token(tidegate, flags):
    """Nor do two."""
    code, _, err = tidegate("token", "new", "panel", *flags)
    assert (code, "--scope" in err) == (64, True)
    assert not (tidegate.state_dir / "tokens").exists()


def test_a_scope_of_a_newer_version_is_told_wherever_tokens_are(tidegate):
    """By the list, by check and by doctor; it grants nothing."""
    tidegate("token", "new", "panel", "--read")
    file = tidegate.state_dir / "tokens"
    file.write_text(file.read_text().replace('"read"', '"audit"'))
    tidegate.config.write_text("")
    for verb in (("token", "list"), ("check",), ("doctor", "--no-tokens")):
        _, out, err = tidegate(*verb)
        assert "the token panel may do nothing" in " ".join((out + err).split())


def test_first_token_can_be_made_for_a_config_that_needs_one(tidegate):
    """A config refused for want of a token does not keep the token from being made."""
    tidegate.config.write_text('listen = "0.0.0.0:0"')
    assert tidegate("check")[0] == 78
    assert tidegate("token", "new", "phone")[0] == 0
    assert tidegate("check")[0] == 0


def test_token_changes_reach_a_running_one(tidegate, watchdog):
    """Making and revoking a token each ask a running tidegate to reload."""
    watchdog.will("reload")
    assert tidegate("token", "new", "laptop")[0] == 0
    assert tidegate("token", "new", "phone")[0] == 0
    assert tidegate("token", "revoke", "laptop") == (0, "Revoked laptop.\n", "")
    assert [request.verb for request in watchdog.requests] == ["reload"] * 3


def test_revoked_token_that_is_still_accepted_is_said_aloud(tidegate, watchdog):
    """When the running one refuses to reload, revoking says so and exits with 1."""
    watchdog.will("reload", error="bad config")
    watchdog.will("status", idle())
    tidegate("token", "new", "laptop")
    code, _, err = tidegate("token", "revoke", "laptop")
    assert code == 1
    assert "STILL ACCEPTED: bad config" in err


def test_revoking_the_last_token_says_what_follows(tidegate):
    """Without any token authentication is off, which is said when the last one goes."""
    tidegate("token", "new", "laptop")
    code, _, err = tidegate("token", "revoke", "laptop")
    assert code == 0
    assert "authentication is off" in err


@pytest.mark.parametrize(
    ("listen", "bound", "config"),
    [
        (["127.0.0.1:0", "192.168.1.10:8433"], None, ""),
        (["[::]:0"], None, ""),
        (["127.0.0.1:0"], ["0.0.0.0:8433"], ""),  # the service manager's socket, or not yet moved
        (["0.0.0.0:0"], ["127.0.0.1:8433"], ""),
        (["0.0.0.0:0"], ["0.0.0.0:1"], "[memory]\nmode = 1"),
        (["127.0.0.1:0"], ["127.0.0.1:1"], "[memory]\nmode = 1"),
    ],
)
def test_the_last_token_of_an_open_address_is_kept(tidegate, request, listen, bound, config):
    """Refused with what to do, also by a config that cannot be read; the file and the one that
    runs are as before, and with a second token the first may go."""
    tidegate("token", "new", "laptop")
    tidegate.config.write_text(f"listen = {json.dumps(listen)}\n{config}")
    watchdog = request.getfixturevalue("watchdog") if bound else None
    if watchdog:
        watchdog.will("status", idle(listen=bound))
    file = tidegate.state_dir / "tokens"
    before = file.read_bytes(), file.stat()
    code, out, err = tidegate("token", "revoke", "laptop")
    assert (code, out) == (78 if config else 1, "")
    assert "nothing has changed" in err
    assert "tidegate token new NAME" in err
    assert (file.read_bytes(), file.stat()) == before
    if watchdog:
        assert [asked.verb for asked in watchdog.requests] == ["status"]
        watchdog.will("reload")
    assert tidegate("token", "new", "phone")[0] == 0
    assert tidegate("token", "revoke", "laptop")[0] == 0
    assert tidegate("token", "revoke", "phone")[0] != 0


@pytest.mark.parametrize(
    "config",
    [
        'listen = ["127.0.0.1:0", "[::1]:0", "unix:/tmp/x"]',
        'listen = "localhost:0"',
        'listen = "0.0.0.0:0"\n[auth]\nallow_without_token = true',
    ],
)
def test_the_last_token_may_go_where_that_lets_in_none(tidegate, config):
    """On loopback, or where the owner wants it so."""
    tidegate("token", "new", "laptop")
    tidegate.config.write_text(config)
    assert tidegate("token", "revoke", "laptop")[0] == 0
    assert "laptop" not in (tidegate.state_dir / "tokens").read_text()


def test_the_last_token_stays_while_the_running_one_does_not_answer(tidegate, watchdog):
    """Where it listens is not known then."""
    watchdog.will("reload")
    tidegate("token", "new", "laptop")
    watchdog.will("status", error="not now")
    assert tidegate("token", "revoke", "laptop")[0] == 1
    assert "laptop" in (tidegate.state_dir / "tokens").read_text()


def test_revoking_a_missing_token_is_exit_64(tidegate):
    """A token that does not exist is a mistake in the command."""
    code, _, err = tidegate("token", "revoke", "missing")
    assert code == 64
    assert "no such token" in err


def test_runtime_directory_too_long_is_exit_78(capsys):
    """A runtime directory that cannot hold sockets is named before anything is tried."""
    assert main(["status", "--runtime-dir", "/" + "x" * 100]) == 78
    assert "--runtime-dir" in capsys.readouterr().err


def test_version_names_what_it_runs_on(capsys):
    """`version` shows tidegate, Python and the libraries that matter."""
    assert main(["version", "--json"]) == 0
    assert {"tidegate", "python", "aiohttp"} <= set(json.loads(capsys.readouterr().out))


def test_closed_pipe_is_no_error():
    """`tidegate version | head -0` ends quietly."""
    command = [sys.executable, "-m", "tidegate", "version"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 0


def test_run_loads_nothing_that_only_prints():
    """`run` becomes the watchdog, which keeps for months what was loaded, and needs none of these.

    argparse takes shutil along, and with it bz2 and lzma, where it is left to find its width.
    """
    others = "asyncio aiohttp rich daemon json difflib base64"
    if sys.platform == "linux":  # elsewhere an upgrade needs a file with no name
        others += " shutil tempfile random"
    code = (
        "import sys; from tidegate.cli.main import command_line;"
        "command_line().parse_args(['run']);"
        "import tidegate.cli.verbs.run, tidegate.watchdog.start;"
        f"print([m for m in {others.split()} if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout == b"[]\n"


@pytest.mark.parametrize(
    ("columns", "width"), [("120", 118), ("0", 78), ("many", 78), ("", 78), (None, 78)]
)
def test_help_is_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: str | None, width: int
) -> None:
    """COLUMNS says how wide that is, and 80 is meant where nothing does."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((0, 0)))
    assert max(map(len, command_line().format_help().splitlines())) <= width
    assert command_line().formatter_class("tidegate")._width == width


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_finds_no_room_is_one_sentence() -> None:
    """A full disk behind a redirection: exit code 74, and no traceback."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tidegate", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 74
    assert done.stderr == "tidegate: cannot be printed: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["stauts"], "status"),
        (["help", "stauts"], "status"),
        (["service", "instal"], "install"),
        (["usage", "--by", "tokn"], "token"),
        (["token", "new", "x", "--scope=ownr"], "owner"),
        (["xyzzy"], None),
    ],
)
def test_a_mistyped_verb_is_told_what_it_may_have_been(
    arguments: list[str],
    meant: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the list of all; where nothing is near, that is enough. It fits 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 64
    said = capsys.readouterr().err
    assert max(map(len, said.splitlines())) <= 80
    assert "choose from " in said.partition("did you mean" if meant else "is not known")[2]
    assert ("did you mean" in said) is (meant is not None)
    assert meant is None or f"did you mean `{meant}`?" in said


@pytest.fixture
def system_service(tmp_path, monkeypatch):
    """One runs, and we are another user."""
    there = tmp_path / "system"
    there.mkdir()
    usual = msgspec.structs.replace(places.system_places("linux"), runtime_dir=there)
    monkeypatch.setattr("tidegate.cli.verbs.ask.system_places", lambda _platform: usual)
    monkeypatch.setattr("os.geteuid", lambda: 1234)
    return there


def test_the_way_to_the_service_of_the_system_is_told(system_service, tmp_path, capsys):
    """Without sudo the verbs look where no daemon runs, and no daemon would read the token."""
    own = ["--state-dir", str(tmp_path), "--runtime-dir", str(tmp_path / "run")]
    assert main(["status", *own]) == 69
    assert "put sudo before the command" in capsys.readouterr().err
    assert main(["token", "new", "laptop", *own]) == 0
    assert "put sudo before the command" in capsys.readouterr().err
    system_service.rmdir()
    assert main(["status", *own]) == 69
    assert "sudo" not in capsys.readouterr().err


def test_a_socket_of_another_user_is_not_a_daemon_that_is_gone(tmp_path, monkeypatch, capsys):
    """What we may not ask may well run."""

    def closed(*_: object) -> None:
        raise NotRunning("closed") from PermissionError()

    monkeypatch.setattr("tidegate.watchdog.control.client.ask", closed)
    assert main(["status", "--runtime-dir", str(tmp_path)]) == 69
    assert "answers only the user whose it is" in capsys.readouterr().err
